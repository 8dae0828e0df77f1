"""Reads a stage of dvc.yaml: which `de` step it runs, with which options and settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from engine.errors import ConfigError
from engine.sections import Settings
from tasks.settings import open_settings

PATHS = {"data", "ldm", "adapter", "out", "real", "generated", "base", "nights"}
WITH_LDM = {"adapt-ldm", "train-adapter", "generate"}  # steps whose --ldm, where it is not given, is ldm.id
LOOKS_ON = {"compare"}  # steps whose --ldm only reads pictures: settings are those that go with ldm.id
# They say how the work is done, or hold settings that are compared by value.
NOT_COMPARED = {"workers", "params", "set"}


@dataclass(frozen=True)
class Stage:
    """A stage whose (first) command is a `de` step.

    Attributes:
        options: the step's options by name without dashes; values as text.
        defaults: what the step takes for options that are not given, likewise.
        settings: what the step would run with now.
        sections: the sections of the settings that the stage depends on (its `params`).
        git_files: metrics and plots that DVC leaves to git.
        workspace: folder that its paths are relative to.
    """

    name: str
    options: Mapping[str, str]
    defaults: Mapping[str, str]
    settings: Settings
    sections: tuple[str, ...]
    git_files: tuple[str, ...]
    workspace: Path

    def comparable(self, options: Mapping[str, object]) -> dict[str, str]:
        """Options in one spelling: paths made absolute, defaults filled in, those that do not matter left out."""
        given = {name: value for name, value in options.items() if value is not None and name not in NOT_COMPARED}
        return {
            name: str((self.workspace / str(value)).absolute().resolve()) if name in PATHS else str(value)
            for name, value in {**self.defaults, **given}.items()
        }

    def same_path(self, name: str, value: object) -> bool:
        """Is the option `name` of the stage this path?"""
        return self.comparable({name: value}) == self.comparable({name: self.options.get(name)})


def read_stage(workspace: Path, name: str) -> Stage:
    """Read stage `name` of `workspace`/dvc.yaml.

    Raises:
        ConfigError: its command is not a `de` step, or holds ${...}, or the settings are faulty.
    """
    entry = yaml.safe_load((workspace / "dvc.yaml").read_text(encoding="utf-8"))["stages"][name]
    commands = entry["cmd"] if isinstance(entry["cmd"], list) else [entry["cmd"]]
    tokens = shlex.split(commands[0])
    where = f"{workspace / 'dvc.yaml'}, stage '{name}'"
    if "${" in " ".join(commands):
        raise ConfigError(f"{where}: write values out instead of ${{...}}: a shell would read what is put in there.")
    if "de" not in tokens or len(tokens) < tokens.index("de") + 2:
        raise ConfigError(f"{where}: its command must be a `de` step, not: {commands[0]}")
    step, *rest = tokens[tokens.index("de") + 1 :]
    options, overrides = _options(rest, where)
    model = None if step in LOOKS_ON else options.get("ldm")
    _, settings = open_settings(options.get("params"), overrides, model, workspace)
    defaults = {"ldm": settings.ldm.id} if step in WITH_LDM else {}
    return Stage(name, options, defaults, settings, _sections(entry), git_files_of(entry), workspace)


def _options(tokens: Sequence[str], where: str) -> tuple[dict[str, str], list[str]]:
    """`--name value` and `--name=value` pairs, and the values of --set."""
    options, overrides, rest = {}, [], list(tokens)
    while rest:
        word = rest.pop(0)
        name, joined, value = word.partition("=")
        if not name.startswith("--") or not (joined or rest):
            raise ConfigError(f"{where}: cannot compare '{word}'; write every option as --name value.")
        value = value if joined else rest.pop(0)
        if name == "--set":
            overrides.append(value)
        else:
            options[name[2:]] = value
    return options, overrides


def _sections(entry: Mapping) -> tuple[str, ...]:
    """First parts of the stage's params: `generation.seed` -> generation; a file's mapping lists its keys."""
    names = []
    for item in entry.get("params", ()):
        names += [item] if isinstance(item, str) else [key for keys in item.values() for key in keys or ()]
    return tuple(dict.fromkeys(name.partition(".")[0] for name in names))


def git_files_of(entry: Mapping) -> tuple[str, ...]:
    """Outputs marked `cache: false`: small files that git keeps."""
    entries = [item for kind in ("outs", "metrics", "plots") for item in entry.get(kind, ())]
    outputs = [item for item in entries if isinstance(item, Mapping)]
    return tuple(
        path for o in outputs for path, flags in o.items() if isinstance(flags, Mapping) and flags.get("cache") is False
    )
