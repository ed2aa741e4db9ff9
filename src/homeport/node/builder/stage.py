"""The state of a build between two instructions, and what each instruction does to it."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from homeport.link.messages import ImageConfig
from homeport.node.builder import words
from homeport.node.builder.copying import CopyPlan, owner_of
from homeport.node.builder.dockerfile import Instruction
from homeport.node.builder.errors import BuildError
from homeport.node.builder.merged import MergedView
from homeport.node.builder.steps import LayerMaker, RunStep
from homeport.node.runtime.port import DEFAULT_PATH

_DEFAULT_SHELL = ["/bin/sh", "-c"]
_WITHOUT_EFFECT = ("LABEL", "EXPOSE", "STOPSIGNAL", "MAINTAINER", "HEALTHCHECK", "VOLUME")
_PREDEFINED_ARGS = {
    "TARGETPLATFORM": "linux/amd64",
    "TARGETOS": "linux",
    "TARGETARCH": "amd64",
    "BUILDPLATFORM": "linux/amd64",
    "BUILDOS": "linux",
    "BUILDARCH": "amd64",
}


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


class Stage:
    """One FROM and what follows it: layers so far, configuration, arguments."""

    def __init__(
        self,
        layers: list[str],
        config: ImageConfig,
        variables: BuildVariables,
        secret_env: dict[str, str],
        maker: LayerMaker,
    ) -> None:
        self.layers = list(layers)
        self._variables = variables
        self._secret_env = secret_env
        self._maker = maker
        self.env = dict(config.env)
        self.workdir = config.workdir
        self.user = config.user
        self.entrypoint = list(config.entrypoint)
        self.cmd = list(config.cmd)
        self.shell = list(config.shell)
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
        }

    @property
    def config(self) -> ImageConfig:
        """The image's configuration as it stands."""
        return ImageConfig(
            env=dict(self.env),
            workdir=self.workdir,
            user=self.user,
            entrypoint=list(self.entrypoint),
            cmd=list(self.cmd),
            shell=list(self.shell),
        )

    async def execute(self, instruction: Instruction) -> None:
        """Carry out one instruction. Raises ``BuildError`` (without the instruction's name)."""
        handler = self._handlers.get(instruction.name)
        if handler is not None:
            await handler(instruction)
        elif instruction.name not in _WITHOUT_EFFECT:
            raise BuildError(f"Homeport's image builder does not know {instruction.name}")

    # ── instructions that make layers ───────────────────────────────────────────────────────

    async def _run(self, instruction: Instruction) -> None:
        network = _run_network(instruction)
        argv = instruction.json_words()
        if argv is None:
            argv = [*(self.shell or _DEFAULT_SHELL), _shell_script(instruction)]
        step = RunStep(
            instruction=instruction.text,
            argv=tuple(argv),
            env=self._run_env(),
            workdir=self.workdir or "/",
            user=self.user,
            network=network,
        )
        self.layers.append(await self._maker.run(self.layers, step))

    async def _copy(self, instruction: Instruction) -> None:
        if "from" in instruction.flags:
            raise BuildError("COPY --from is not supported by Homeport's image builder yet")
        _only_flags(instruction, "chown", "chmod", "link")
        await self._copy_from_context(instruction)

    async def _add(self, instruction: Instruction) -> None:
        _only_flags(instruction, "chown", "chmod", "link")
        for word in instruction.json_words() or words.split(instruction.value, self._scope()):
            if "://" in word or word.startswith("git@"):
                raise BuildError(
                    "ADD of a URL is not supported by Homeport's image builder yet; "
                    "download it with RUN (curl, wget, git)"
                )
            if word.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
                raise BuildError(
                    "ADD does not unpack archives in Homeport's image builder yet; "
                    "COPY it and unpack it with RUN tar"
                )
        await self._copy_from_context(instruction)

    async def _copy_from_context(self, instruction: Instruction) -> None:
        scope = self._scope()
        names = instruction.json_words()
        names = (
            words.split(instruction.value, scope)
            if names is None
            else [words.expand(name, scope) for name in names]
        )
        if len(names) < 2:
            raise BuildError("needs at least one source and a destination")
        *sources, destination = names
        inline = {
            document.name: (
                words.expand_document(document.body, scope) if document.expand else document.body
            )
            for document in instruction.heredocs
        }
        mode_text = instruction.flags.get("chmod", "")
        mode = _octal(mode_text) if mode_text else None
        selections = await self._maker.select(sources, inline)
        owner = owner_of(words.expand(instruction.flags.get("chown", ""), scope), self._view())
        plan = CopyPlan(tuple(selections), self._absolute(destination), owner, mode)
        self.layers.append(
            await self._maker.copy(self.layers, instruction.text, plan, tuple(sources), inline)
        )

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

    # ── helpers ─────────────────────────────────────────────────────────────────────────────

    def _command(self, instruction: Instruction) -> list[str]:
        argv = instruction.json_words()
        return argv if argv is not None else [*(self.shell or _DEFAULT_SHELL), instruction.value]

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


def _run_network(instruction: Instruction) -> str:
    for flag, value in instruction.flags.items():
        if flag == "network" and value in ("default", "none"):
            continue
        if flag == "security" and value == "sandbox":
            continue
        shown = f"--{flag}={value}" if value else f"--{flag}"
        raise BuildError(f"RUN {shown} is not supported by Homeport's image builder yet")
    return "none" if instruction.flags.get("network") == "none" else ""


def _shell_script(instruction: Instruction) -> str:
    if not instruction.heredocs:
        return instruction.value
    first = instruction.heredocs[0]
    only = instruction.value.strip().lstrip("<-").strip("'\"") == first.name
    if only and not first.body.startswith("#!"):
        return first.body
    if only:
        raise BuildError(
            "RUN with a here-document that starts with #! is not supported yet; "
            "write: RUN <interpreter> <<EOF"
        )
    documents = "".join(f"{document.body}{document.name}\n" for document in instruction.heredocs)
    return f"{instruction.value}\n{documents}"


def _only_flags(instruction: Instruction, *known: str) -> None:
    for flag in instruction.flags:
        if flag not in known:
            raise BuildError(
                f"{instruction.name} --{flag} is not supported by Homeport's image builder yet"
            )


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise BuildError(f"--chmod needs an octal number, got {json.dumps(text)}") from None
