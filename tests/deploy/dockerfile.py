"""The Dockerfile, read as far as its tests need it: each target with what it inherits."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


@dataclass(frozen=True)
class Copy:
    """`COPY`: from the build context, or from a stage."""

    stage: str | None
    sources: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Stage:
    """One `FROM`, with everything that it inherits; `parent` is a stage's name or an image's."""

    name: str
    parent: str
    steps: tuple[Copy | str, ...] = ()  # in order; a `RUN` as its text
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    exposed: frozenset[int] = frozenset()
    user: str = ""
    workdir: str = ""
    stop_signal: str = ""


def read_stages(text: str) -> dict[str, Stage]:
    """Every stage by its name. Errors: ValueError for an instruction that this reader does not know."""
    stages: dict[str, Stage] = {}
    for word, rest in _instructions(text):
        if word == "FROM":
            parent, _, name = re.split(r"\s+", rest)
            inherited = stages.get(parent, Stage(name, parent))
            stages[name] = replace(inherited, name=name, parent=parent)
        else:
            name = list(stages)[-1]
            stages[name] = _with(stages[name], word, rest)
    return stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for statement in "\n".join(lines).replace("\\\n", " ").splitlines():
        if statement.strip():
            word, _, rest = statement.strip().partition(" ")
            yield word, rest.strip()


def _with(stage: Stage, word: str, rest: str) -> Stage:
    match word:
        case "COPY":
            return replace(stage, steps=(*stage.steps, _copy(rest)))
        case "RUN":
            return replace(stage, steps=(*stage.steps, rest))
        case "ENV":
            return replace(stage, environment=stage.environment | _pairs(rest))
        case "LABEL":
            return replace(stage, labels=stage.labels | _pairs(rest))
        case "ENTRYPOINT":
            return replace(stage, entrypoint=_exec_form(rest))
        case "CMD":
            return replace(stage, command=_exec_form(rest))
        case "HEALTHCHECK":
            return replace(stage, health=() if rest == "NONE" else _exec_form(rest.partition(" CMD ")[2]))
        case "EXPOSE":
            return replace(stage, exposed=stage.exposed | {int(port) for port in rest.split()})
        case "USER":
            return replace(stage, user=rest)
        case "WORKDIR":
            return replace(stage, workdir=rest)
        case "STOPSIGNAL":
            return replace(stage, stop_signal=rest)
    raise ValueError(f"the tests do not know {word} yet")


def _copy(rest: str) -> Copy:
    words = rest.split()
    stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
    return Copy(stage, tuple(words[:-1]), words[-1])


def _pairs(rest: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(rest))


def _exec_form(rest: str) -> tuple[str, ...]:
    """Errors: ValueError for the shell form, whose shell would take the signals."""
    return tuple(json.loads(rest.strip()))
