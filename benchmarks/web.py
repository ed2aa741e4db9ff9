"""What a web request costs: Homeport's ways beside plain uvicorn and Ray Serve, on one application.

    python benchmarks/web.py                            # three alternating rounds of 5 s each
    python benchmarks/web.py --rounds 1 --seconds 2 --no-write

Needs root and ``wrk`` (``scripts/setup bench``). Each round measures every side once with 1 and with
64 connections; the median of the rounds counts. On a busy machine read ``processor_ms`` instead. Results: ``benchmarks/web.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calls import PLAIN
from uv import find_uv_bin
from web_app import APPLICATION, PACKAGES

HERE = Path(__file__).parent
CONNECTIONS = (1, 64)
START_S = 300.0
RAY = ["ray[serve]>=2.40", "protobuf<7"]  # with 7 its Serve fails: FieldDescriptor.label is gone
RAY_APPLICATION = (
    """
import sys
from ray import serve
"""
    + APPLICATION
    + """
@serve.deployment
@serve.ingress(app)
class Application:
    pass

serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Application.bind())
print("ready", flush=True)
import time
time.sleep(3600)
"""
)
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True, slots=True)
class Side:
    """One way of having the application served: where to connect, and the ``Host`` to ask."""

    name: str
    port: int
    host: str
    process: int
    """What serves it runs under this process."""

    def get(self, timeout_s: float) -> int:
        """The status of one request; 0 if there is no answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/", headers={"Host": self.host}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def wait(self, started: subprocess.Popen[bytes]) -> None:
        """Until it answers. Raises ``RuntimeError`` if it never will."""
        deadline = time.monotonic() + START_S
        while (status := self.get(60)) != 200:
            if time.monotonic() > deadline or started.poll() is not None:
                raise RuntimeError(f"{self.name} answers {status}")
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(command: list[Any], folder: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "output.log").open("ab") as log:
        started = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**PLAIN, **os.environ, **environ},
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def environment(folder: Path, packages: list[str]) -> Path:
    """A Python with these packages."""
    uv = [find_uv_bin(), "--quiet"]
    subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, folder], check=True)
    program = folder / "bin" / "python"
    subprocess.run([*uv, "pip", "install", "--python", program, *packages], check=True)
    return program


@contextlib.contextmanager
def uvicorn(folder: Path) -> Iterator[Side]:
    program = environment(folder / "venv", PACKAGES)
    (folder / "served.py").write_text(APPLICATION)
    port = free_port()
    command = [program, "-m", "uvicorn", "served:app", "--port", port, "--log-level", "warning"]
    with process([*command, "--no-access-log"], folder) as started:
        side = Side("uvicorn", port, "127.0.0.1", started.pid)
        side.wait(started)
        yield side


@contextlib.contextmanager
def ray(folder: Path) -> Iterator[Side]:
    program = environment(folder / "venv", [*RAY, PACKAGES[0]])
    (folder / "serve_app.py").write_text(RAY_APPLICATION)
    port = free_port()
    home = tempfile.mkdtemp(dir=folder)  # it leaves a token file in the home
    with process(
        [program, "serve_app.py", port], folder, HOME=home, RAY_USAGE_STATS_ENABLED="0"
    ) as started:
        side = Side("ray_serve", port, "127.0.0.1", started.pid)
        side.wait(started)
        yield side
    subprocess.run([program.parent / "ray", "stop", "--force"], capture_output=True)


@contextlib.contextmanager
def homeport(folder: Path, home: Path) -> Iterator[dict[str, Side]]:
    """A server with the application deployed in every way."""
    command = [sys.executable, "-m", "homeport.cli.main"]
    port = free_port()
    with process([*command, "up", "--home", home, "--port", port], folder) as started:
        deadline = time.monotonic() + START_S
        while b" is ready at " not in (folder / "output.log").read_bytes():
            if time.monotonic() > deadline:
                raise RuntimeError((folder / "output.log").read_text()[-2000:])
            time.sleep(0.1)
        done = subprocess.run(
            [*command, "env", "--home", home, "--json"], check=True, stdout=subprocess.PIPE
        )
        environ = {**os.environ, **json.loads(done.stdout)}
        deploy = [sys.executable, "-m", "modal", "deploy", HERE / "web_app.py"]
        subprocess.run(deploy, env=environ, check=True, stdout=subprocess.DEVNULL)
        names = {
            "homeport_function": "homeport--bench-function",
            "homeport_web_server": "homeport--bench-web-server",
            "homeport_server": "homeport--bench-web-benchserver",
            "cold": "homeport--bench-cold",
            "cold_bare": "homeport--bench-cold-bare",
        }
        sides = {
            name: Side(name, port, f"{host}.localhost", started.pid) for name, host in names.items()
        }
        for side in sides.values():
            side.wait(started)
        yield sides


def wrk(side: Side, connections: int, seconds: int) -> dict[str, float]:
    """Requests per second and latencies (ms) of ``side``."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    command += ["-H", f"Host: {side.host}", f"http://127.0.0.1:{side.port}/"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    if bad or "Socket errors" in done.stdout:
        raise RuntimeError(f"{side.name} failed requests:\n{done.stdout}")
    result = {"per_s": float(found[1])}
    for share in ("50", "99"):
        part = re.search(rf"\s{share}%\s+([\d.]+)(us|ms|s|m)", done.stdout)
        assert part is not None, done.stdout
        result[f"p{share}_ms"] = round(float(part[1]) * _UNITS[part[2]], 3)
    return result


def processor_s(root: int) -> dict[str, float]:
    """Processor time so far of everything under the process ``root``: servers, nodes, the rest."""
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    spent: dict[int, tuple[str, float]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:  # it ended
            continue
        pid = int(entry.name)
        parents[pid] = int(fields[1])
        part = "server" if b"homeport.main" in command else "container"
        part = "node" if b"homeport.node.main" in command else part
        spent[pid] = (part, (int(fields[11]) + int(fields[12])) / tick)
    total: dict[str, float] = {}
    for pid, (part, seconds) in spent.items():
        at = pid
        while at > 1 and at != root:
            at = parents.get(at, 0)
        if at == root:
            total[part] = total.get(part, 0.0) + seconds
    return total


def processor_ms(side: Side, seconds: int) -> dict[str, float]:
    """Processor time of one request of ``side`` in each part, in ms: load does not change it much."""
    before = processor_s(side.process)
    count = wrk(side, 16, seconds)["per_s"] * seconds
    after = processor_s(side.process)
    return {
        part: round((value - before.get(part, 0.0)) * 1e3 / count, 3)
        for part, value in after.items()
    }


def cold_start(side: Side, times: int) -> dict[str, float]:
    """From no container to the first answer, in ms."""
    taken: list[float] = []
    for _ in range(times):
        time.sleep(6)  # its last container is given up after two idle seconds, and ends
        began = time.perf_counter()
        assert side.get(60) == 200
        taken.append((time.perf_counter() - began) * 1e3)
    return {"p50_ms": round(statistics.median(taken), 1), "max_ms": round(max(taken), 1)}


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="homeport-bench-")))

        def sub(name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

        ours = stack.enter_context(homeport(sub("homeport"), options.home or folder / "home"))
        sides = [stack.enter_context(uvicorn(sub("uvicorn")))]
        missing: dict[str, str] = {}
        if not options.no_ray:
            try:
                sides.append(stack.enter_context(ray(sub("ray"))))
            except RuntimeError as error:
                missing["ray_serve"] = f"did not start: {error}"
        sides += [side for name, side in ours.items() if not name.startswith("cold")]
        found: dict[str, dict[str, list[dict[str, float]]]] = {}
        for _ in range(options.rounds):
            for side in sides:
                wrk(side, 4, 1)
                for count in CONNECTIONS:
                    results = found.setdefault(side.name, {}).setdefault(str(count), [])
                    results.append(wrk(side, count, options.seconds))
        requests = {
            name: {count: median(rounds) for count, rounds in by_count.items()}
            for name, by_count in found.items()
        }
        spent = {side.name: processor_ms(side, options.seconds) for side in sides}
        starts = {
            "fastapi": cold_start(ours["cold"], options.starts),
            "bare": cold_start(ours["cold_bare"], options.starts),
        }
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
        },
        "settings": {"rounds": options.rounds, "seconds": options.seconds},
        "requests": requests,
        "processor_ms": spent,
        "cold_start": starts,
        "missing": missing,
        "ratios": ratios(requests),
    }


def ratios(requests: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Requests per second of each side, as a multiple of the peers'."""
    result: dict[str, dict[str, float]] = {}
    for peer in ("uvicorn", "ray_serve"):
        for name, by_count in requests.items():
            if peer in requests and name.startswith("homeport"):
                result[f"{name} / {peer}"] = {
                    count: round(values["per_s"] / requests[peer][count]["per_s"], 2)
                    for count, values in by_count.items()
                }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--home", type=Path, help="Homeport's folder: one that has the images")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    results = json.dumps(measure(options), indent=2)
    print(results)
    if not options.no_write:
        (HERE / "web.json").write_text(results + "\n")


if __name__ == "__main__":
    main()
