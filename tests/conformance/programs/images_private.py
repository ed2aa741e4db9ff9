"""Packages from private repositories, with a git server that wants the token."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import modal

HERE = Path(__file__).parent
PACKAGE = """
from setuptools import setup
setup(name="{name}", version="1.0", py_modules=["{name}"])
"""
GIT = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false"]


def probe():
    import importlib.metadata
    import os
    import subprocess

    import private_one
    import private_two

    found = subprocess.run(
        ["grep", "-rlE", "gh-token-1|gl-token-2", "/usr/local/lib", "/tmp", "/etc", "/var"],
        capture_output=True,
        text=True,
    )
    return {
        "said": [private_one.SAID, private_two.SAID],
        "seen": sorted(
            {line.partition("/info/")[0] for line in open("/srv/seen") if "/info/" in line}
        ),
        "variables": [name for name in os.environ if name.endswith("_TOKEN") and "LAB" in name],
        "left": found.stdout.split(),
        "recorded": "github.com/ecorp/one"
        in importlib.metadata.distribution("private_one").read_text("direct_url.json"),
    }


def repository(place, name, subdirectory=""):
    """A bare repository whose tag v1 is an older state than its branch."""
    work = place / f"work-{name}"
    code = work / subdirectory
    code.mkdir(parents=True)
    (code / "setup.py").write_text(PACKAGE.format(name=name))
    (code / f"{name}.py").write_text("SAID = 'tagged'\n")
    subprocess.run([*GIT, "init", "-q", "-b", "main", str(work)], check=True)
    here = [*GIT, "-C", str(work)]
    subprocess.run([*here, "add", "."], check=True)
    subprocess.run([*here, "commit", "-q", "-m", "one"], check=True)
    subprocess.run([*here, "tag", "v1"], check=True)
    (code / f"{name}.py").write_text("SAID = 'newest'\n")
    subprocess.run([*here, "commit", "-q", "-a", "-m", "two"], check=True)
    return work


def image(place):
    """A base in which git finds our server where it looks for github.com and gitlab.com."""
    repositories = place / "git"
    for host, name, path, folder in (
        ("github.com", "private_one", "one", ""),
        ("gitlab.com", "private_two", "two", "inner"),
    ):
        target = repositories / host / "ecorp" / path
        target.parent.mkdir(parents=True)
        work = repository(place, name, folder)
        subprocess.run([*GIT, "clone", "-q", "--bare", str(work), str(target)], check=True)
        shutil.rmtree(target / "hooks", ignore_errors=True)
    folder = HERE / "image_git"
    return (
        modal.Image.from_registry("python:3.11-slim-bookworm")
        .add_local_dir(repositories, "/srv/git", copy=True)
        .add_local_file(folder / "git_server.py", "/srv/git_server.py", copy=True)
        .add_local_file(folder / "git", "/usr/local/bin/git", copy=True)
        .add_local_file(folder / "gitconfig", "/etc/gitconfig", copy=True)
        .run_commands(
            "chmod 755 /usr/local/bin/git",
            # empty directories do not come along
            "for one in /srv/git/*/ecorp/*; do mkdir -p $one/refs/heads $one/objects/info; done",
        )
    )


def tokens(**values):
    return modal.Secret.from_dict(values)


def private(base):
    made = base.pip_install_private_repos(
        "github.com/ecorp/one@v1",
        "gitlab.com/ecorp/two#subdirectory=inner",
        git_user="me",
        secrets=[tokens(GITHUB_TOKEN="gh-token-1", GITLAB_TOKEN="gl-token-2")],
    )
    app = modal.App("conformance-images-private")
    function = app.function(image=made)(probe)
    with app.run():
        return function.remote()


def build(base, **values):
    made = base.pip_install_private_repos(
        "github.com/ecorp/one", git_user="me", secrets=[tokens(**values)]
    )
    app = modal.App("conformance-images-private")
    app.function(image=made)(probe)
    with app.run():
        return made.object_id


def main():
    sys.path.insert(0, str(HERE))
    from reporting import Report

    check = Report().check
    with tempfile.TemporaryDirectory() as place:
        base = image(Path(place))
        check("private", lambda: private(base), 600)
        check("refused", lambda: build(base, GITHUB_TOKEN="not-it"), 300)
        check("forgotten", lambda: build(base, OTHER="x"), 300)


if __name__ == "__main__":
    main()
