"""Makes a version of what a stage's output holds now: the card, DVC's commit, git's commit and tag, the push."""

from __future__ import annotations

from collections.abc import Mapping

from engine.errors import RunFailed
from engine.generation.contents import GENERATED, content_of, kind_of
from engine.report.dataset_card import write_card
from tasks.dvc_objects import has_remote
from tasks.stages import Stage
from tasks.version_entry import Version, write_version
from tasks.version_facts import facts_of, folder_of, out_of, outputs_of
from tasks.version_list import list_versions
from tasks.workspace import LOCK_FILE, commit_files, dvc, file_of_tag, git, locked_stage, locked_stages


def commit_stage(wanted: Stage) -> None:
    """What is there becomes what DVC holds for the stage. Raises RunFailed."""
    dvc(wanted.workspace, ["commit", "-f", wanted.name], f"commit stage '{wanted.name}'")


def make_version(wanted: Stage, dataset: str) -> str:
    """Commit the stage to DVC, and commit and tag it in git, inside `owned`.

    Returns:
        The tag: of the version that there is of this very content, else of a new one.

    Raises:
        RunFailed: DVC or git failed. DatasetError, ModelError: the output is broken.
    """
    versions = list_versions(wanted.workspace)
    own = [version for version in versions if version.dataset == dataset]
    out = out_of(wanted)
    generated = out.is_dir() and kind_of(out) == GENERATED
    # A card names its version, so content that has one is tried under that name first.
    content = content_of(out) if generated else {}
    names = [version.name for version in own if content and version.content == content][-1:]
    for name in [*names, f"{dataset}-v{max((version.number for version in own), default=0) + 1}"]:
        if generated:
            write_card(out, name, *(folder_of(wanted, option) for option in ("data", "ldm", "adapter")))
        commit_stage(wanted)
        locked = locked_stage(wanted.workspace, wanted.name)
        same = next((version.name for version in reversed(own) if _is_recorded(wanted, locked, version)), None)
        if same:
            return same
    return _tag(wanted, facts_of(wanted, locked, name, versions))


def _is_recorded(wanted: Stage, locked: Mapping, version: Version) -> bool:
    """Whether dvc.lock said of the stage, in that version, what it says now."""
    if version.outputs and version.outputs != outputs_of(locked):
        return False
    content = file_of_tag(wanted.workspace, version.name, LOCK_FILE)
    return content is not None and locked_stages(content, version.name).get(wanted.name) == locked


def _tag(wanted: Stage, version: Version) -> str:
    """Commit what pins this version to git, and tag it."""
    workspace, tag = wanted.workspace, version.name
    names = ["dvc.yaml", LOCK_FILE, "params.yaml", *wanted.git_files]
    files = [name for name in names if (workspace / name).exists()]
    # DVC hides its outputs from git in .gitignore files beside them.
    files += git(workspace, ["ls-files", "-mo", "--exclude-standard", "--", "*.gitignore"], "list files").splitlines()
    files.append(write_version(workspace, version))
    commit_files(workspace, files, f"{tag}: stage {wanted.name}")
    git(workspace, ["tag", "-a", tag, "-m", f"{tag}: outputs of stage {wanted.name}"], "tag the version")
    return tag


def push_stage(wanted: Stage) -> str | None:
    """Send the stage's outputs to DVC's remote, where there is one. Returns why it failed, if it did."""
    if not has_remote(wanted.workspace):
        return None
    try:
        dvc(wanted.workspace, ["push", wanted.name], f"push stage '{wanted.name}' to DVC's remote")
    except RunFailed as error:
        return f"{error}\nThe version is whole in this workspace; `dvc push {wanted.name}` tries again."
    return None
