"""A round of ordinary use. ``python soak_load.py CALLS SANDBOXES RESOLVES``; prints its failures."""

import asyncio
import json
import sys
from collections import Counter

import modal

AT_ONCE = 8
APP = "soak"

app = modal.App(APP)


@app.function(min_containers=2, max_containers=2)
@modal.concurrent(max_inputs=4)
def work(x):
    return x + 1


class Load:
    def __init__(self):
        self.wrong = Counter()
        self.app = None
        self.image = modal.Image.debian_slim()

    async def calls(self, count):
        function = modal.Function.from_name(APP, "work")
        for number in range(min(count, 100)):
            self.expect(await function.remote.aio(number) == number + 1, "a call's result")
        for start in range(100, count, 5000):
            values = range(start, min(start + 5000, count))
            found = {value async for value in function.map.aio(values, order_outputs=False)}
            self.expect(found == {value + 1 for value in values}, "a map's results")

    async def sandboxes(self, count):
        for _ in range(count // 4):
            await self.sandbox()
        left = iter(range(count - count // 4))

        async def worker():
            for _ in left:
                await self.sandbox()

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    async def sandbox(self):
        try:
            sandbox = await modal.Sandbox.create.aio(app=self.app, image=self.image, timeout=600)
            process = await sandbox.exec.aio("sh", "-c", "head -c 20000 /dev/zero | tr '\\0' x")
            text = await process.stdout.read.aio()
            self.expect(text == "x" * 20000 and await process.wait.aio() == 0, "a program's output")
            await sandbox.terminate.aio()
            await sandbox.wait.aio(raise_on_termination=False)
            self.expect(sandbox.returncode == 137, "a sandbox's end")
        except Exception as error:
            self.wrong[f"a sandbox: {type(error).__name__}: {error}"[:300]] += 1

    async def resolves(self, count):
        for number in range(count):
            image = modal.Image.debian_slim().env({"NUMBER": str(number % 20)})
            await image.build.aio(self.app)

    def expect(self, is_right, what):
        if not is_right:
            self.wrong[f"{what} is wrong"] += 1

    async def run(self, calls, sandboxes, resolves):
        self.app = await modal.App.lookup.aio("soak-sandboxes", create_if_missing=True)
        await self.image.build.aio(self.app)
        await asyncio.gather(self.calls(calls), self.sandboxes(sandboxes), self.resolves(resolves))
        return dict(self.wrong)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Load().run(*map(int, sys.argv[1:])))))
