from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from homeport.cli import instance
from homeport.kernel.errors import InvalidError
from homeport.settings import Settings

from .conftest import wait_for


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    loaded = Settings(home=tmp_path / "home")
    instance.open_home(loaded)
    return loaded


def test_a_second_up_is_told_who_runs(settings: Settings) -> None:
    with instance.UpLock(settings) as lock:
        lock.record(instance.UpRecord(pid=os.getpid(), url="http://127.0.0.1:7460"))
        with (
            pytest.raises(instance.AlreadyRunningError) as caught,
            instance.UpLock(settings),
        ):
            pass
    assert f"pid {os.getpid()} at http://127.0.0.1:7460" in caught.value.message


def test_a_reader_looking_at_the_lock_does_not_stop_an_up(settings: Settings) -> None:
    (settings.run_dir / "up.lock").touch()
    with (settings.run_dir / "up.lock").open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        reader.close()
        with instance.UpLock(settings):
            assert instance.find_up(settings) is not None


def test_a_record_without_its_lock_counts_for_nothing(settings: Settings) -> None:
    with instance.UpLock(settings) as lock:
        record = instance.UpRecord(pid=os.getpid(), url="http://127.0.0.1:1", ready=True)
        lock.record(record)
        assert instance.find_up(settings) == record
        kept = (settings.run_dir / "up.json").read_bytes()
    (settings.run_dir / "up.json").write_bytes(kept)
    assert instance.find_up(settings) is None


def test_the_record_of_a_dead_one_is_not_believed_while_the_next_starts(
    settings: Settings,
) -> None:
    with instance.UpLock(settings) as lock:
        lock.record(instance.UpRecord(pid=2**22 + 1, url="http://127.0.0.1:1", ready=True))
        assert instance.find_up(settings) == instance.UpRecord(pid=0, url="")


def test_a_server_is_found_by_its_record_while_it_lives(settings: Settings) -> None:
    def found(pid: int) -> bool:
        record = instance.ServerRecord(pid=pid, port=1, url="http://127.0.0.1:1")
        (settings.run_dir / "server.json").write_bytes(msgspec.json.encode(record))
        return instance.find_server(settings) is not None

    argv = [sys.executable, "-c", "input()", "homeport.main"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        wait_for(lambda: found(process.pid), "the server")
    assert not found(process.pid)
    assert not found(os.getpid())  # somebody else's process by now


def test_a_home_below_a_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidError) as caught:
        instance.open_home(Settings(home=tmp_path / "file"))
    assert "is not a folder" in caught.value.message
    with pytest.raises(InvalidError, match="cannot be used: Not a directory"):
        instance.open_home(Settings(home=tmp_path / "file" / "home"))


def test_a_home_that_cannot_be_written_is_refused_in_one_sentence() -> None:
    with pytest.raises(InvalidError, match="/proc/homeport cannot be used"):
        instance.open_home(Settings(home=Path("/proc/homeport")))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:7460"),
        ("0.0.0.0", "http://127.0.0.1:7460"),
        ("::", "http://[::1]:7460"),
        ("box.lan", "http://box.lan:7460"),
    ],
)
def test_the_local_url_is_one_that_can_be_dialled(host: str, url: str) -> None:
    assert instance.local_url(host, 7460) == url
