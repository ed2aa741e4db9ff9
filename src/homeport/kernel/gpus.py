"""GPUs: what a node has, what a program asks for, and which fit. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

ANY: Final = ("", "ANY")
_STAND_INS: Final = {
    "A100": ("A10040GB", "A10080GB"),
    "A10": ("A10G",),
    "A10G": ("A10",),
    "H100": ("H200",),
    "B200+": ("B200", "B300"),
}
"""What else may be given for a type: another name, or a card that does all that the type does."""
_EXACT: Final = "!"
_OR_NEWER: Final = "+"


class Gpu(msgspec.Struct, frozen=True, array_like=True):
    """One GPU of a node; ``uuid`` is the driver's, or a device name of its CDI specification."""

    uuid: str
    type: str
    """As programs ask for it: ``T4``, ``A100-80GB``."""
    name: str = ""
    """The driver's name for the model."""
    memory_mb: int = 0
    index: int = 0


class GpuWish(msgspec.Struct, frozen=True, array_like=True):
    """So many whole GPUs of one type; what ``gpu="A100:2"`` says."""

    type: str
    count: int = 1

    def __str__(self) -> str:
        name = self.type or "any"
        return name if self.count == 1 else f"{name}:{self.count}"


def simple(name: str) -> str:
    """A type's name without what people spell differently: ``RTX-4090``, ``rtx 4090``."""
    return re.sub(r"[^A-Z0-9]", "", name.upper())


def fitness(asked: str, gpu: Gpu) -> int | None:
    """0 for what was asked for, more for what stands in for it, ``None`` for what does not.

    ``H100!`` is an H100 and nothing better, ``B200+`` a B200 or newer, ``ANY`` any GPU.
    """
    wanted = asked.strip().upper()
    if wanted in ANY:
        return 0
    accepted = [simple(wanted)]
    if not wanted.endswith(_EXACT):
        accepted += _STAND_INS.get(wanted if wanted.endswith(_OR_NEWER) else simple(wanted), ())
    model = simple(gpu.name)
    short = model.removeprefix("NVIDIA")
    own = {simple(gpu.type), model, short, short.removeprefix("GEFORCE")}
    found = [place for place, name in enumerate(accepted) if name in own]
    return found[0] if found else None


def choose(wish: GpuWish, free: Iterable[Gpu]) -> tuple[Gpu, ...] | None:
    """Which of the free GPUs of one node to take; ``None`` if they are not enough.

    All are of one type. What was asked for comes before what stands in for it, and of several types
    the one with less memory: the larger ones are left to those who need them.
    """
    kinds: dict[tuple[int, str], list[Gpu]] = {}
    for gpu in free:
        rank = fitness(wish.type, gpu)
        if rank is not None:
            kinds.setdefault((rank, gpu.type), []).append(gpu)
    enough = [
        (rank, min(gpu.memory_mb for gpu in gpus), name, gpus)
        for (rank, name), gpus in kinds.items()
        if len(gpus) >= wish.count
    ]
    if not enough:
        return None
    *_, gpus = min(enough, key=lambda each: each[:3])
    return tuple(sorted(gpus, key=lambda gpu: gpu.index)[: wish.count])


def can_have(wishes: Sequence[GpuWish], gpus: Sequence[Gpu]) -> bool:
    """Whether GPUs of one node, all of them free, are enough for one of the wishes."""
    return any(choose(wish, gpus) is not None for wish in wishes)


def listed(gpus: Iterable[Gpu]) -> str:
    """``2 × T4, 1 × H100``; empty for none."""
    counts = Counter(gpu.type for gpu in gpus)
    return ", ".join(f"{count} × {name}" for name, count in sorted(counts.items()))


def wished(wishes: Sequence[GpuWish]) -> str:
    """The wishes as a person writes them: ``H100 or A100:2``."""
    return " or ".join(map(str, wishes))
