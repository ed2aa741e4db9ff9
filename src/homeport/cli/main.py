"""The ``homeport`` command. Commands only: what they do is in the modules beside this one."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from homeport import __version__, settings
from homeport.cli import client_env, doctor, fsck, instance, official, up
from homeport.cli.server import Server
from homeport.kernel.errors import HomeportError
from homeport.settings import Settings

NOT_RUNNING = 3
"""Exit code of ``homeport status`` when nothing runs (as service managers use it)."""
_OUR_IMAGE_COMMANDS = ("ls", "rm", "prune", "caches", "export", "import")


class _Group(click.Group):
    """Our commands by name; any other name is a command of the official CLI."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        return own or _MIXED.get(cmd_name, _Official)(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, c.get_short_help_str(70)) for name, c in self.commands.items()]
        with formatter.section("Homeport"):
            formatter.write_dl(own)
        with formatter.section("Commands of the official client, run against this Homeport"):
            formatter.write_dl(list(official.COMMANDS.items()))


class _Official(click.Command):
    """A command of the official CLI: everything behind its name is for that CLI, as it stands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args

    def invoke(self, ctx: click.Context) -> Any:
        official.hand_over(_load(ctx, None), self.name or "", ctx.args)


class _Image(_Official):
    """The official ``image`` commands, and ours about this machine's images."""

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.args[:1] and ctx.args[0] in _OUR_IMAGE_COMMANDS:
            # The store of layers and all it takes: no other command need wait for them.
            from homeport.cli import images

            images.images.main(ctx.args, "image", obj=_load(ctx, None), parent=ctx.parent)
        super().invoke(ctx)


class _Volume(_Official):
    """The official ``volume`` commands, and our ``volume fsck``."""

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.args[:1] == ["fsck"]:
            fsck_command.main(ctx.args[1:], "fsck", parent=ctx)
        super().invoke(ctx)


def _versions(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        client = importlib.metadata.version("modal")
        click.echo(f"homeport {__version__} (with client modal {client})")
        ctx.exit()


def _load(ctx: click.Context, home: Path | None, **overrides: Any) -> Settings:
    return settings.load(home or ctx.find_root().params.get("home"), **overrides)


_home_option = click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Folder of all state. [default: $HOMEPORT_HOME or ~/.homeport]",
)


class _Token(_Official):
    """The official ``token`` commands, and our ``token approve``."""

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.args[:1] == ["approve"]:
            approve_command.main(
                ctx.args[1:], "homeport token approve", obj=_load(ctx, None), parent=ctx
            )
        super().invoke(ctx)


@click.command("approve")
@click.argument("code")
@click.pass_obj
def approve_command(settings: Settings, code: str) -> None:
    """Let the client that shows CODE in (`modal token new`): it gets a token of its own."""
    try:
        body = json.dumps({"code": code}).encode()
        answer: Any = json.loads(Server(settings).ask("POST", "/_tokens/approve", body))
    except HomeportError as error:
        raise click.ClickException(error.message) from None
    click.echo(f"token {answer['token_id']} was given to it")


_MIXED: dict[str, type[_Official]] = {"image": _Image, "token": _Token, "volume": _Volume}


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@_home_option
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_versions,
    help="Show the versions of Homeport and of its client.",
)
def cli(home: Path | None) -> None:
    """Serverless compute on machines you own, for programs of the modal client."""


@cli.command("up")
@_home_option
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 = any. [default: 7460]")
@click.option("--detach", "-d", is_flag=True, help="Run in the background, logs in the home.")
@click.option("--detached-fd", type=int, hidden=True)
@click.pass_context
def up_command(
    ctx: click.Context,
    home: Path | None,
    host: str | None,
    port: int | None,
    detach: bool,
    detached_fd: int | None,
) -> None:
    """Start Homeport on this machine: the server and one node."""
    if detached_fd is not None:
        try:
            up.run_up(_load(ctx, home, host=host, port=port), detached_fd=detached_fd)
        except HomeportError as error:
            up.report(detached_fd, ok=False, message=error.message)
            raise
        return
    loaded = _load(ctx, home, host=host, port=port)
    if detach:
        click.echo(up.start_detached(loaded))
    else:
        up.run_up(loaded)


@cli.command("down")
@_home_option
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=75.0,
    show_default=True,
    help="Seconds to wait before it is killed.",
)
@click.pass_context
def down_command(ctx: click.Context, home: Path | None, grace: float) -> None:
    """Stop Homeport and every container it runs."""
    loaded = _load(ctx, home)
    ran = up.stop(loaded, grace, lambda line: click.echo(line, err=True))
    where = instance.shown(loaded.home)
    click.echo(f"Homeport is stopped (home {where})." if ran else f"Nothing runs (home {where}).")


@cli.command("status")
@_home_option
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
@click.pass_context
def status_command(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    """Show whether Homeport runs, and what runs on it. Exit code 3 when it does not."""
    loaded = _load(ctx, home)
    found = status(loaded)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            click.echo(f"{name + ':':<12} {value}")
    if found["status"] != "ok":
        ctx.exit(NOT_RUNNING)


def status(loaded: Settings) -> dict[str, Any]:
    """What is known about the Homeport of a home; ``status`` is ``ok`` when the server answers."""
    record = instance.find_up(loaded)
    server = instance.find_server(loaded)
    found: dict[str, Any] = {"status": "not running", "home": str(loaded.home)}
    if record is None and server is None:
        return found
    url = (record.url if record else "") or (server.url if server else "")
    answer = instance.health(url) if url else None
    if record is not None and record.standby:
        found["status"] = "standing by: another server has the database"
    elif answer is None:
        found["status"] = "starting or not answering" if record else "not running"
    found.update({"url": url} if url else {})
    pids = {
        "pid": record.pid if record else 0,
        "server_pid": record.server_pid if record else server.pid if server else 0,
        "node_pid": record.node_pid if record else 0,
    }
    found.update({name: pid for name, pid in pids.items() if pid})
    return {**found, **(answer or {})}


@cli.command("env")
@_home_option
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
@click.option("--shell", type=click.Choice(["sh", "bash", "zsh", "fish"]), default="sh")
@click.pass_context
def env_command(ctx: click.Context, home: Path | None, as_json: bool, shell: str) -> None:
    """Print the variables that point any official client here: eval "$(homeport env)"."""
    loaded = _load(ctx, home)
    variables = client_env.client_variables(loaded, client_env.server_url(loaded))
    style = "json" if as_json else "fish" if shell == "fish" else "sh"
    click.echo(client_env.render(variables, style))


@cli.command("doctor")
@_home_option
@click.option("--json", "as_json", is_flag=True, help="As a JSON array.")
@click.pass_context
def doctor_command(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    """Check what this machine can run, and say how to mend what it cannot."""
    checks = doctor.examine(_load(ctx, home))
    click.echo(json.dumps(msgspec.to_builtins(checks)) if as_json else doctor.render(checks))
    if not doctor.can_run(checks):
        ctx.exit(1)


@click.command("fsck")
@_home_option
@click.option("--quick", is_flag=True, help="Do not read the contents, only look for them.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
@click.pass_context
def fsck_command(ctx: click.Context, home: Path | None, quick: bool, as_json: bool) -> None:
    """Check that all volumes are whole. Changes nothing; exit code 1 if something is damaged."""
    report = fsck.examine(_load(ctx, home), quick=quick)
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        for damage in report.damages:
            click.echo(fsck.line(damage), err=True)
        click.echo(fsck.summary(report))
    ctx.exit(1 if report.damages else 0)


def main() -> None:
    """Entry point. Errors meant for the user are one sentence on stderr and exit code 1."""
    try:
        cli.main(prog_name="homeport")
    except HomeportError as error:
        click.echo(f"homeport: {error.message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
