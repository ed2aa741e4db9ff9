"""Inspect's self check of sandboxes with inspect-sandboxes' provider."""

import pytest
from inspect_ai.util._sandbox.self_check import *  # noqa: F403
from inspect_sandboxes.modal._modal import ModalSandboxEnvironment


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def made(anyio_backend):
    await ModalSandboxEnvironment.task_init("corpus", None)
    found = await ModalSandboxEnvironment.sample_init("corpus", None, {})
    yield found["default"]
    await ModalSandboxEnvironment.sample_cleanup("corpus", None, found, False)


@pytest.fixture
def sandbox_env(made):
    return made


pytestmark = pytest.mark.anyio
