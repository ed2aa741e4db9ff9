"""A user's own test file: an app run from a pytest fixture."""

import modal
import pytest

app = modal.App("conformance-pytest")


@app.function()
def double(x):
    return 2 * x


@pytest.fixture(scope="module")
def running():
    with app.run():
        yield app


def test_remote(running):
    assert running.app_id.startswith("ap-")
    assert double.remote(4) == 8


def test_map(running):
    assert list(double.map(range(3))) == [0, 2, 4]
