"""docs/settings.md says what settings.py is."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from homeport.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_is_on_the_page_with_its_default() -> None:
    written = dict(
        re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`|\*\(empty\)\*) \|", PAGE.read_text(), re.M)
    )
    defaults = {
        field.name: str(
            field.default_factory()
            if field.default_factory is not msgspec.NODEFAULT
            else field.default
        )
        for field in msgspec.structs.fields(Settings)
        if field.name != "home"
    }
    assert written == defaults
