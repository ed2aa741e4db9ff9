"""What was called and asked of servers, and how it went: told by the newest client's CLI.

The app is deployed and called with each client; only the newest one asks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from tests.conformance.harness.clients import VERSIONS, Client, install
from tests.conformance.harness.programs import PROGRAMS, Checks, Completed, Runner

CALLS = 24
"""Of ``double``: one by itself, a map of twenty, three spawned."""


@pytest.fixture(scope="module")
def newest() -> Client:
    """The client whose commands ask."""
    return install(VERSIONS[-1])


@pytest.fixture(scope="module")
def name(client: Client, runner: Runner) -> Iterator[str]:
    """The app, deployed with this client."""
    name = f"history-{client.version.replace('.', '-')}"
    runner.cli(client, "deploy", "--name", name, str(PROGRAMS / "history_app.py")).succeeded()
    yield name
    runner.cli(client, "app", "stop", name, *client.yes)


@pytest.fixture(scope="module")
def called(runner: Runner, client: Client, name: str) -> Checks:
    return runner.checks(client, "history_calls", name, script=True)


class Asked:
    """The newest client's commands about the app."""

    def __init__(self, ask: Callable[[Sequence[str]], Completed], name: str) -> None:
        self._ask = ask
        self.name = name

    def run(self, *arguments: str) -> Completed:
        return self._ask(arguments)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").succeeded().stdout)

    def calls(self, tag: str, *options: str) -> list[dict[str, Any]]:
        return self.json("function", "calls", f"{self.name}/{tag}", *options)

    def stats(self, tag: str, *options: str) -> dict[str, Any]:
        return self.json("function", "stats", f"{self.name}/{tag}", *options)


@pytest.fixture(scope="module")
def asked(runner: Runner, newest: Client, name: str, called: Checks) -> Iterator[Asked]:
    with runner.answering(newest, "history_asks.py") as ask:
        yield Asked(ask, name)


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def whole(called: Checks) -> tuple[str, str, str, str]:
    """Options for all that was called."""
    began, ended = called.value("began"), called.value("ended")
    return "--since", moment(began), "--until", moment(ended)


def test_all_was_called(called: Checks) -> None:
    assert called.value("once") == 2
    assert called.value("map") == [2 * number for number in range(20)]
    assert called.value("greet") == ["Hello, a", "Hello, b", "Hello, b"]
    assert called.error("fail")["type"] == "ValueError"
    assert called.error("linger")["type"] == "FunctionTimeoutError"


def test_last_calls_newest_first(asked: Asked) -> None:
    assert len(asked.calls("double")) == 10
    assert len(asked.calls("double", "--tail", "3")) == 3
    rows = asked.calls("double", "--tail", "1000")
    assert len(rows) == CALLS
    times = [row["enqueued_at"] for row in rows]
    assert times == sorted(times, reverse=True)
    assert {row["status"] for row in rows} == {"success"}
    assert len({row["container_id"] for row in rows}) == 1
    assert re.fullmatch(r"ta-[0-9A-Z]{26}", rows[0]["container_id"])
    assert sorted(Counter(row["function_call_id"] for row in rows).values()) == [1, 1, 1, 1, 20]
    assert all(row["execution_time_seconds"] >= 0 for row in rows)
    assert all(row["started_at"] >= row["enqueued_at"] for row in rows)
    assert rows[-1]["startup_time_seconds"] > 0  # it waited for the container
    assert rows[0]["startup_time_seconds"] is None
    assert {row["service_method_name"] for row in rows} == {None}


def test_calls_of_a_time_oldest_first(asked: Asked, called: Checks) -> None:
    rows = asked.calls("double", *whole(called))
    assert len(rows) == CALLS
    times = [row["enqueued_at"] for row in rows]
    assert times == sorted(times)
    began = called.value("began")
    before = "--since", moment(began - 3600), "--until", moment(began)
    assert asked.calls("double", *before) == []


def test_table_of_calls(asked: Asked, called: Checks) -> None:
    text = asked.run(
        "function", "calls", f"{asked.name}/double", "--show-function-call-id", *whole(called)
    ).succeeded()
    assert f"Displaying {CALLS} rows" in text.stdout
    assert text.stdout.count("Success") == CALLS


@pytest.mark.parametrize(("tag", "status"), [("fail", "failure"), ("linger", "timeout")])
def test_other_ends(asked: Asked, tag: str, status: str) -> None:
    (row,) = asked.calls(tag)
    assert row["status"] == status


def test_what_has_not_ended(asked: Asked, called: Checks) -> None:
    waiting, running = asked.calls("sleep")
    assert (waiting["status"], running["status"]) == ("pending", "running")
    assert [running["function_call_id"], waiting["function_call_id"]] == called.value("sleeping")
    assert running["container_id"].startswith("ta-")
    assert running["execution_time_seconds"] is None
    assert (waiting["container_id"], waiting["started_at"]) == (None, None)
    assert len(asked.calls("sleep", *whole(called))) == 2
    assert asked.stats("sleep")["input_running_at_end_count"] == 1


def test_calls_of_a_class(asked: Asked) -> None:
    assert asked.calls("Greeter.*") == []  # none without parameters
    rows = asked.calls("Greeter.*", "--all-variants")
    assert {row["service_method_name"] for row in rows} == {"hello"}
    assert len(rows) == 3


def test_variants(asked: Asked) -> None:
    variants = asked.json("function", "variants", f"{asked.name}/Greeter.*")
    assert sorted(each["parameters"]["name"] for each in variants) == ["a", "b"]
    assert asked.json("function", "variants", f"{asked.name}/Greeter.*", "--limit", "0") == (
        sorted(variants, key=lambda each: each["parameters"]["name"], reverse=True)
    )
    assert len(asked.json("function", "variants", f"{asked.name}/Greeter.*", "--limit", "1")) == 1
    assert asked.json("function", "variants", variants[0]["function_id"]) == variants
    text = asked.run("function", "variants", f"{asked.name}/Greeter.*").succeeded().stdout
    assert "2 busiest" in text
    assert "name='a'" in text
    assert asked.json("function", "variants", f"{asked.name}/double") == []
    (of_b,) = (each["function_id"] for each in variants if each["parameters"]["name"] == "b")
    assert len(asked.json("function", "calls", of_b)) == 2
    assert len(asked.json("function", "calls", of_b, "--all-variants")) == 3


def test_statistics_of_a_function(asked: Asked) -> None:
    found = asked.stats("double")
    assert found["input_success_count"] == CALLS
    assert found["input_failure_count"] == found["input_timeout_count"] == 0
    assert (found["container_total_count"], found["container_started_count"]) == (1, 1)
    assert found["container_error_count"] == found["container_creating_at_end_count"] == 0
    assert set(found["input_percentile_stats"]) == {"Execution time (s)", "End-to-end latency (s)"}
    latency = found["input_percentile_stats"]["End-to-end latency (s)"]["percentiles"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] < 600
    startup = found["container_percentile_stats"]["Startup time (s)"]["percentiles"]
    assert set(startup) == {"p50", "p90", "p99"}
    assert asked.stats("fail")["input_failure_count"] == 1
    assert asked.stats("linger")["input_timeout_count"] == 1


def test_statistics_of_a_class(asked: Asked) -> None:
    found = asked.stats("Greeter.*", "--all-variants")
    assert (found["input_success_count"], found["variant_count"]) == (3, 2)
    assert found["container_total_count"] == 2
    assert asked.stats("Greeter.*")["input_success_count"] == 0


def test_statistics_of_a_container(asked: Asked) -> None:
    container = asked.calls("double")[0]["container_id"]
    found = asked.stats("double", "--container", container)
    assert (found["input_success_count"], found["container_total_count"]) == (CALLS, 1)
    other = asked.run("function", "stats", f"{asked.name}/fail", "--container", container)
    assert other.returncode != 0
    assert container in other.output


def test_statistics_of_a_time(asked: Asked, called: Checks) -> None:
    began = called.value("began")
    before = "--since", moment(began - 3600), "--until", moment(began)
    found = asked.stats("double", *before)
    assert (found["input_success_count"], found["container_total_count"]) == (0, 0)
    text = asked.run("function", "stats", f"{asked.name}/double", "--since", "8d")
    assert text.returncode != 0
    assert "7 days" in text.output


def test_text_of_statistics(asked: Asked) -> None:
    text = asked.run("function", "stats", f"{asked.name}/double").succeeded().stdout
    assert f"{CALLS} succeeded (100.0%)" in text
    assert "Startup time (s)" in text


def test_statistics_of_an_app(asked: Asked) -> None:
    found = asked.json("app", "stats", asked.name)
    calls = {tag: each["counts"]["calls"] for tag, each in found["functions"]["by_name"].items()}
    assert calls["double"] == {"total": CALLS, "succeeded": CALLS, "failed": 0}
    assert calls["fail"] == calls["linger"] == {"total": 1, "succeeded": 0, "failed": 1}
    assert calls["Greeter.*"]["total"] == 3
    assert found["functions"]["total"]["calls"]["total"] >= CALLS + 5
    assert found["functions"]["by_name"]["double"]["counts"]["containers"]["total"] == 1
    assert (found["deployment_count"], found["lifecycle"]["state"]) == (1, "deployed")
    text = asked.run("app", "stats", asked.name).succeeded().stdout
    assert "double" in text
    long = asked.run("app", "stats", asked.name, "--since", "8d")
    assert "7 days" in long.output


def series(found: dict[str, Any], name: str) -> list[float | None]:
    (points,) = (each["points"] for each in found["series"] if each["name"] == name)
    return [point["value"] for point in points]


def test_metrics_of_a_function(asked: Asked, called: Checks) -> None:
    began = called.value("began")
    span = "--since", moment(began - 600), "--until", moment(began + 3000)
    found = asked.json("function", "metrics", f"{asked.name}/double", *span)
    assert found["bucket_secs"] == 60
    counts = series(found, "successful_calls_count")
    assert (len(counts), sum(filter(None, counts))) == (60, CALLS)
    times = series(found, "latency_p90")
    assert [value is None for value in times] == [not count for count in counts]
    assert 1 in series(found, "present_containers_count")
    cores, memory = (
        max(filter(None, series(found, name))) for name in ("cpu_cores_max", "memory_max")
    )
    assert 0 < cores < 100
    assert 0.001 < memory < 10  # GiB
    hour = "--since", moment(began), "--until", moment(began + 3600)  # both are rounded down
    some = asked.json(
        "function",
        "metrics",
        f"{asked.name}/Greeter.*",
        "--all-variants",
        *hour,
        "--group",
        "calls",
        "--bucket-size",
        "1h",
    )
    assert sum(filter(None, series(some, "successful_calls_count"))) == 3
    schema = asked.run("function", "metrics", f"{asked.name}/double").succeeded().stdout
    assert "calls, containers" in schema
    unmeasured = asked.run("function", "metrics", f"{asked.name}/double", "--group", "gpu", "--csv")
    assert unmeasured.returncode != 0
    assert "does not measure the metrics group 'gpu'" in unmeasured.output


def test_names_are_suggested(asked: Asked) -> None:
    mistaken = asked.run("function", "stats", f"{asked.name}/duoble")
    assert mistaken.returncode != 0
    assert f"{asked.name}/double" in mistaken.output
    dotted = asked.run("function", "stats", f"{asked.name}.double")
    assert f"{asked.name}/double" in dotted.output
    app = asked.run("app", "stats", asked.name.replace("history", "histroy"))
    assert app.returncode != 0
    assert asked.name in app.output


@pytest.mark.since("1.6.4")
def test_methods(called: Checks) -> None:
    found = called.value("function_stats")
    assert found[:3] == [CALLS, 0, 1]
    assert found[3] == ["End-to-end latency (s)", "Execution time (s)"]
    assert found[4] == [50.0, 90.0, 99.0]
    assert called.error("long_range")["type"] == "InvalidError"
    assert called.error("no_container")["type"] == "NotFoundError"
    app = called.value("app_stats")
    assert (app["calls"]["double"], app["calls"]["fail"]) == ([CALLS, 0], [1, 1])
    assert (app["servers"], app["deployments"], app["state"]) == (["Site"], 1, "deployed")
    assert app["sandboxes"] == [0, 0]
    assert called.value("sandbox_counts") == [2, 1, 1]


@pytest.mark.since("1.6.4")
def test_containers_are_told_of_their_own_app_only(called: Checks) -> None:
    own, other = called.value("look_around")
    assert own >= CALLS + 5
    assert "PermissionDenied" in other


# ── servers ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def site(client: Client, newest: Client, runner: Runner, name: str) -> str:
    """The server, when it answered four requests."""
    if client.release < (1, 5, 0):
        pytest.skip("the client has no servers that this platform runs")
    code = "import modal, sys\nprint('URL', modal.Server.from_name(sys.argv[1], 'Site').get_url())"
    done = runner.python(newest, "-c", code, name).succeeded()
    url = httpx.URL(done.stdout.partition("URL ")[2].strip())
    base, host = f"http://127.0.0.1:{url.port}", {"host": url.netloc.decode()}
    for path in ("/200", "/204?secret=1", "/404", "/500"):
        status = httpx.get(base + path, headers=host, timeout=60).status_code
        assert status == int(path[1:4])
    return f"{name}/Site"


def test_requests_of_a_server(asked: Asked, site: str) -> None:
    rows = asked.json("server", "requests", site)
    assert [(row["route"], row["status"]) for row in rows] == [
        ("/500", 500),
        ("/404", 404),
        ("/204", 204),
        ("/200", 200),
    ]
    assert len({row["container_id"] for row in rows}) == 1
    assert rows[0]["container_id"].startswith("ta-")
    assert all(row["duration_seconds"] >= 0 for row in rows)
    assert asked.json("server", "requests", site, "--tail", "1") == rows[:1]
    now = datetime.now(UTC).timestamp()
    span = "--since", moment(now - 3600), "--until", moment(now + 3600)
    assert asked.json("server", "requests", site, *span) == rows[::-1]
    past = "--since", moment(now - 7200), "--until", moment(now - 3600)
    assert asked.json("server", "requests", site, *past) == []
    text = asked.run("server", "requests", site).succeeded().stdout
    assert "Displaying 4 rows" in text


def test_statistics_of_a_server(asked: Asked, site: str) -> None:
    found = asked.json("server", "stats", site)
    assert found["request_count"] == 4
    assert found["request_count_by_status_code"] == {"2xx": 2, "4xx": 1, "5xx": 1}
    assert found["request_rate_per_second"] == pytest.approx(4 / 3600, rel=0.01)
    assert (found["container_total_count"], found["container_started_count"]) == (1, 1)
    (latency,) = found["request_percentile_stats"].values()
    assert 0 < latency["percentiles"]["p50"] <= latency["percentiles"]["p99"]
    container = asked.json("server", "requests", site)[0]["container_id"]
    of_it = asked.json("server", "stats", site, "--container-id", container)
    assert of_it["request_count"] == 4
    text = asked.run("server", "stats", site).succeeded().stdout
    assert "2xx: 2" in text
    requests = asked.json("app", "stats", asked.name)["servers"]["by_name"]["Site"]["counts"]
    assert requests["requests"] == {"total": 4, "ok": 2, "failed": 2}
    assert asked.run("function", "stats", site).returncode != 0
    now = datetime.now(UTC).timestamp()
    span = "--since", moment(now - 1800), "--until", moment(now + 1800)
    metrics = asked.json("server", "metrics", site, *span)
    counts = (sum(filter(None, series(metrics, f"{each}xx_requests_count"))) for each in (2, 4, 5))
    assert list(counts) == [2, 1, 1]
