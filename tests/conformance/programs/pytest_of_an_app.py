"""A user's own test file: the app runs in a pytest fixture."""

import pytest
from app_under_pytest import app, double


@pytest.fixture(scope="module")
def running():
    with app.run():
        yield app


def test_remote(running):
    assert running.app_id.startswith("ap-")
    assert double.remote(4) == 8


def test_map(running):
    assert list(double.map(range(3))) == [0, 2, 4]
