"""The programs that are shipped to run in containers are what their source says."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import homeport.node.runtime

FOLDER = Path(homeport.node.runtime.__file__).parent / "init"
PROGRAMS = ("init", "enter", "keeper")
COMPILERS = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}


def made_of(program: str, machine: str) -> tuple[dict[str, str], str]:
    """Sums of the files that went in and came out, and the compiler."""
    *sums, compiler = (FOLDER / f"{program}-{machine}.made-of").read_text().splitlines()
    return {line.split()[1]: line.split()[0] for line in sums}, compiler.removeprefix("compiler: ")


def compiler_for(machine: str) -> str:
    if machine == os.uname().machine and shutil.which("cc"):
        return "cc"
    name = COMPILERS[machine]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.mark.parametrize("machine", COMPILERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_it_was_built_from_this_source(program: str, machine: str) -> None:
    sums, _ = made_of(program, machine)
    assert set(sums) == {f"{program}.c", "common.h", "build.sh", f"{program}-{machine}"}
    for name, wanted in sums.items():
        found = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
        assert found == wanted, f"{name} has changed: run {FOLDER / 'build.sh'} for {machine}"


@pytest.mark.parametrize("machine", COMPILERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_building_it_again_gives_the_same(program: str, machine: str, tmp_path: Path) -> None:
    compiler = compiler_for(machine)
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    version = said.stdout.splitlines()[0].partition(" ")[2]
    built = tmp_path / program
    subprocess.run(
        ["sh", str(FOLDER / "build.sh"), program, str(built)],
        env={**os.environ, "CC": compiler},
        check=True,
    )
    _, wanted = made_of(program, machine)
    if version != wanted:
        pytest.skip(f"it compiles, but with {version}; the shipped one was made with {wanted}")
    assert built.read_bytes() == (FOLDER / f"{program}-{machine}").read_bytes()
