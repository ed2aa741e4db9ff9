"""Containers that come up and then end by themselves, with nothing to do."""

import os
import threading
import time

import modal

app = modal.App("conformance-crash-loop")

if not modal.is_local():
    threading.Timer(0.5, os._exit, (3,)).start()


@app.function(min_containers=1)
def never():
    pass


@app.local_entrypoint()
def main():
    time.sleep(300)
