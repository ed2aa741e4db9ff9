"""langchain-tests' sandbox suite with langchain-modal's backend."""

import modal
import pytest
from langchain_modal import ModalSandbox
from langchain_tests.integration_tests import SandboxIntegrationTests


class TestModal(SandboxIntegrationTests):
    @pytest.fixture(scope="class")
    def sandbox(self):
        app = modal.App.lookup("corpus-langchain", create_if_missing=True)
        image = modal.Image.debian_slim()
        made = modal.Sandbox.create(app=app, image=image, workdir="/", timeout=900)
        yield ModalSandbox(sandbox=made)
        made.terminate()
