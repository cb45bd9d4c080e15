"""Runs containers as ordinary processes: the image's own files, interpreter, entry point and variables, and the
manifest's variables, files and arguments. Only what a network and mounts would do is done by rewriting addresses and
paths."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local_stack.ports import LOCALHOST
from local_stack.processes import Processes
from tests.deploy.image import Image
from tests.deploy.manifests import Container
from tests.ports import lasting_port

_PATIENCE = 60.0


@dataclass
class Host:
    """One machine. `addresses`: what a name and port such as `scheduler-service:7007` stands for, here."""

    home: Path
    images: Mapping[str, Image]
    secrets: Mapping[str, str]  # by what `Container.mounted` calls them
    addresses: dict[str, str] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)  # of those inside that only one container listens on

    def __post_init__(self) -> None:
        self.processes = Processes(self.home / "logs", grace=_PATIENCE)

    async def __aenter__(self) -> Host:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.processes.stop()

    def place(self, container: Container, name: str) -> Running:
        """Gives a container its own ports and files; does not start it."""
        image = self.images[container.target]
        folder = self.home / name
        (folder / "tmp").mkdir(parents=True)
        inside = {*image.stage.exposed, *_named_ports(container)}
        ports = {port: self.ports.get(port) or lasting_port() for port in inside}
        return Running(self, container, image, name, folder, ports)

    def here(self, text: str) -> str:
        """The text with addresses as they are on this machine."""
        for address, local in self.addresses.items():
            text = text.replace(address, local)
        return text


def _named_ports(container: Container) -> set[int]:
    return {int(value) for name, value in container.environment.items() if name.endswith("_PORT")}


@dataclass
class Running:
    """One container of a host."""

    host: Host
    container: Container
    image: Image
    name: str
    folder: Path
    ports: dict[int, int]  # by the port inside

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    def address(self, port: int) -> str:
        return f"{LOCALHOST}:{self.ports[port]}"

    async def start(self) -> None:
        """Starts the image's entry point with the container's arguments, or else the image's command."""
        arguments = self.container.arguments or self.image.stage.command
        argv = self._argv((*self.image.stage.entrypoint, *arguments))
        await self.host.processes.start(self.name, argv, cwd=self._workdir)

    async def until_healthy(self, command: tuple[str, ...] = ()) -> None:
        """Returns once the health check's command, by default the image's, has exit code 0."""

        async def is_healthy() -> bool:
            code, _ = await self.run(command or self.image.stage.health)
            return code == 0

        await self.host.processes.wait_until(self.name, is_healthy, _PATIENCE)

    async def run(self, command: tuple[str, ...]) -> tuple[int, str]:
        """Another process in the container, such as a probe: its exit code and all that it said."""
        process = await asyncio.create_subprocess_exec(
            *self._argv(command), cwd=self._workdir, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode()

    async def stop(self) -> int:
        """SIGTERM; the exit code. Errors: TimeoutError if it takes longer than the orchestrator would wait."""
        async with asyncio.timeout(self.container.stop_seconds - self.container.pre_stop_seconds):
            return await self.host.processes.end(self.name)

    @property
    def _workdir(self) -> Path:
        return Path(self.image.inside(self.image.stage.workdir))

    def _argv(self, command: tuple[str, ...]) -> list[str]:
        environment = self.image.environment(self._environment(), self.tmp)
        bare = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        return [*bare, *self.image.argv([self._with_ports(word) for word in command])]

    def _environment(self) -> dict[str, str]:
        given = self.container.environment
        return {name: self._variable(name, value) for name, value in given.items()}

    def _variable(self, name: str, value: str) -> str:
        if value in self.container.mounted:
            return str(self._mounted(value))
        if value.startswith("/tmp/"):
            return str(self.tmp / value.removeprefix("/tmp/"))
        if value.isdecimal() and int(value) in self.ports and name.endswith("_PORT"):
            return str(self.ports[int(value)])
        return self.host.here(value)

    def _mounted(self, path: str) -> Path:
        file = self.folder / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.host.here(self.host.secrets[self.container.mounted[path]]))
        return file

    def _with_ports(self, word: str) -> str:
        return re.sub(r"\b\d+\b", lambda number: str(self.ports.get(int(number[0]), number[0])), word)
