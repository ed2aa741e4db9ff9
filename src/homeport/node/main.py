"""``python -m homeport.node.main``: the node agent as a program."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import sys
from pathlib import Path

import click

from homeport.kernel.descriptors import raise_limit
from homeport.kernel.errors import HomeportError, InvalidError
from homeport.kernel.logs import configure_logging
from homeport.node.agent import Agent, NodeConfig, read_token
from homeport.node.gpus.options import gpu_options
from homeport.node.runtime.port import RuntimeUnavailableError
from homeport.settings import load


@click.command()
@click.option("--home", type=click.Path(path_type=Path), default=None, help="Folder of all state.")
@click.option("--server", default="", help="URL of the server; default: the local one.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    default=None,
    help="File with the node's token; default: credentials.toml in the home folder.",
)
@click.option("--runtime", default="", help="Isolation back end; default: the settings' one.")
@click.option("--sweep", is_flag=True, help="Only undo what a killed node left behind.")
def main(
    home: Path | None, server: str, token_file: Path | None, runtime: str, sweep: bool
) -> None:
    """Run containers on this machine for a Homeport server, until SIGTERM."""
    try:
        settings = load(home)
        configure_logging(settings.log_level, settings.log_format)
        raise_limit()
        file = token_file or settings.home / "credentials.toml"
        config = NodeConfig(
            home=settings.home,
            server_url=(server or f"http://127.0.0.1:{settings.port}").rstrip("/"),
            token=lambda: read_token(file),
            runtime=runtime or settings.default_runtime,
            sandbox_runtime=settings.sandbox_runtime,
            registry_mirrors=settings.registry_mirrors,
            layers_bytes_max=settings.layers_bytes_max,
            caches_bytes_max=settings.caches_bytes_max,
            router_listen=settings.router_listen or settings.host,
            router_port=settings.router_port,
            router_host=settings.router_host,
            name_servers=name_servers(settings.name_servers),
            templates_max=settings.templates_max,
            sandboxes_prepared_max=settings.sandboxes_prepared_max,
            gpus=gpu_options(settings),
        )
        run(config, sweep=sweep)
    except (HomeportError, RuntimeUnavailableError) as error:
        print(f"homeport node: {error}", file=sys.stderr)
        sys.exit(1)


def name_servers(text: str) -> list[str]:
    """The addresses in the setting of that name. Raises ``InvalidError``."""
    found = text.replace(",", " ").split()
    for address in found:
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            raise InvalidError(
                f"name_servers has {address!r}, which is no IPv4 address such as 192.0.2.53"
            ) from None
    return found


def run(config: NodeConfig, *, sweep: bool = False) -> None:
    """Run an agent on an event loop of its own until SIGTERM or SIGINT; or let it only sweep."""

    async def serve() -> None:
        agent = Agent(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop)
        await (agent.sweep() if sweep else agent.run())

    try:
        import uvloop
    except ImportError:
        asyncio.run(serve())
    else:
        uvloop.run(serve())


if __name__ == "__main__":
    main()
