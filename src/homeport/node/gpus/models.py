"""The driver's names for GPUs, as the types that programs ask for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from homeport.kernel.gpus import simple

_TYPES: Final = frozenset(
    {
        "T4", "L4", "L40", "L40S", "A10", "A10G", "A30", "A40", "V100", "P4", "P40", "P100",
        "H100", "H200", "B200", "B300", "GH200", "GB200", "GB300",
    }
)  # fmt: skip
_BRANDS: Final = frozenset({"NVIDIA", "GEFORCE", "TESLA", "QUADRO", "AMD", "RADEON"})
_A100_LARGE_MB: Final = 60_000
"""Between the two sizes of an A100, as the driver counts them."""


def type_of(name: str, memory_mb: int) -> str:
    """The type of a model: ``NVIDIA A100-SXM4-80GB`` is an ``A100-80GB``, ``Tesla T4`` a ``T4``.

    A model without a known type has its own name, without the brand: ``RTX-4090``.
    """
    words = [word for word in re.split(r"[^A-Z0-9]+", name.upper()) if word]
    if "A100" in words:
        return "A100-80GB" if memory_mb > _A100_LARGE_MB else "A100-40GB"
    if words[-1:] != [] and {"RTX", "PRO", "6000"} <= set(words):
        return "RTX-PRO-6000"
    for word in words:
        if word in _TYPES:
            return word
    return "-".join(word for word in words if word not in _BRANDS)


def override(overrides: Mapping[str, str], *names: str) -> str:
    """The type that the setting ``gpu_types`` gives to a GPU with these names; empty if none.

    The first of the names that has one counts.
    """
    known = {simple(key): value.strip().upper() for key, value in overrides.items()}
    for name in names:
        if name and (found := known.get(simple(name))):
            return found
    return ""
