"""What is made before it is asked for, without containers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import pytest

from homeport.node.runtime import ahead
from homeport.node.runtime.ahead import Ahead
from homeport.node.runtime.port import ContainerStartError


@dataclass
class Things:
    """Makes and removes what waits; some kinds cannot be made."""

    impossible: set[str] = field(default_factory=set[str])
    made: int = 0
    alive: list[str] = field(default_factory=list[str])

    async def make(self, key: str) -> str:
        if key in self.impossible:
            raise ContainerStartError(f"no {key}")
        self.made += 1
        thing = f"{key}{self.made}"
        self.alive.append(thing)
        return thing

    async def remove(self, thing: str) -> None:
        self.alive.remove(thing)

    def kinds(self) -> set[str]:
        return {thing.rstrip("0123456789") for thing in self.alive}


def run(check: Callable[[Ahead[str, str], Things], Coroutine[None, None, None]], most: int) -> None:
    async def main() -> None:
        things = Things()
        ahead = Ahead[str, str](most, things.make, things.remove, pause_s=0.0)
        await check(ahead, things)
        await ahead.close()
        assert things.alive == []
        assert ahead.take("a") is None  # nothing more is made
        await asyncio.sleep(0.01)
        assert things.alive == []

    asyncio.run(main())


def test_what_was_missed_waits_the_next_time() -> None:
    async def check(ahead: Ahead[str, str], things: Things) -> None:
        assert ahead.take("a") is None
        await ahead.prepare("a")
        assert ahead.take("a") == "a1"
        await ahead.prepare("a")
        assert ahead.pop("a") == "a2"
        assert ahead.pop("a") is None
        assert ahead.pop("never asked for") is None
        for thing in ("a1", "a2"):
            await things.remove(thing)

    run(check, 4)


def test_there_is_room_for_what_was_asked_for_last() -> None:
    async def check(ahead: Ahead[str, str], things: Things) -> None:
        for key in ("a", "b", "c", "d"):
            await ahead.prepare(key)
            await asyncio.sleep(0)
            assert len(things.alive) <= 2
        assert things.kinds() == {"c", "d"}

    run(check, 2)


def test_what_cannot_be_made_holds_nobody_up() -> None:
    async def check(ahead: Ahead[str, str], things: Things) -> None:
        things.impossible = {"b"}
        ahead.note("a", was_ready=False)
        ahead.note("b", was_ready=False)
        ahead.note("c", was_ready=False)
        await ahead.prepare("b")
        await ahead.prepare("a")
        assert things.kinds() == {"a", "c"}
        things.impossible = set()
        await ahead.prepare("b")
        assert things.kinds() == {"a", "b", "c"}

    run(check, 8)


def test_kinds_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_KEYS_MAX", 3)

    async def check(ahead: Ahead[str, str], things: Things) -> None:
        for key in ("a", "b", "c", "d", "e"):
            await ahead.prepare(key)
        await asyncio.sleep(0.01)
        assert things.kinds() == {"c", "d", "e"}

    run(check, 8)


def test_after_a_calm_time_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "CALM_S", 0.01)
    monkeypatch.setattr("homeport.node.stock.CALM_S", 0.01)

    async def check(ahead: Ahead[str, str], things: Things) -> None:
        for _ in range(4):
            ahead.note("a", was_ready=False)
        await ahead.prepare("a")
        async with asyncio.timeout(60):
            while things.made < 4 or things.alive:
                await asyncio.sleep(0.005)

    run(check, 4)
