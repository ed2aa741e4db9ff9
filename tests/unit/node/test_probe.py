"""What doctor is told about a machine."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from homeport.node import probe
from homeport.node.cgroups import Layout
from homeport.node.leaks import find_leaks


@pytest.mark.parametrize(
    ("layout", "state"),
    [
        (Layout(v1={name: Path("/x") for name in ("cpu", "memory", "pids")}), "ok"),
        (Layout(unified=Path("/x"), v2=frozenset({"cpu", "memory", "pids", "io"})), "ok"),
        (Layout(unified=Path("/x"), v2=frozenset({"cpu", "pids"})), "failed"),
        (Layout(), "failed"),
    ],
)
def test_limits_need_every_controller(layout: Layout, state: str) -> None:
    check = probe.control_groups(layout)
    assert check.state == state
    assert bool(check.fix) == (state == "failed")


def test_the_missing_controller_is_named() -> None:
    check = probe.control_groups(Layout(unified=Path("/x"), v2=frozenset({"cpu", "pids"})))
    assert "without memory" in check.found


def test_room_is_looked_for_where_the_home_will_be(tmp_path: Path) -> None:
    assert str(tmp_path) in probe.disk(tmp_path / "not" / "yet").found


@pytest.mark.root
def test_a_real_container_is_tried_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    check = asyncio.run(probe.container(home, ""))
    assert check.state == "ok", check.found
    assert find_leaks(home) == []
    assert not home.exists()


@pytest.mark.root
def test_a_runtime_that_is_not_there_fails_with_its_sentence(tmp_path: Path) -> None:
    check = asyncio.run(probe.container(tmp_path, "lxc"))
    assert check.state == "failed"
    assert "there is no runtime 'lxc'" in check.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_a_chosen_runtime_that_is_not_installed_fails_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = asyncio.run(probe.container(tmp_path / "home", "crun"))
    assert check.state == "failed"
    assert "apt-get install crun" in check.found
    assert "default_runtime" in check.fix


@pytest.mark.parametrize("known", [True, False])
def test_names_that_programs_do_not_find_are_a_warning_with_a_fix(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup(*_: object, **__: object) -> list[object]:
        if known:
            return []
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    check = asyncio.run(probe.names())
    assert (check.state, "libnss-myhostname" in check.fix) == (
        ("ok", False) if known else ("warning", True)
    )


def test_gvisor_is_for_sandboxes(tmp_path: Path) -> None:
    check = asyncio.run(probe.container(tmp_path, "runsc"))
    assert check.state == "failed"
    assert "set sandbox_runtime" in check.found
