"""``homeport image ls|rm|prune|caches|export|import``: the images of this machine."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec

from homeport.cli.server import Server
from homeport.images.upkeep import ImageBundle, ImageSummary
from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.node import caches
from homeport.node.builder.errors import BuildError
from homeport.node.builder.oci import Layout, take_layers, unpack_archive, write_archive
from homeport.node.layers import LayerStore, remove_tree
from homeport.settings import Settings


def store_of(settings: Settings) -> LayerStore:
    """The layer store of this machine's node."""
    return LayerStore(settings.node_root / "layers")


@click.group("image")
@click.pass_context
def images(ctx: click.Context) -> None:
    """Images of this machine; every other command is the official CLI's."""


@images.command("ls")
@click.option("--json", "as_json", is_flag=True, help="As a JSON array.")
@click.pass_obj
def list_command(settings: Settings, as_json: bool) -> None:
    """List images: what made them, their size, whether an app uses them."""
    found = msgspec.json.decode(Server(settings).ask("GET", "/_images"), type=list[ImageSummary])
    store = store_of(settings)
    rows = [_row(image, store) for image in found]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(
        f"{'IMAGE':<26}{'STATUS':<11}{'SIZE':>9}  {'AGE':>5}  {'USED':<6}{'NAMES / MADE BY'}"
    )
    for row in rows:
        size = _size(row["size_bytes"]) if row["is_here"] else "deleted"
        label = ", ".join(row["names"]) or row["made_by"][:80]
        used = "yes" if row["in_use"] else ""
        age = _age(time.time() - row["created_at"])
        click.echo(f"{row['image_id']:<26}{row['status']:<11}{size:>9}  {age:>5}  {used:<6}{label}")


def _row(image: ImageSummary, store: LayerStore) -> dict[str, Any]:
    metadata = [store.metadata(key) for key in image.layers]
    row: dict[str, Any] = msgspec.to_builtins(image)
    row["size_bytes"] = sum(each.size_bytes for each in metadata if each is not None)
    row["is_here"] = bool(image.layers) and all(each is not None for each in metadata)
    return row


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


@images.command("rm")
@click.argument("image_ids", nargs=-1, required=True, metavar="IMAGE_ID…")
@click.option("--force", is_flag=True, help="Also images that an app uses.")
@click.pass_obj
def remove_command(settings: Settings, image_ids: tuple[str, ...], force: bool) -> None:
    """Remove images with the layers that no other image has."""
    body = json.dumps({"image_ids": image_ids, "force": force}).encode()
    for image_id in json.loads(Server(settings).ask("POST", "/_images/remove", body)):
        click.echo(image_id)


@images.command("prune")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--caches", "with_caches", is_flag=True, help="Also what builds keep for later ones.")
@click.pass_obj
def prune_command(settings: Settings, dry_run: bool, with_caches: bool) -> None:
    """Remove images that no live app uses and that have no name, and all layers of no image."""
    body = json.dumps({"dry_run": dry_run}).encode()
    server = Server(settings)
    for image_id in json.loads(server.ask("POST", "/_images/prune", body)):
        click.echo(image_id)
    if with_caches and dry_run:
        total = sum(caches.sizes(_builder(settings)).values())
        click.echo(f"caches of builds: up to {_size(total)}", err=True)
    elif with_caches:
        freed = json.loads(server.ask("POST", "/_images/caches/prune"))["freed_bytes"]
        click.echo(f"caches of builds: {_size(freed)} freed", err=True)


@images.command("caches")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
@click.pass_obj
def caches_command(settings: Settings, as_json: bool) -> None:
    """Show what builds keep for later ones beside layers, and how much that may be."""
    found = caches.sizes(_builder(settings))
    bytes_max = settings.caches_bytes_max or caches.default_bound(_existing(settings.home))
    if as_json:
        click.echo(json.dumps({"bytes_max": bytes_max, "caches": found}, indent=2))
        return
    for name, size in sorted(found.items(), key=lambda item: -item[1]):
        click.echo(f"{name:<12}{_size(size):>9}  {caches.CONTENTS[name]}")
    click.echo(f"{'all':<12}{_size(sum(found.values())):>9}  of at most {_size(bytes_max)}")


def _builder(settings: Settings) -> Path:
    return settings.node_root / "builder"


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


@images.command("export")
@click.argument("image")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def export_command(settings: Settings, image: str, file: Path) -> None:
    """Write an image (id or name) to FILE, an OCI archive for `homeport image import` or others."""
    data = Server(settings).ask("GET", f"/_images/bundle?image={quote(image)}")
    record = msgspec.msgpack.decode(data, type=ImageBundle).records[-1]
    store = store_of(settings)
    missing = [key for key in record.layers if not store.has(key)]
    if missing:
        raise NotFoundError(
            f"{len(missing)} of {len(record.layers)} layers of {image} are not on this machine any "
            "more: build it again first"
        )
    layers = [(key, store.path(key)) for key in record.layers]
    with tempfile.TemporaryDirectory(prefix="homeport-export-", dir=file.resolve().parent) as work:
        write_archive(file, record.image_id, layers, record.config, data, Path(work))
    click.echo(f"{record.image_id} is in {file}")


@images.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.pass_obj
def import_command(settings: Settings, file: Path) -> None:
    """Take the images of FILE over, as if they had been built here."""
    store = store_of(settings)
    server = Server(settings)
    work = store.new_work()
    try:
        unpack_archive(file, work / "layout")
        image = Layout(work / "layout").image()
        if not image.records:
            raise InvalidError(
                f"{file} is an image of another tool; use it as the base of an image: "
                f'Image.from_registry("oci-archive:{file.resolve()}")'
            )
        take_layers(image, store, file.name, time.time())
    except BuildError as error:
        raise InvalidError(error.message) from None
    finally:
        remove_tree(work)
    node = (settings.node_root / "id").read_text().strip()
    path = f"/_images/bundle?node={quote(node)}"
    for image_id in json.loads(server.ask("POST", path, image.records)):
        click.echo(image_id)
