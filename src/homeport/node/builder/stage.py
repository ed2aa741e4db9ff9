"""The state of a build between two instructions, and what each instruction does to it."""

from __future__ import annotations

import asyncio
import json
import posixpath
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from homeport.link.messages import ImageConfig
from homeport.node.builder import fetching, words
from homeport.node.builder.context import ContextFile, Selection, Source, TreeSource, select
from homeport.node.builder.copying import CopyPlan, owner_of
from homeport.node.builder.dockerfile import Heredoc, Instruction, parse
from homeport.node.builder.errors import BuildError
from homeport.node.builder.merged import MergedView
from homeport.node.builder.runmounts import RunMount, parse_mount
from homeport.node.builder.steps import LayerMaker, RunStep
from homeport.node.caches import DOWNLOADS
from homeport.node.layers import layer_key
from homeport.node.runtime.port import DEFAULT_PATH

_DEFAULT_SHELL = ["/bin/sh", "-c"]
_PREDEFINED_ARGS = {
    "TARGETPLATFORM": "linux/amd64",
    "TARGETOS": "linux",
    "TARGETARCH": "amd64",
    "BUILDPLATFORM": "linux/amd64",
    "BUILDOS": "linux",
    "BUILDARCH": "amd64",
}
_COPY_FLAGS = ("chown", "chmod", "link", "parents", "exclude")
_HEALTH_FLAGS = ("interval", "timeout", "start-period", "start-interval", "retries")


@dataclass(slots=True)
class BuildVariables:
    """What surrounds all stages: arguments given, arguments declared before the first FROM."""

    build_args: dict[str, str]
    global_args: dict[str, str] = field(default_factory=dict[str, str])

    def declare_global(self, instruction: Instruction) -> None:
        """An ARG before the first FROM."""
        for raw in words.raw_words(instruction.value):
            name, _, value = raw.partition("=")
            self.global_args[name] = self.build_args.get(
                name, words.expand(value, {**_PREDEFINED_ARGS, **self.global_args})
            )

    def for_from(self) -> dict[str, str]:
        """The variables a FROM may use."""
        return {**_PREDEFINED_ARGS, **self.global_args}

    def inherited(self, name: str) -> str | None:
        """The value of an argument that a stage declares without a default."""
        for source in (self.build_args, self.global_args, _PREDEFINED_ARGS):
            if name in source:
                return source[name]
        return None


@dataclass(frozen=True, slots=True)
class Built:
    """An image as a stage starts from it or copies from it."""

    layers: list[str]
    config: ImageConfig


class Images(Protocol):
    """Where a stage finds what ``--from`` names."""

    async def find(self, name: str) -> Built:
        """An earlier stage (by name or number) or an image. Raises ``BuildError``."""
        ...


class Stage:
    """One FROM and what follows it: layers so far, configuration, arguments."""

    def __init__(
        self,
        base: Built,
        variables: BuildVariables,
        secret_env: dict[str, str],
        maker: LayerMaker,
        images: Images,
    ) -> None:
        config = base.config
        self.layers = list(base.layers)
        self._variables = variables
        self._secret_env = secret_env
        self._maker = maker
        self._images = images
        self._inherited = config
        self.env = dict(config.env)
        self.workdir = config.workdir
        self.user = config.user
        self.entrypoint = list(config.entrypoint)
        self.cmd = list(config.cmd)
        self.shell = list(config.shell)
        self.labels = dict(config.labels)
        self.ports = list(config.ports)
        self.volumes = list(config.volumes)
        self.stop_signal = config.stop_signal
        self.healthcheck = list(config.healthcheck)
        self.onbuild: list[str] = []
        self.args: dict[str, str] = {}
        self._cmd_is_own = False
        self._handlers: dict[str, Callable[[Instruction], Awaitable[None]]] = {
            "RUN": self._run,
            "COPY": self._copy,
            "ADD": self._add,
            "ENV": self._env,
            "ARG": self._arg,
            "WORKDIR": self._workdir,
            "USER": self._user,
            "SHELL": self._shell,
            "CMD": self._cmd,
            "ENTRYPOINT": self._entrypoint,
            "LABEL": self._label,
            "EXPOSE": self._expose,
            "VOLUME": self._volume,
            "STOPSIGNAL": self._stopsignal,
            "HEALTHCHECK": self._healthcheck,
            "ONBUILD": self._onbuild,
            "MAINTAINER": self._maintainer,
        }

    @property
    def built(self) -> Built:
        """The image as it stands."""
        config = ImageConfig(
            env=dict(self.env),
            workdir=self.workdir,
            user=self.user,
            entrypoint=list(self.entrypoint),
            cmd=list(self.cmd),
            shell=list(self.shell),
            labels=dict(self.labels),
            ports=list(self.ports),
            volumes=list(self.volumes),
            stop_signal=self.stop_signal,
            healthcheck=list(self.healthcheck),
            onbuild=list(self.onbuild),
        )
        return Built(self.layers, config)

    def triggers(self) -> list[Instruction]:
        """What the base's ONBUILDs left to do here. Raises ``BuildError``."""
        return [item for text in self._inherited.onbuild for item in parse(text)]

    async def execute(self, instruction: Instruction) -> None:
        """Carry out one instruction. Raises ``BuildError`` (without the instruction's name)."""
        handler = self._handlers.get(instruction.name)
        if handler is None:
            raise BuildError(f"{instruction.name} cannot stand here")
        await handler(instruction)

    # ── instructions that make layers ───────────────────────────────────────────────────────

    async def _run(self, instruction: Instruction) -> None:
        network = _run_network(instruction)
        mounts = [await self._mount(text) for text in instruction.flag_all("mount")]
        argv = instruction.json_words()
        script: Heredoc | None = None
        if argv is None:
            text, script = _shell_script(instruction)
            argv = [*(self.shell or _DEFAULT_SHELL), text]
        step = RunStep(
            instruction=instruction.text,
            argv=tuple(argv),
            env=self._run_env(),
            workdir=self.workdir or "/",
            user=self.user,
            network=network,
            mounts=tuple(mounts),
            script=script.body if script else "",
            script_path=_script_path(script) if script else "",
            secrets=self._secret_env,
        )
        self.layers.append(await self._maker.run(self.layers, step))

    async def _mount(self, text: str) -> tuple[RunMount, Selection | None]:
        scope = self._scope()
        mount = parse_mount(text, self.workdir, lambda value: words.expand(value, scope))
        if mount.type == "cache" and (mount.image or mount.source):
            raise BuildError("--mount=type=cache with from= or source= is not supported")
        if mount.type != "bind":
            return mount, None
        source = await self._source(mount.image)
        return mount, await asyncio.to_thread(select, source, mount.source or "/")

    async def _source(self, image: str) -> Source:
        """The files of ``--from``: those of a stage or an image; the build context without it."""
        if not image:
            return self._maker.context
        found = await self._images.find(image)
        digest = layer_key("tree", *found.layers[-1:])
        return TreeSource(self._maker.view(found.layers), digest)

    async def _copy(self, instruction: Instruction) -> None:
        only_flags(instruction, *_COPY_FLAGS, "from")
        scope = self._scope()
        image = words.expand(instruction.flag("from"), scope)
        if image and instruction.heredocs:
            raise BuildError("--from cannot be used with here-documents")
        source = await self._source(image)
        names, destination = self._operands(instruction)
        where = f"in {image}" if image else "in the build context"
        selections = await self._select(instruction, source, names, where)
        await self._put(instruction, selections, destination)

    async def _add(self, instruction: Instruction) -> None:
        only_flags(instruction, *_COPY_FLAGS, "checksum", "unpack", "keep-git-dir")
        names, destination = self._operands(instruction)
        selections: list[Selection] = []
        is_fetched = any(fetching.is_url(name) or fetching.parse_git(name) for name in names)
        used = (DOWNLOADS,) if is_fetched else ()
        async with self._maker.tools.kept.use(*used), self._maker.scratch() as scratch:
            for number, name in enumerate(names):
                place = scratch / f"add{number}"
                selections.append(await self._added(instruction, name, destination, place))
            await self._put(instruction, selections, destination)

    async def _added(
        self, instruction: Instruction, name: str, destination: str, place: Path
    ) -> Selection:
        """What one source of an ADD means."""
        fetcher = self._maker.tools.fetcher
        unpack = instruction.flag("unpack").lower()
        git = fetching.parse_git(name)
        if git is not None:
            keep = instruction.has_flag("keep-git-dir")
            selection, _ = await fetcher.git(git, keep_history=keep)
            return selection
        checksum = words.expand(instruction.flag("checksum"), self._scope())
        if fetching.is_url(name):
            file, _, remote_name = await fetcher.url(name, checksum)
            if instruction.has_flag("unpack") and unpack != "false":
                return await asyncio.to_thread(fetching.unpack, file, place)
            return fetching.remote_selection(file, remote_name, destination)
        if checksum:
            raise BuildError("--checksum is for a URL")
        selections = await self._select(
            instruction, self._maker.context, [name], "in the build context"
        )
        if unpack == "false":
            return selections[0]
        return await asyncio.to_thread(_unpacked, selections[0], place)

    def _operands(self, instruction: Instruction) -> tuple[list[str], str]:
        """The sources and the destination (as written, expanded)."""
        scope = self._scope()
        names = instruction.json_words()
        if names is None:
            names = words.split(instruction.value, scope)
        else:
            names = [words.expand(name, scope) for name in names]
        if len(names) < 2:
            raise BuildError("needs at least one source and a destination")
        return names[:-1], names[-1]

    async def _select(
        self, instruction: Instruction, source: Source, names: Sequence[str], where: str
    ) -> list[Selection]:
        """The files each source means. Raises ``BuildError`` for one that matches nothing."""
        scope = self._scope()
        inline = {document.name: document for document in instruction.heredocs}
        selections: list[Selection] = []
        for name in names:
            document = inline.get(name.lstrip("<-").strip("'\"")) if name.startswith("<<") else None
            if document is not None:
                body = document.body
                text = words.expand_document(body, scope) if document.expand else body
                file = ContextFile(0o644, None, text.encode())
                selections.append(Selection({document.name: file}, False))
                continue
            selection = await asyncio.to_thread(
                select,
                source,
                name,
                parents=instruction.has_flag("parents"),
                exclude=instruction.flag_all("exclude"),
            )
            if not selection.files and not selection.is_tree:
                raise BuildError(f"{name} is not {where}")
            selections.append(selection)
        return selections

    async def _put(
        self, instruction: Instruction, selections: Sequence[Selection], destination: str
    ) -> None:
        scope = self._scope()
        mode_text = words.expand(instruction.flag("chmod"), scope)
        owner = owner_of(words.expand(instruction.flag("chown"), scope), self._view())
        plan = CopyPlan(
            tuple(selections),
            self._absolute(destination),
            owner,
            _octal(mode_text) if mode_text else None,
        )
        self.layers.append(await self._maker.copy(self.layers, instruction.text, plan))

    async def _workdir(self, instruction: Instruction) -> None:
        self.workdir = self._absolute(words.expand(instruction.value, self._scope())).rstrip("/")
        self.workdir = self.workdir or "/"
        if not self._view().is_dir(self.workdir):
            self.layers.append(await self._maker.directory(self.layers, self.workdir))

    # ── instructions that change the configuration ──────────────────────────────────────────

    async def _env(self, instruction: Instruction) -> None:
        self.env.update(words.assignments(instruction.value, self._scope()))

    async def _arg(self, instruction: Instruction) -> None:
        for raw in words.raw_words(instruction.value):
            name, equals, default = raw.partition("=")
            value = self._variables.inherited(name)
            if equals and name not in self._variables.build_args:
                value = words.expand(default, self._scope())
            if value is not None:
                self.args[name] = value

    async def _user(self, instruction: Instruction) -> None:
        self.user = words.expand(instruction.value, self._scope())

    async def _shell(self, instruction: Instruction) -> None:
        argv = instruction.json_words()
        if not argv:
            raise BuildError('needs the JSON form: SHELL ["executable", "parameter"]')
        self.shell = argv

    async def _cmd(self, instruction: Instruction) -> None:
        self.cmd = self._command(instruction)
        self._cmd_is_own = True

    async def _entrypoint(self, instruction: Instruction) -> None:
        self.entrypoint = self._command(instruction)
        if not self._cmd_is_own:
            self.cmd = []

    async def _label(self, instruction: Instruction) -> None:
        self.labels.update(words.assignments(instruction.value, self._scope()))

    async def _maintainer(self, instruction: Instruction) -> None:
        self.labels["maintainer"] = instruction.value

    async def _expose(self, instruction: Instruction) -> None:
        for port in words.split(instruction.value, self._scope()):
            number, _, protocol = port.partition("/")
            first, _, last = number.partition("-")
            if not first.isdecimal() or (last and not last.isdecimal()):
                raise BuildError(f"{port} is not a port")
            name = f"{number}/{protocol or 'tcp'}"
            if name not in self.ports:
                self.ports.append(name)

    async def _volume(self, instruction: Instruction) -> None:
        scope = self._scope()
        paths = instruction.json_words()
        if paths is None:
            paths = words.split(instruction.value, scope)
        for path in paths:
            if path not in self.volumes:
                self.volumes.append(path)
            # Docker has it made by whoever starts a container: a directory of the image does that
            if not self._view().is_dir(self._absolute(path)):
                directory = self._absolute(path).rstrip("/") or "/"
                self.layers.append(await self._maker.directory(self.layers, directory))

    async def _stopsignal(self, instruction: Instruction) -> None:
        self.stop_signal = words.expand(instruction.value, self._scope())

    async def _healthcheck(self, instruction: Instruction) -> None:
        only_flags(instruction, *_HEALTH_FLAGS)
        kind, _, rest = instruction.value.partition(" ")
        if kind.upper() == "NONE" and not rest.strip():
            self.healthcheck = ["NONE"]
        elif kind.upper() == "CMD" and rest.strip():
            inner = Instruction("CMD", rest.strip())
            argv = inner.json_words()
            self.healthcheck = ["CMD", *argv] if argv else ["CMD-SHELL", rest.strip()]
        else:
            raise BuildError("needs the form: HEALTHCHECK [options] CMD command, or NONE")

    async def _onbuild(self, instruction: Instruction) -> None:
        if instruction.trigger is not None:
            self.onbuild.append(instruction.trigger.source)

    # ── helpers ─────────────────────────────────────────────────────────────────────────────

    def _command(self, instruction: Instruction) -> list[str]:
        argv = instruction.json_words()
        if argv is not None:
            return argv
        return [*(self.shell or _DEFAULT_SHELL), instruction.value] if instruction.value else []

    def _scope(self) -> dict[str, str]:
        return {**self.args, **self.env}

    def _run_env(self) -> dict[str, str]:
        return {"PATH": DEFAULT_PATH, **self.args, **self.env, **self._secret_env}

    def _absolute(self, path: str) -> str:
        joined = posixpath.join(self.workdir or "/", path)
        normal = posixpath.normpath(joined)
        normal = "/" + normal.lstrip("/")
        ends_open = path.endswith(("/", "/.")) or path == "."
        return normal + "/" if ends_open and normal != "/" else normal

    def _view(self) -> MergedView:
        return self._maker.view(self.layers)


def _unpacked(selection: Selection, place: Path) -> Selection:
    """``selection``, or what is in it if it is one archive."""
    if selection.is_tree or len(selection.files) != 1:
        return selection
    file = next(iter(selection.files.values()))
    if not fetching.is_archive(file):
        return selection
    assert file.path is not None
    return fetching.unpack(file.path, place)


def _run_network(instruction: Instruction) -> str:
    only_flags(instruction, "mount", "network", "security")
    network = instruction.flag("network")
    if network not in ("", "default", "none"):
        raise BuildError(f"--network={network} is not allowed here: there are default and none")
    if instruction.flag("security") not in ("", "sandbox"):
        raise BuildError("builds cannot run outside their sandbox (--security=insecure)")
    return "none" if network == "none" else ""


def _shell_script(instruction: Instruction) -> tuple[str, Heredoc | None]:
    """What the shell is given, and the script that it is to run, if the instruction holds one."""
    if not instruction.heredocs:
        return instruction.value, None
    first = instruction.heredocs[0]
    is_whole = len(words.raw_words(instruction.value)) == 1
    if is_whole and not first.body.startswith("#!"):
        return first.body, None
    if is_whole:
        return _script_path(first), first
    documents = "".join(f"{document.body}{document.name}\n" for document in instruction.heredocs)
    return f"{instruction.value}\n{documents}", None


def _script_path(script: Heredoc) -> str:
    return f"/dev/pipes/{posixpath.basename(script.name) or 'script'}"


def only_flags(instruction: Instruction, *known: str) -> None:
    """Raises ``BuildError`` for a flag that is not one of ``known``."""
    for flag, _ in instruction.flags:
        if flag not in known:
            raise BuildError(f"{instruction.name} has no flag --{flag} here")


def _octal(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise BuildError(f"--chmod needs an octal number, got {json.dumps(text)}")
    return mode
