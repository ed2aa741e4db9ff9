"""How many files and connections this process may have open."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

WANTED: Final = 65_536
"""Enough for the thousands of containers of a node, each with some pipes and processes to watch."""


def raise_limit(wanted: int = WANTED) -> int:
    """Allow this process ``wanted`` descriptors if the system lets it; what it may have now.

    Login sessions and services get 1024 by default, with the right to more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
