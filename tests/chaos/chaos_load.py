"""Work of every kind on a deployed app, whose results are all known.

``python chaos_load.py FOLDER SEED``: goes on until FOLDER/stop exists, then writes what it saw to
FOLDER/seen.json.
"""

import asyncio
import json
import os
import queue
import random
import signal
import sys
import time
import traceback
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import modal

app = modal.App("chaos")
volume = modal.Volume.from_name("chaos-kept", create_if_missing=True)
ticks = modal.Queue.from_name("chaos-ticks", create_if_missing=True)


@app.function(max_containers=3)
def work(x, seconds):
    time.sleep(seconds)
    return x * x


@app.function(max_containers=2)
@modal.concurrent(max_inputs=8)
async def together(x, seconds):
    await asyncio.sleep(seconds)
    return b"%d" % x * 1000


@app.function(max_containers=1, volumes={"/kept": volume})
def keep(name, text):
    Path("/kept", name).write_text(text)
    volume.commit()
    return name


@app.function(max_containers=2)
@modal.concurrent(max_inputs=8)
@modal.asgi_app()
def site():
    async def square(scope, receive, send):
        value = int(scope["query_string"])
        await asyncio.sleep(value % 7 / 20)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % value**2})

    return square


@app.function(max_containers=1)
def say(text):
    """Each run says it otherwise: what is told twice was told by one and the same."""
    print(text, uuid.uuid4().hex, flush=True)


@app.function(max_containers=1, schedule=modal.Period(seconds=3))
def tick():
    ticks.put(modal.current_function_call_id())


def edition():
    return os.environ["EDITION"]


KINDS = ("map", "spawn", "queue", "dict", "volume", "site", "sandbox", "log", "schedule", "deploy")
LINE_S = 40.0
"""A line that is not told by then was lost with its container."""
TICK_S = 120.0
SITE_S = 240.0
"""An answer may wait for a container that starts several times."""
ENDED_S = 150.0
"""A sandbox whose node died is told to have ended by then: the node may die again meanwhile."""
NO_ROOM = "are kept for what runs already"


class Load:
    def __init__(self, folder, seed):
        self.folder = folder
        self.seed = seed
        self.done = dict.fromkeys(KINDS, 0)
        self.ended = 0
        self.spawned = []
        self.under_way = {}
        self.lines = Counter()
        self.line_came = asyncio.Event()
        self.lines_lost = 0
        self.wrong = []

    @property
    def is_over(self):
        return (self.folder / "stop").exists()

    def expect(self, what, found, expected):
        if found == expected:
            self.done[what] += 1
        else:
            self.wrong.append([what, repr(found)[:500], repr(expected)[:500]])

    async def repeat(self, what, step):
        """``step`` again and again; any error that it sees is one too many."""
        choice = random.Random(f"{self.seed} {what}")
        number = 0
        while not self.is_over:
            number += 1
            self.under_way[what] = number
            try:
                await step(choice, number)
            except modal.exception.ResourceExhaustedError as error:
                # The disk is full for a while: what is refused with that sentence is not lost.
                if NO_ROOM not in str(error):
                    self.wrong.append([what, number, str(error)])
                await asyncio.sleep(1)
            except Exception:
                self.wrong.append([what, number, traceback.format_exc()[-600:]])
                await asyncio.sleep(1)
        del self.under_way[what]

    def tell(self):
        """What is not over, and where it waits."""
        print("under way:", self.under_way, flush=True)
        for task in asyncio.all_tasks():
            task.print_stack(file=sys.stdout)
        sys.stdout.flush()

    async def maps(self, choice, number):
        values = [choice.randrange(10**6) for _ in range(choice.choice((1, 5, 40)))]
        seconds = [choice.choice((0, 0.02, 0.2)) for _ in values]
        found = [value async for value in self.work.map.aio(values, seconds)]
        self.expect("map", found, [value * value for value in values])

    async def spawns(self, choice, number):
        values = [choice.randrange(10**6) for _ in range(choice.choice((1, 3, 10)))]
        calls = [await self.together.spawn.aio(value, choice.random()) for value in values]
        self.spawned += [call.object_id for call in calls]
        await asyncio.sleep(choice.random() * 3)
        for call, value in zip(calls, values, strict=True):
            again = modal.FunctionCall.from_id(call.object_id)
            self.expect("spawn", await again.get.aio(), b"%d" % value * 1000)

    async def queues(self, choice, number):
        values = [f"{number}-{n}" for n in range(choice.choice((1, 4, 50)))]
        await self.line.put_many.aio(values)
        found = []
        while len(found) < len(values):
            found += await self.line.get_many.aio(choice.choice((1, 10, 100)), timeout=60)
        self.expect("queue", found, values)
        await asyncio.sleep(choice.random() / 5)

    async def dicts(self, choice, number):
        key = f"key-{choice.randrange(5)}"
        await self.kept.put.aio(key, number)
        self.expect("dict", await self.kept.get.aio(key), number)
        await asyncio.sleep(choice.random() / 5)

    async def volumes(self, choice, number):
        name, text = f"file-{choice.randrange(20)}", f"{number} " * choice.choice((1, 2000))
        await self.keep.remote.aio(name, text)
        found = b"".join([part async for part in volume.read_file.aio(name)])
        self.expect("volume", found.decode(), text)
        await asyncio.sleep(choice.random())

    async def sites(self, choice, number):
        value = choice.randrange(10**6)
        answer = await self._ask(value)
        self.expect("site", answer, str(value**2))
        await asyncio.sleep(choice.random() / 5)

    async def _ask(self, value):
        """As an HTTP client does that tries again when there is no server, or it says 'later'."""
        while True:
            try:
                async with self.web.get(f"{self.address}/?{value}", headers=self.headers) as answer:
                    if answer.status != 503:
                        return await answer.text()
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                pass
            await asyncio.sleep(0.2)

    async def sandboxes(self, choice, number):
        sandbox = await modal.Sandbox.create.aio("sleep", "100", app=self.lookup, timeout=120)
        try:
            for turn in range(choice.choice((1, 4, 20))):
                text = f"{number} {turn}"
                process = await sandbox.exec.aio("sh", "-c", f"sleep 0.1; echo {text}")
                said = await process.stdout.read.aio()
                code = await process.wait.aio()
                if code or said != f"{text}\n":
                    raise RuntimeError(f"{code}: {said!r}")
                self.done["sandbox"] += 1
        except Exception as error:
            # A sandbox does not outlive its node; then, and only then, it may end early, and says so
            # when server and node have found each other again.
            try:
                async with asyncio.timeout(ENDED_S):
                    await sandbox.wait.aio(raise_on_termination=False)
            except TimeoutError:
                raise error from None
            if not sandbox.returncode:  # it lived on to its own end
                raise error from None
            self.ended += 1
            print("ended", sandbox.object_id, sandbox.returncode, repr(error), flush=True)
        else:
            await sandbox.terminate.aio()

    async def logs(self, choice, number):
        """A line comes through the stream that is read all the time, unless its container died."""
        text = f"line-{number}-"
        await self.say.remote.aio(text)
        try:
            async with asyncio.timeout(LINE_S):
                while not any(line.startswith(text) for line in self.lines):
                    self.line_came.clear()
                    await self.line_came.wait()
            self.done["log"] += 1
        except TimeoutError:
            self.lines_lost += 1
            print("lost", text, flush=True)
        await asyncio.sleep(choice.random())

    async def follow(self, ready):
        """Read the app's log as the command does, until cancelled; it must not end before."""
        command = [sys.executable, "-m", "modal", "app", "logs", "chaos", "-f"]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        rest = []
        try:
            ready.set()
            while line := await process.stdout.readline():
                text = line.decode().strip()
                if text.startswith("line-"):
                    self.lines[text] += 1
                    self.line_came.set()
                else:
                    rest = [*rest[-20:], text]
            self.wrong.append(["log", "the stream ended", rest])
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()

    async def schedules(self, choice, number):
        """Clocks that are set back make it wait: that it goes on is seen at the end."""
        try:
            await ticks.get.aio(timeout=5)
            self.done["schedule"] += 1
        except queue.Empty:
            pass

    async def deploys(self, choice, number):
        """What is deployed last is what answers; the one before does until it is ready."""
        new = modal.App("chaos-editions")
        secret = modal.Secret.from_dict({"EDITION": str(number)})
        new.function(name="edition", secrets=[secret])(edition)
        await new.deploy.aio(name="chaos-editions")
        function = modal.Function.from_name("chaos-editions", "edition")
        # Without a bound of its own: containers do not come up while their node dies again and
        # again. When that is over, the load's end is waited for.
        while int(answer := await function.remote.aio()) < number:
            await asyncio.sleep(0.2)
        self.expect("deploy", answer, str(number))
        await asyncio.sleep(3 + 5 * choice.random())

    async def at_the_end(self):
        """What shows only when nothing goes wrong any more."""
        await ticks.clear.aio()
        await ticks.get.aio(timeout=TICK_S)
        twice = [line for line, count in self.lines.items() if count > 1]
        self.expect("log", twice, [])
        found = await self._history()
        count = Counter(row["function_call_id"] for row in found)
        self.expect("spawn", sorted(set(self.spawned) - set(count)), [])
        self.expect("spawn", [call for call in count if count[call] > 1], [])
        self.expect("spawn", {row["status"] for row in found}, {"success"})

    async def _history(self):
        """All calls of ``together``; the server's clock was not always right."""
        now = datetime.now(UTC).replace(microsecond=0)
        span = [(now + timedelta(hours=hours)).isoformat() for hours in (-3, 1)]
        command = [sys.executable, "-m", "modal", "function", "calls", "chaos/together", "--json"]
        process = await asyncio.create_subprocess_exec(
            *command, "--since", span[0], "--until", span[1], stdout=asyncio.subprocess.PIPE
        )
        return json.loads((await process.communicate())[0])

    async def run(self):
        await app.deploy.aio(name="chaos")
        self.lookup = await modal.App.lookup.aio("chaos")
        self.work = modal.Function.from_name("chaos", "work")
        self.together = modal.Function.from_name("chaos", "together")
        self.keep = modal.Function.from_name("chaos", "keep")
        self.say = modal.Function.from_name("chaos", "say")
        url = await modal.Function.from_name("chaos", "site").get_web_url.aio()
        host, _, port = url.removeprefix("http://").partition(":")
        # Not every resolver knows that names under localhost mean this machine.
        self.address, self.headers = f"http://127.0.0.1:{port}", {"Host": host}
        self.line = modal.Queue.from_name("chaos", create_if_missing=True)
        self.kept = modal.Dict.from_name("chaos", create_if_missing=True)
        self.expect("map", await self.work.remote.aio(3, 0), 9)
        following = asyncio.Event()
        follower = asyncio.create_task(self.follow(following))
        await following.wait()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.tell)
        (self.folder / "begun").touch()
        steps = {"map": self.maps, "map 2": self.maps, "spawn": self.spawns}
        steps |= {"queue": self.queues, "dict": self.dicts, "volume": self.volumes}
        steps |= {"site": self.sites, "sandbox": self.sandboxes, "sandbox 2": self.sandboxes}
        steps |= {"log": self.logs, "schedule": self.schedules, "deploy": self.deploys}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(SITE_S)) as self.web:
            await asyncio.gather(*(self.repeat(what, step) for what, step in steps.items()))
        await self.at_the_end()
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        return {
            "done": self.done,
            "ended": self.ended,
            "lines_lost": self.lines_lost,
            "wrong": self.wrong,
        }


def main():
    folder, seed = Path(sys.argv[1]), sys.argv[2]
    seen = asyncio.run(Load(folder, seed).run())
    (folder / "seen.json").write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
