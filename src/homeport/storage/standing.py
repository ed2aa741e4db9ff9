"""What ``homeport.storage.standby`` tells who started it. Loads nothing of a database."""

from __future__ import annotations

from typing import Final

FREE: Final = 0
"""It ends with that if no server had the database."""
LEFT: Final = 10
"""It ends with that if one had it and gave it up."""
NEWS: Final = "homeport: "
"""How its lines begin that say what it waits for; another one is the error with which it ends."""
