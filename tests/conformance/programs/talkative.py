"""Lines that are told while the server is killed under them."""

import time

import modal

app = modal.App("conformance-talkative")


@app.function()
def talk(lines):
    for number in range(lines):
        print("line", number, flush=True)
        time.sleep(0.01)


@app.local_entrypoint()
def main(lines: int):
    talk.remote(lines)
