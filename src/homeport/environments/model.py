"""What an environment is, and which names it may have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from homeport.kernel.errors import InvalidError

FIRST_NAME: Final = "main"
"""The environment an installation starts with; its default until told otherwise."""
COUNT_MAX: Final = 1500

_NAME_CHARS_MAX: Final = 64
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SUFFIX: Final = re.compile(r"([a-z0-9]+(-[a-z0-9]+)*)?")


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment. ``created_at`` is in Unix seconds."""

    environment_id: str
    name: str
    web_suffix: str
    """Ends the host names of its web endpoints; empty for none."""
    created_at: float
    is_default: bool = False
    image_builder_version: str = ""
    """Empty: as the workspace says, or what suits the client."""


def check_name(name: str) -> None:
    """Raise ``InvalidError`` if an environment may not be called ``name``."""
    if not name:
        raise InvalidError("an environment needs a name")
    if len(name) > _NAME_CHARS_MAX:
        raise InvalidError(
            f"the environment name {name[:20]!r}… has {len(name)} characters; at most "
            f"{_NAME_CHARS_MAX} are possible"
        )
    if _NAME.fullmatch(name) is None or name.startswith("en-"):
        raise InvalidError(
            f"{name!r} cannot name an environment: letters, digits, '-' and '_' are possible, "
            "beginning with a letter or digit, and not with 'en-'"
        )


def check_web_suffix(suffix: str) -> None:
    """Raise ``InvalidError`` if ``suffix`` cannot be part of a host name."""
    if len(suffix) > _NAME_CHARS_MAX or _SUFFIX.fullmatch(suffix) is None:
        raise InvalidError(
            f"{suffix[:70]!r} cannot be a web suffix: lower-case letters, digits and single '-' "
            f"between them are possible, at most {_NAME_CHARS_MAX}"
        )


def web_suffix_for(name: str) -> str:
    """The suffix an environment gets when none is given: its name, as a host name would have it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
