"""Images in running sandboxes: directories made images, images mounted and unmounted; volumes."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    """What the program reported."""
    if client.release < (1, 1):
        pytest.skip("this client has none of it")
    return runner.checks(client, "sandbox_images", script=True)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (
            "directory_goes_to_another",
            [
                "im-",
                "one\na 640 0 0 4\ndeep 755 12 34 4096\ndeep/hole 644 0 0 1048576\n2\n"
                "a\ndeep\nlink\ntwin\n",
                ["a", "deep", "link", "twin"],
            ],
        ),
        ("mounted_over_files", ["new\n", "mine\n", ""]),
        ("steps_of_work", "./b:1\n./c:1\n./d/a:1\n\n./c:2\n./d/z:2\n"),
        ("built_image_is_mounted", "tool\nyes\nt\n"),
        ("directory_as_root", [0, "made\n"]),
        ("in_use", ["in\n", "ConflictError", True, "InvalidError", True]),
        ("links_lead_nowhere_else", ["/link/:\nx\n\n/real:\nx\n", "closed\n"]),
        (
            "bad_places",
            [
                [
                    "InvalidError",
                    "InvalidError",
                    "InvalidError",
                    "NotFoundError",
                    "InvalidError",
                    "InvalidError",
                    "InvalidError",
                    "InvalidError",
                ],
                "works\n",
            ],
        ),
    ],
)
def test_image(checks: Checks, client: Client, check: str, expected: object) -> None:
    if client.release < (1, 5):
        pytest.skip("this client does it in another way or not at all")
    assert checks.value(check) == expected


def test_volumes_are_reloaded(checks: Checks, client: Client) -> None:
    before, after, refused = checks.value("volume_is_reloaded")
    assert (before, after) == ("", "news\n")
    if client.release >= (1, 5):
        assert refused == "InvalidError"


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("exit_snapshot", ["exits\n", "TimeoutError", "terminated\n", "times out\n"]),
        ("no_exit_snapshot", "InvalidError"),
        (
            "persistent",
            ["hidden\n", "one\nhidden\n", "one\ntwo\n", True, None, True, "InvalidError"],
        ),
    ],
)
def test_kept_after_the_end(checks: Checks, client: Client, check: str, expected: object) -> None:
    if client.release < ((1, 6, 4) if check == "persistent" else (1, 5, 4)):
        pytest.skip("this client does not know of it")
    assert checks.value(check) == expected


def test_usage_is_told(checks: Checks, client: Client) -> None:
    if client.release < (1, 6, 4):
        pytest.skip("this client does not ask for it")
    expected = [True, ["GiB", "cores"], True, True, True, True, None, [True, {}]]
    assert checks.value("usage") == expected


def test_what_sandboxes_cost(checks: Checks, client: Client) -> None:
    if client.release < (1, 6, 4):
        pytest.skip("this client does not ask for it")
    alone, by_team, by_both, none, before, off_hour, too_long = checks.value("costs")
    ((tags, cost, by_resource),) = alone
    assert tags == {}
    assert cost == 0.0
    assert by_resource == {"CPU": 0.0, "Memory": 0.0}
    assert by_team == ["None", "a", "b", "runs"]
    assert by_both == [{"job": "1", "no": None}, {"job": "2", "no": None}]
    assert none == []
    assert before == []
    assert off_hour[0] == too_long[0] == "InvalidError"
    assert "full hour" in off_hour[1]
    assert "7 days" in too_long[1]
