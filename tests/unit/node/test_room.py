"""Layers are deleted oldest first, and never while something uses them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from homeport.node.layers import LayerMetadata, LayerStore
from homeport.node.room import LayerRoom

from .builder_harness import Workshop


async def fill(store: LayerStore, *keys: str, size: int = 100) -> None:
    """Layers of ``size`` bytes, used in this order."""
    for age, key in enumerate(keys):
        work = store.new_work()
        (work / "upper").mkdir()
        (work / "upper/file").write_bytes(b"x" * size)
        metadata = LayerMetadata(parent="", instruction="", created_at=0.0)
        await store.commit(work / "upper", key, metadata)
        await store.discard(work)
        os.utime(store.root / f"{key}.json", (1000 + age, 1000 + age))


def run(path: Path, check: Callable[[LayerStore], Awaitable[None]]) -> None:
    async def main() -> None:
        await check(LayerStore(path / "layers"))

    asyncio.run(main())


def test_the_least_recently_used_go_first_and_none_in_use(tmp_path: Path) -> None:
    async def check(store: LayerStore) -> None:
        await fill(store, "a", "b", "c", "d")
        dropped: list[str] = []
        room = LayerRoom(store, 300, dropped.extend)
        store.pin(["a"])  # in use, and used last
        room.look()
        await room.stop()
        assert dropped == ["b", "c"]  # down to nine tenths of the bound
        assert store.keys() == ["a", "d"]
        assert not store.path("b").exists()
        store.unpin(["a"])
        await room.stop()
        assert dropped == ["b", "c"]

    run(tmp_path, check)


def test_layers_are_dropped_when_told_to_but_for_those_in_use(tmp_path: Path) -> None:
    async def check(store: LayerStore) -> None:
        await fill(store, "a", "b", "c")
        dropped: list[str] = []
        room = LayerRoom(store, 10_000, dropped.extend)
        store.pin(["a", "a"])
        store.unpin(["a"])
        await room.drop(["a", "b", "none"])
        assert dropped == ["b"]
        store.unpin(["a"])
        await room.drop(["c"], others=True)
        assert dropped == ["b", "a"]
        assert room.keys() == ["c"]

    run(tmp_path, check)


def test_a_build_keeps_what_it_stands_on(tmp_path: Path) -> None:
    async def main() -> None:
        shop = Workshop(tmp_path)
        await shop.base()
        for path in shop.left_over():
            path.rmdir()
        dropped: list[str] = []
        LayerRoom(shop.layers, 0, dropped.extend)  # nothing at all may stay

        async def behave(container: object) -> int:
            assert shop.layers.surplus(0) == []  # the base and what was built so far
            return 0

        shop.runtime.behave = behave
        outcome = await shop.build("FROM base\nCOPY <<E /e\nE\nRUN one\nRUN two\n")
        await asyncio.sleep(0)
        assert len(outcome.layers) == 4
        assert set(shop.layers.surplus(0)) <= set(outcome.layers)

    asyncio.run(main())
