"""Bring a version back into the workspace, and see for ourselves that it is that version.

HEAD is not moved: `git checkout <tag>` would also bring back the code, the settings and the outputs of all other
stages, fails where work is not committed, and leaves the branch. Only this stage's entry of dvc.lock is taken from the
tag, and only its outputs change. `dvc status` then says honestly where today's settings differ from the version's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from engine.data.dataset import read_dataset
from engine.data.files import write_atomically
from engine.errors import ConfigError, DatasetError, RunFailed
from engine.generation.contents import GENERATED, kind_of
from engine.generation.integrity import check_unchanged
from engine.generation.verify import verify
from tasks.checkout_guard import check_nothing_is_lost, marked_as_begun, status_of
from tasks.dvc_objects import MAX_LISTED, Held, cache_of, fetched
from tasks.version_entry import Version
from tasks.version_list import find_version
from tasks.workspace import LOCK_FILE, dvc, file_of_tag, git, locked_stages, owned, why_no_workspace


@dataclass(frozen=True)
class Restored:
    """A version that is back: its outputs (paths from the workspace), and how many files were read and compared.

    differs: parents and settings of the stage that are not those of the version, in words; None where all are.
    """

    version: Version
    outputs: tuple[str, ...]
    files: int
    differs: str | None = None


def checkout(name: str, workspace: Path | None = None, force: bool = False) -> Restored:
    """Bring the outputs of a version back: from DVC's cache, or from its remote where the cache lacks them.

    Every object is compared with its hash before the workspace is touched, and every file again afterwards.

    Args:
        name: the version's tag.
        force: give up changes of the outputs that are in no version.

    Raises:
        ConfigError: no workspace, or no such version; lists what there is.
        RunConflict: the outputs have changes that would be lost. Nothing was changed.
        RunFailed: objects of the version are missing or damaged; says which, and what to do.
    """
    workspace = Path(workspace or Path())
    reason = why_no_workspace(workspace)
    if reason:
        raise ConfigError(f"No version can be brought back: {reason}.")
    with owned(workspace):
        version = find_version(workspace, name)
        entry = _entry_of(workspace, version)
        outputs = [output for output in entry.get("outs", ()) if "md5" in output]
        # What DVC's cache does not hold (`cache: false`) is in git.
        by_git = [output["path"] for output in outputs if file_of_tag(workspace, name, output["path"]) is not None]
        cached = [output for output in outputs if output["path"] not in by_git]
        paths = [output["path"] for output in cached]
        if not force:
            check_nothing_is_lost(workspace, version, paths, by_git)
        held = fetched(workspace, version, cache_of(workspace), cached)
        with marked_as_begun(workspace):
            _write_lock(workspace, version.stage, entry)
            if paths:
                words = ["checkout", *(["--force"] if force else []), "--", *paths]
                dvc(workspace, words, f"bring {name} back")
            if by_git:
                git(workspace, ["restore", f"--source=refs/tags/{name}", "--", *by_git], f"bring {name} back")
        files = _check(workspace, version, held, paths)
        return Restored(version, (*paths, *by_git), files, _differences(workspace, version.stage))


def _entry_of(workspace: Path, version: Version) -> Mapping:
    """What the version's dvc.lock says of its stage, which dvc.yaml must still have."""
    content = file_of_tag(workspace, version.name, LOCK_FILE)
    entry = locked_stages(content or b"", f"{LOCK_FILE} of {version.name}").get(version.stage)
    if not entry:
        raise ConfigError(f"{version.name} holds no outputs: its {LOCK_FILE} has no stage '{version.stage}'.")
    stages = (yaml.safe_load((workspace / "dvc.yaml").read_text(encoding="utf-8")) or {}).get("stages") or {}
    if version.stage not in stages:
        raise ConfigError(
            f"{version.name} is of stage '{version.stage}', which dvc.yaml no longer has. Bring the stage back "
            f"(`git show {version.name}:./dvc.yaml`), or use `git checkout {version.name}` and `dvc checkout`."
        )
    return entry


def _write_lock(workspace: Path, stage: str, entry: Mapping) -> None:
    path = workspace / LOCK_FILE
    content = yaml.safe_load(path.read_bytes()) if path.is_file() else {"schema": "2.0"}
    content["stages"] = (content.get("stages") or {}) | {stage: entry}
    write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def _check(workspace: Path, version: Version, held: Sequence[Held], paths: Sequence[str]) -> int:
    """Compare what lies in the workspace now; returns the number of files."""
    files = [one for one in held if not one.listing]
    problems = [f"{one.path} {found}" for one in files if (found := one.problem(workspace / one.path))]
    for path in paths:
        problems += [] if problems else _problems_of_dataset(workspace / path)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:MAX_LISTED])
        raise RunFailed(
            f"{version.name} was brought back, but is not as it was recorded ({len(problems)} problems):\n{listed}\n"
            f"Do not use it. Delete the files that are named and give `de checkout {version.name} --force`; where that "
            "does not help, the disk is bad, or the dataset was not whole when it was recorded."
        )
    return len(files)


def _problems_of_dataset(folder: Path) -> list[str]:
    """Of a generated dataset, what its own plan and manifest say; shards that are elsewhere are not asked."""
    if kind_of(folder) != GENERATED:
        return []
    if (folder / "plan.json").is_file():
        return verify(folder)
    try:
        check_unchanged(folder, read_dataset(folder, "annotations").images)
    except DatasetError as error:
        return [str(error)]
    return []


def _differences(workspace: Path, stage: str) -> str | None:
    changed = [f"{path} ({state})" for path, state in status_of(workspace, stage, "changed deps").items()]
    return ", ".join(changed) or None
