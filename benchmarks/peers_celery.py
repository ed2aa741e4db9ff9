"""The no-op task for Celery; its worker imports this module."""

from __future__ import annotations

import os

from celery import Celery

URL = os.environ["BENCH_REDIS_URL"]
app = Celery("peers", broker=URL, backend=URL)
app.conf.update(worker_prefetch_multiplier=4, result_expires=600)


@app.task
def noop(x: object = None) -> object:
    return x
