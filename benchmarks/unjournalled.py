"""A server that keeps no journal of calls: for the benchmark of what the journal costs.

``python benchmarks/unjournalled.py --home HOME --port PORT`` is ``homeport.main serve`` but for that.
"""

from __future__ import annotations

import asyncio
from typing import Any

from homeport.calls.store import CallStore
from homeport.main import main


def _nothing(*_: Any) -> asyncio.Future[None]:
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


if __name__ == "__main__":
    for name in ("add_call", "add_inputs", "add_outputs", "update_call", "delete_calls"):
        setattr(CallStore, name, _nothing)
    main()
