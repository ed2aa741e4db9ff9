from __future__ import annotations

import pytest

from homeport.kernel.gpus import Gpu, GpuWish, choose, fitness, listed, wished


def card(kind: str, index: int = 0, memory_mb: int = 16_000, name: str = "") -> Gpu:
    return Gpu(f"GPU-{index}", kind, name, memory_mb, index)


@pytest.mark.parametrize(
    ("asked", "kind", "rank"),
    [
        ("T4", "T4", 0),
        ("t4", "T4", 0),
        ("", "T4", 0),
        ("ANY", "H100", 0),
        ("L4", "L40S", None),
        ("A100-80GB", "A100-80GB", 0),
        ("A100-80GB", "A100-40GB", None),
        ("A100", "A100-40GB", 1),
        ("A100", "A100-80GB", 2),
        ("A10", "A10G", 1),
        ("A10G", "A10", 1),
        ("H100", "H200", 1),
        ("H100!", "H200", None),
        ("H100!", "H100", 0),
        ("B200+", "B200", 0),
        ("B200+", "B300", 2),
        ("B200", "B300", None),
        ("RTX-PRO-6000", "RTX-PRO-6000", 0),
    ],
)
def test_what_is_given_for_a_type(asked: str, kind: str, rank: int | None) -> None:
    assert fitness(asked, card(kind)) == rank


@pytest.mark.parametrize(
    "asked", ["RTX-4090", "rtx4090", "GeForce RTX 4090", "NVIDIA GeForce RTX 4090"]
)
def test_cards_without_a_type_are_asked_for_by_their_names(asked: str) -> None:
    assert fitness(asked, card("RTX-4090", name="NVIDIA GeForce RTX 4090")) == 0
    assert fitness(asked, card("RTX-4080", name="NVIDIA GeForce RTX 4080")) is None


def test_what_was_asked_for_comes_before_what_stands_in() -> None:
    cards = [card("H200", 0, 140_000), card("H100", 1, 80_000)]
    assert choose(GpuWish("H100"), cards) == (cards[1],)
    assert choose(GpuWish("H100"), cards[:1]) == (cards[0],)


def test_any_is_the_smallest_and_all_of_one_type() -> None:
    cards = [card("H100", 0, 80_000), card("T4", 1), card("H100", 2, 80_000)]
    assert choose(GpuWish("ANY"), cards) == (cards[1],)
    assert choose(GpuWish("ANY", 2), cards) == (cards[0], cards[2])
    assert choose(GpuWish("ANY", 3), cards) is None


def test_sentences() -> None:
    assert listed([card("T4"), card("H100"), card("T4")]) == "1 × H100, 2 × T4"
    assert wished([GpuWish("H100", 2), GpuWish("", 1)]) == "H100:2 or any"
