"""Ephemeral objects under a server that gives them three seconds: with beats, and without."""

import sys

import modal


def main(kind):
    from reporting import Report

    if kind == "dies":
        dies()
        return
    check = Report().check
    for cls in (modal.Dict, modal.Queue):
        name = cls.__name__.split(".")[-1].lower()
        check(f"{name}_beats", lambda cls=cls: beats(cls))
        check(f"{name}_gone", lambda cls=cls: gone(cls), timeout=90)


def beats(cls):
    """Alive for far longer than a silent one would be."""
    import time

    with cls.ephemeral(_heartbeat_sleep=0.5) as handle:
        for _ in range(16):
            handle.len()
            time.sleep(0.5)
        return handle.len()


def gone(cls):
    """After the block nobody speaks for it: it goes by itself."""
    from reporting import until

    with cls.ephemeral(_heartbeat_sleep=0.5) as handle:
        handle.len()

    def is_gone():
        try:
            handle.len()
        except Exception as error:
            return str(error)

    return until(is_gone, timeout=60)


def dies():
    """Ends without a farewell."""
    import os

    with modal.Dict.ephemeral() as handle:
        handle["k"] = 1
        print(handle.object_id, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
