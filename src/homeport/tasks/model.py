"""What is recorded of a task, for look-ups and for finding it again after a restart."""

from __future__ import annotations

import msgspec


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One container's life. Times are Unix seconds, 0 = not yet."""

    task_id: str
    function_id: str
    app_id: str
    node_id: str
    enqueued_at: float
    started_at: float = 0.0
    finished_at: float = 0.0
    edition: str = ""
    """Which definition of its function it runs, and since which renewal of its app."""
    failed: bool = False
    """It did not come up, or ended by itself with an error."""

    @property
    def is_alive(self) -> bool:
        return not self.finished_at
