"""Map a function over many inputs: count primes in a range, one slice per input.

Each slice is one input. They are spread over containers, results stream back as they are ready, and
an input that fails does not stop the others.

    homeport run examples/batch_map.py --limit 2000000 --slices 40
"""

import time

import modal

app = modal.App("batch-map")
image = modal.Image.debian_slim(python_version="3.11").pip_install("numpy==2.2.6")


@app.function(image=image, max_containers=4, retries=2)
def count_primes(start: int, stop: int) -> int:
    """How many primes there are from ``start`` up to but without ``stop``."""
    import numpy as np

    sieve = np.ones(stop - start, dtype=bool)
    for small in range(2, int(stop**0.5) + 1):
        first = max(small * small, -(-start // small) * small)
        sieve[first - start :: small] = False
    if start < 2:
        sieve[: 2 - start] = False
    return int(sieve.sum())


@app.local_entrypoint()
def main(limit: int = 2_000_000, slices: int = 40):
    width = -(-limit // slices)
    pieces = [(n, min(n + width, limit)) for n in range(0, limit, width)]
    began = time.monotonic()
    total = 0
    for done, found in enumerate(count_primes.starmap(pieces, order_outputs=False), 1):
        total += found
        print(f"\r{done}/{len(pieces)} slices, {total:,} primes so far", end="", flush=True)
    print(f"\nThere are {total:,} primes below {limit:,} ({time.monotonic() - began:.1f} s).")
