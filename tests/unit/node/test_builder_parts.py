"""The builder's parts: words and instructions, merged trees, layers, names of bases, the host."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from homeport import pythons
from homeport.link.messages import LogEntry
from homeport.node.builder import words
from homeport.node.builder.debian import find_suite, host_mirrors
from homeport.node.builder.dockerfile import parse
from homeport.node.builder.errors import BuildError
from homeport.node.builder.flights import Emit, Flights
from homeport.node.builder.hostenv import read_host
from homeport.node.builder.merged import MergedView
from homeport.node.builder.reference import DebianReference, PythonReference, parse_reference
from homeport.node.builder.running import OutputTail
from homeport.node.layers import LayerMetadata, LayerStore, layer_key

# ── words ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A", "1"),
        ("${A}b", "1b"),
        ("$AB", ""),
        ("'$A'", "$A"),
        ('"$A c"', "1 c"),
        (r"\$A", "$A"),
        (r'"a\"b\n"', r'a"b\n'),
        ("${NO:-d$A}", "d1"),
        ("${A:-d}", "1"),
        ("${A:+yes}${NO:+no}", "yes"),
        ("a$", "a$"),
        ("it''s", "its"),
    ],
)
def test_words_expand_as_docker_does(text: str, expected: str) -> None:
    assert words.expand(text, {"A": "1"}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1 B='x y'  C=\"$X z\"", {"A": "1", "B": "x y", "C": "v z"}),
        ("OLD form of $X", {"OLD": "form of v"}),
        ("E=", {"E": ""}),
        ("P=a=b", {"P": "a=b"}),
        (r"Q=a\ b", {"Q": "a b"}),
    ],
)
def test_assignments(text: str, expected: dict[str, str]) -> None:
    assert words.assignments(text, {"X": "v"}) == expected


@pytest.mark.parametrize("text", ["'open", '"open', "${A", "${A?x}", "${1}"])
def test_words_that_cannot_be_read(text: str) -> None:
    with pytest.raises(words.WordsError):
        words.expand(text, {})


# ── instructions ────────────────────────────────────────────────────────────────────────────────


def test_continuations_may_have_blanks_and_comments_and_empty_lines() -> None:
    text = "FROM base\n# note\nRUN cd /tmp && \\ \n  one && \\\n\n  # why\n  two\nRUN last \\"
    found = parse(text)
    assert [item.name for item in found] == ["FROM", "RUN", "RUN"]
    assert found[1].value.split() == ["cd", "/tmp", "&&", "one", "&&", "two"]
    assert found[2].value == "last"


def test_flags_and_exec_form() -> None:
    run, copy = parse('RUN ["a", "b c"]\nCOPY --chown=1:2 --link a b\n')
    assert run.json_words() == ["a", "b c"]
    assert parse("RUN [ -f x ] && y")[0].json_words() is None
    assert copy.flags == (("chown", "1:2"), ("link", ""))
    assert copy.value == "a b"
    assert copy.text == "COPY --chown=1:2 --link a b"


def test_here_documents_are_taken_out() -> None:
    first, second = parse("RUN python - <<EOF\nprint(1)\n# not a comment\n\nEOF\nRUN cat <<<word\n")
    assert first.heredocs[0].body == "print(1)\n# not a comment\n\n"
    assert second.heredocs == ()
    with pytest.raises(BuildError, match="never closed"):
        parse("RUN <<EOF\nx\n")


# ── merged trees ────────────────────────────────────────────────────────────────────────────────


def test_upper_layers_hide_lower_ones(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    for name in ("d/keep", "d/over", "opaque/gone", "plain"):
        (low / name).parent.mkdir(parents=True, exist_ok=True)
        (low / name).write_text("low")
    (high / "d").mkdir(parents=True)
    (high / "d/over").write_text("high")
    (high / "opaque").mkdir()
    os.setxattr(high / "opaque", "user.overlay.opaque", b"y")
    view = MergedView([low, high])
    assert view.read_text("/d/keep") == "low"
    assert view.read_text("/d/over") == "high"
    assert view.find("/opaque/gone") is None
    assert view.is_dir("/opaque")
    assert not view.is_dir("/plain")
    assert view.find("/plain/below") is None


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_whiteouts_delete(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    (low / "d").mkdir(parents=True)
    (low / "d/x").write_text("low")
    high.mkdir()
    os.mknod(high / "d", 0o20000, os.makedev(0, 0))
    assert MergedView([low, high]).find("/d/x") is None


def test_links_are_followed_inside_the_tree(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    (low / "usr/lib").mkdir(parents=True)
    (low / "usr/lib/x").write_text("x")
    high.mkdir()
    (high / "lib").symlink_to("/usr/lib")
    (high / "up").symlink_to("../../lib/x")
    (high / "loop").symlink_to("loop")
    view = MergedView([low, high])
    assert view.resolve("/lib/new/file") == "/usr/lib/new/file"
    assert view.resolve("/lib/../lib/x") == "/usr/lib/x"
    assert view.resolve("/up") == "/usr/lib/x"
    assert view.resolve("/up", follow_last=False) == "/up"
    with pytest.raises(OSError, match="too many"):
        view.resolve("/loop")


# ── layers ──────────────────────────────────────────────────────────────────────────────────────


def _metadata() -> LayerMetadata:
    return LayerMetadata(parent="p", instruction="RUN x", created_at=1.0)


def test_layers_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    async def main() -> None:
        store = LayerStore(tmp_path)
        upper = store.new_work() / "upper"
        upper.mkdir(mode=0o700)
        (upper / "f").write_text("12345")
        (store.path("k")).mkdir()  # what a crash between rename and record leaves
        assert not store.has("k")
        await store.commit(upper, "k", _metadata())
        assert store.has("k")
        assert store.keys() == ["k"]
        assert store.path("k").stat().st_mode & 0o777 == 0o755
        found = store.metadata("k")
        assert found is not None
        assert (found.size_bytes, found.parent) == (5, "p")
        second = store.new_work() / "upper"
        second.mkdir()
        await store.commit(second, "k", _metadata())
        assert (store.path("k") / "f").exists()
        await store.forget("k")
        assert not store.has("k")
        assert not store.path("k").exists()

    asyncio.run(main())


def test_a_store_shares_inodes_with_another(tmp_path: Path) -> None:
    async def main() -> None:
        one, two = LayerStore(tmp_path / "1"), LayerStore(tmp_path / "2")
        upper = one.new_work() / "upper"
        upper.mkdir()
        (upper / "f").write_text("x")
        await one.commit(upper, "k", _metadata())
        await two.adopt(one, "k")
        assert (two.path("k") / "f").samefile(one.path("k") / "f")
        assert two.has("k")

    asyncio.run(main())


def test_work_of_processes_that_are_gone_is_removed(tmp_path: Path) -> None:
    gone = tmp_path / ".work.99999999" / "x"
    gone.mkdir(parents=True)
    mine = LayerStore(tmp_path).new_work()
    LayerStore(tmp_path)
    assert not gone.exists()
    assert mine.exists()


def test_keys_depend_on_where_parts_end() -> None:
    assert layer_key("ab", "c") == layer_key("ab", b"c")
    assert layer_key("ab", "c") != layer_key("a", "bc")


# ── shared work ─────────────────────────────────────────────────────────────────────────────────


def test_everyone_gets_the_error_and_late_comers_the_log() -> None:
    async def main() -> None:
        flights = Flights()
        go = asyncio.Event()

        async def work(emit: Emit) -> None:
            emit([LogEntry(1, 0, "begun")])
            await go.wait()
            raise BuildError("no")

        seen: list[list[LogEntry]] = [[], []]
        first = asyncio.create_task(flights.run("k", work, seen[0].extend))
        while not seen[0]:
            await asyncio.sleep(0)
        second = asyncio.create_task(flights.run("k", work, seen[1].extend))
        while not seen[1]:
            await asyncio.sleep(0)
        go.set()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [str(result) for result in results] == ["no", "no"]
        assert [entry.data for entry in seen[1]] == ["begun"]

    asyncio.run(main())


def test_the_tail_of_output_is_bounded() -> None:
    tail = OutputTail(lambda entries: None)
    for number in range(100):
        tail(1, f"line {number}\n")
    tail(1, "x" * 10_000)
    assert tail.text().startswith("line 80\n")
    assert len(tail.text()) < 1_000


# ── bases ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "version", "suite"),
    [
        ("python:3.11.12-slim-bookworm", "3.11.12", "bookworm"),
        ("python:3.13-slim", "3.13", "trixie"),
        ("docker.io/library/python:3.12-slim-trixie", "3.12", "trixie"),
        ("python:3.12", "3.12", "trixie"),
        ("python:slim", "3.13", "trixie"),
        ("python", "3.13", "trixie"),
        ("python:3-bullseye", "3.13", "bullseye"),
    ],
)
def test_names_of_python_images(text: str, version: str, suite: str) -> None:
    found = parse_reference(text)
    assert isinstance(found, PythonReference)
    assert (found.version, found.suite.name) == (version, suite)


@pytest.mark.parametrize(
    ("text", "suite"),
    [
        ("debian", "trixie"),
        ("debian:12-slim", "bookworm"),
        ("debian:12.5", "bookworm"),
        ("debian:bookworm-20240101-slim", "bookworm"),
        ("debian:stable-slim", "trixie"),
        ("library/debian:sid", "sid"),
    ],
)
def test_names_of_debian_images(text: str, suite: str) -> None:
    assert parse_reference(text) == DebianReference(_suite(suite))


def _suite(name: str):
    found = find_suite(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "text",
    [
        "ubuntu:5.04",
        "python:3.11-alpine",
        "python:2.7",
        "debian:nonesuch",
        "ghcr.io/me/python:3.11",
        "python:3.11@sha256:00",
    ],
)
def test_names_only_a_registry_knows(text: str) -> None:
    assert parse_reference(text) is None


# ── the host ────────────────────────────────────────────────────────────────────────────────────


def test_mirrors_come_from_both_kinds_of_sources(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://no/debian x main\ndeb [signed-by=/k] http://near/debian/ bookworm main\n"
        "deb https://other/apt x main\n"
    )
    (tmp_path / "sources.list.d/s.sources").write_text(
        "Types: deb\nURIs: https://near/debian-security\nSuites: x\n"
    )
    mirrors = host_mirrors(tmp_path)
    assert mirrors.main == "http://near/debian"
    assert mirrors.security == "https://near/debian-security"
    text = mirrors.sources(_suite("bookworm"), "/key")
    assert "Suites: bookworm bookworm-updates\n" in text
    assert "Suites: bookworm-security\n" in text
    assert "security" not in mirrors.sources(_suite("sid"), "/key")


def test_indexes_that_containers_cannot_reach_are_left_out(tmp_path: Path) -> None:
    conf = tmp_path / "pip.conf"
    conf.write_text(
        "[global]\nindex-url = https://conf/simple\n"
        "extra-index-url =\n    file:///x\n    https://extra/simple\ncert = /c.pem\n"
    )
    variables = read_host({"UV_INDEX": "/local", "HTTPS_PROXY": "proxy:3128"}, [conf]).variables
    assert variables["PIP_INDEX_URL"] == variables["UV_DEFAULT_INDEX"] == "https://conf/simple"
    assert variables["PIP_EXTRA_INDEX_URL"] == "https://extra/simple"
    assert variables["HTTPS_PROXY"] == "proxy:3128"
    assert "UV_INDEX" not in variables
    assert "PIP_CERT" not in variables
    assert read_host({"PIP_INDEX_URL": "https://env/"}, [conf]).variables["PIP_INDEX_URL"] == (
        "https://env/"
    )


def _prefix(root: Path) -> Path:
    """A CPython as far as looking at it and copying it goes."""
    files = {
        "include/python3.11/patchlevel.h": '#define PY_VERSION "3.11.7"\n',
        "bin/python3.11": "\x7fELF GLIBC_2.17 GLIBC_2.35",
        "bin/python3.11-config": f"#!{root}/bin/python3.11\n",
        "bin/other-tool": "x",
        "lib/libpython3.11.so.1.0": "\x7fELF",
        "lib/libpython3.11.a": "x",
        "lib/pkgconfig/python3.pc": f"prefix={root}\n",
        "lib/python3.11/os.py": "",
        "lib/python3.11/_sysconfigdata_x.py": f"p = '{root}/lib'\n",
        "lib/python3.11/__pycache__/os.pyc": "",
        "lib/python3.11/test/t.py": "",
        "lib/python3.11/EXTERNALLY-MANAGED": "",
        "lib/python3.11/site-packages/six.py": "",
        "lib/python3.11/lib-dynload/_ssl.so": "",
        "lib/python3.11/lib-dynload/_testcapi.so": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_cpython_is_copied_without_what_is_not_its_own(tmp_path: Path) -> None:
    python = pythons.inspect_prefix(_prefix(tmp_path / "py"))
    assert python is not None
    assert (python.version, python.minor, python.glibc) == ("3.11.7", "3.11", (2, 35))
    pythons.copy_python(python, tmp_path / "layer")
    local = tmp_path / "layer/usr/local"
    names = {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
    assert names == {
        "include/python3.11/patchlevel.h",
        *("bin/python3.11", "bin/python3", "bin/python"),
        *("bin/python3.11-config", "bin/python3-config", "bin/python-config"),
        "lib/libpython3.11.so.1.0",
        "lib/pkgconfig/python3.pc",
        "lib/python3.11/os.py",
        "lib/python3.11/_sysconfigdata_x.py",
        "lib/python3.11/lib-dynload/_ssl.so",
    }
    assert (local / "lib/pkgconfig/python3.pc").read_text() == "prefix=/usr/local\n"
    assert (local / "lib/python3.11/_sysconfigdata_x.py").read_text() == "p = '/usr/local/lib'\n"
    assert (local / "bin/python3-config").read_text() == "#!/usr/local/bin/python3.11\n"
    assert (local / "lib/python3.11/site-packages").is_dir()


@pytest.mark.parametrize("marker", ["pyvenv.cfg", "conda-meta/x"])
def test_environments_are_no_cpython_to_copy(tmp_path: Path, marker: str) -> None:
    root = _prefix(tmp_path)
    (root / marker).parent.mkdir(exist_ok=True)
    (root / marker).touch()
    assert pythons.inspect_prefix(root) is None


def test_pythons_are_found_where_their_managers_put_them(tmp_path: Path) -> None:
    one = _prefix(tmp_path / "pyenv/versions/3.11.7")
    two = _prefix(tmp_path / "uv/cpython-3.11.7-linux")
    environ = {
        "PATH": str(Path(sys.executable).parent),
        "HOME": str(tmp_path),
        "PYENV_ROOT": str(tmp_path / "pyenv"),
        "UV_PYTHON_INSTALL_DIR": str(tmp_path / "uv"),
    }
    prefixes = [python.prefix for python in asyncio.run(pythons.host_pythons(environ))]
    assert {one, two} <= set(prefixes)
