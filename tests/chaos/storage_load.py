"""Random Dict and Queue operations of the official client, whose results are all known.

``python storage_load.py FOLDER SEED``: goes on until FOLDER/stop exists, then writes what it saw
to FOLDER/seen.json.
"""

import asyncio
import json
import random
import sys
from pathlib import Path

import modal

PRODUCERS, CONSUMERS, WORKERS = 3, 3, 4


class Load:
    def __init__(self, folder, seed):
        self.folder = folder
        self.seed = seed
        self.put, self.got, self.wrong = [], [], []
        self.dict_operations = 0
        self.line = modal.Queue.from_name("load", create_if_missing=True)
        self.store = modal.Dict.from_name("load", create_if_missing=True)
        self.expected = {}

    @property
    def is_over(self):
        return (self.folder / "stop").exists()

    async def produce(self, number):
        choice = random.Random(f"{self.seed} producer {number}")
        count = 0
        while not self.is_over:
            values = [f"{number}-{count + n}" for n in range(choice.choice((1, 1, 1, 5, 30)))]
            await self.line.put_many.aio(values)
            count += len(values)
            self.put.extend(values)
            await asyncio.sleep(choice.random() / 50)

    async def consume(self, number):
        choice = random.Random(f"{self.seed} consumer {number}")
        while not self.is_over:
            try:
                count = choice.choice((1, 1, 3, 20))
                self.got.extend(await self.line.get_many.aio(count, timeout=1))
            except Exception as error:
                if type(error).__name__ != "Empty":
                    raise

    async def work(self, number):
        """Alone on its keys: each answer is known before."""
        choice = random.Random(f"{self.seed} worker {number}")
        count = 0
        while not self.is_over:
            key = f"{number}-{choice.randrange(6)}"
            has = key in self.expected
            count += 1
            value = f"{count}" * choice.choice((1, 100))
            kind = choice.choice(("put", "put new", "get", "pop", "contains"))
            if kind == "put":
                await self.store.put.aio(key, value)
                self.expected[key] = value
            elif kind == "put new":
                wrote = await self.store.put.aio(key, value, skip_if_exists=True)
                self.check(kind, key, wrote, not has)
                if not has:
                    self.expected[key] = value
            elif kind == "get":
                self.check(kind, key, await self.store.get.aio(key), self.expected.get(key))
            elif kind == "pop":
                found = await self.store.pop.aio(key, None)
                self.check(kind, key, found, self.expected.pop(key, None))
            else:
                self.check(kind, key, await self.store.contains.aio(key), has)
            self.dict_operations += 1

    def check(self, kind, key, found, expected):
        if found != expected:
            self.wrong.append([kind, key, found, expected])

    async def run(self):
        await asyncio.gather(
            *(self.produce(n) for n in range(PRODUCERS)),
            *(self.consume(n) for n in range(CONSUMERS)),
            *(self.work(n) for n in range(WORKERS)),
        )
        while rest := await self.line.get_many.aio(1000, block=False):
            self.got.extend(rest)
        kept = {key: value async for key, value in self.store.items.aio()}
        return {
            "put": self.put,
            "got": self.got,
            "wrong": self.wrong,
            "kept": kept,
            "expected": self.expected,
            "dict_operations": self.dict_operations,
        }


def main():
    folder, seed = Path(sys.argv[1]), sys.argv[2]
    seen = asyncio.run(Load(folder, seed).run())
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
