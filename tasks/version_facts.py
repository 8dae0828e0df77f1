"""What a version's file says when it is made: size, parents, digests, figures; from dvc.lock and the folder itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from engine.errors import DatasetError, ModelError
from engine.evaluation.results import read_results
from engine.generation.contents import ADAPTER, GENERATED, content_of, kind_of, read_manifest
from engine.ldm import embedded_folder
from tasks.settings import EMBEDDED
from tasks.stages import Stage, git_files_of
from tasks.version_entry import Version

PARENTS = ("data", "real", "generated", "base", "ldm", "adapter")


def facts_of(stage: Stage, locked: Mapping, name: str, known: Sequence[Version]) -> Version:
    """The version that the stage's output is now.

    Args:
        locked: what dvc.lock says of the stage.
        known: versions that there are, among which its parents may be.

    Raises:
        DatasetError, ModelError: the output is a broken dataset or model.
    """
    out = out_of(stage)
    kind, content = kind_of(out), content_of(out)
    outputs = outputs_of(locked)
    return Version(
        name,
        stage.name,
        kind,
        sum(output.get("size") or 0 for output in outputs),
        sum(output.get("nfiles") or 1 for output in outputs),
        outputs,
        _parents(stage, locked, out, kind, known),
        content,
        _metrics(stage, out, kind, content),
    )


def outputs_of(locked: Mapping) -> tuple[dict, ...]:
    """The outputs in dvc.lock: path, md5, size, and of folders nfiles."""
    return tuple(
        {key: output[key] for key in ("path", "md5", "size", "nfiles") if key in output}
        for output in locked.get("outs", ())
    )


def out_of(stage: Stage) -> Path:
    """The folder that the stage's step writes."""
    return stage.workspace / stage.options.get("out", "")


def folder_of(stage: Stage, option: str) -> Path | None:
    """The folder that an option of the step names; None where it is none on this machine."""
    value = stage.options.get(option)
    if value == EMBEDDED and option in ("ldm", "base"):
        return embedded_folder()
    return stage.workspace / value if value and (stage.workspace / value).is_dir() else None


def comparison_metrics(results: Mapping) -> dict:
    """What a version keeps of a comparison on it; `results` is the content of results.json."""
    delta = results["delta"]
    return {
        "difference": delta["mean"],
        "ci95": list(delta["ci95"]),
        "outcome": delta["verdict"],
        "baseline": delta["baseline"],
        "treatment": delta["treatment"],
        "seeds": len(results["seeds"]),
        "detector": results["settings"].get("detector", {}).get("name"),
        "test_sha256": results["data"].get("test", {}).get("sha256"),
    }


def compared_content(results: Mapping) -> Mapping[str, str | None]:
    """Digests of the generated dataset that a comparison was made on; none where its results.json has none."""
    return (results.get("trained_on") or {}).get("generated", {}).get("content") or {}


def _parents(stage: Stage, locked: Mapping, out: Path, kind: str, known: Sequence[Version]) -> dict[str, dict]:
    pinned = {stage.comparable({"data": dep["path"]})["data"]: dep for dep in locked.get("deps", ()) if "path" in dep}
    digests, parents = _digests(out, kind), {}
    for option in PARENTS:
        if option not in stage.options:
            continue
        dep = pinned.get(stage.comparable({option: stage.options[option]})[option], {})
        parent = {"given": stage.options[option], **digests.get(option, {})}
        if "md5" in dep:
            version = _version_with(dep["md5"], known)
            parent |= {"md5": dep["md5"]} | ({"version": version} if version else {})
        parents[option] = parent
    return parents


def _version_with(md5: str, known: Sequence[Version]) -> str | None:
    """The latest version that has this very output."""
    same = [version for version in known if any(output.get("md5") == md5 for output in version.outputs)]
    return max(same, key=lambda version: version.date).name if same else None


def _digests(out: Path, kind: str) -> dict[str, dict]:
    """What the output itself says of its parents: the same wherever they lie."""
    if kind == GENERATED:
        manifest = read_manifest(out)
        model, adapter = (manifest["identity"].get(name) or {} for name in ("ldm", "adapter"))
        data = manifest["data"]
    elif kind == ADAPTER:
        card = _card(out)
        model, adapter, data = card["ldm"], {}, (card.get("training") or {}).get("data_sha256")
    else:
        return {}
    named = {
        "data": {"sha256": data},
        "ldm": {key: model.get(key) for key in ("id", "revision", "weights_sha256")},
        "adapter": {"weights_sha256": adapter.get("weights_sha256")},
    }
    return {name: {k: v for k, v in values.items() if v is not None} for name, values in named.items()}


def _metrics(stage: Stage, out: Path, kind: str, content: Mapping) -> dict:
    validation = None
    if kind == GENERATED:
        validation = (read_manifest(out)["identity"].get("adapter") or {}).get("validation")
    elif kind == ADAPTER:
        validation = _card(out).get("validation")
    metrics = {} if validation is None else {"adapter_ap": validation.get("map")}
    compared = next((r for r in _comparisons(stage.workspace) if content and compared_content(r) == content), None)
    return metrics | ({"comparison": comparison_metrics(compared)} if compared else {})


def _comparisons(workspace: Path) -> Iterator[dict]:
    """The usable results.json that the workspace's stages keep in git."""
    stages = (yaml.safe_load((workspace / "dvc.yaml").read_text(encoding="utf-8")) or {}).get("stages") or {}
    for entry in stages.values():
        for path in git_files_of(entry):
            if Path(path).name == "results.json" and (workspace / path).is_file():
                try:
                    yield read_results(workspace / path)
                except DatasetError:  # a comparison that was cut off says nothing of this version
                    continue


def _card(folder: Path) -> dict:
    from engine.adapter.adapter import read_card

    try:
        return read_card(folder)
    except ModelError as error:
        raise DatasetError(f"No version can be made of it: {error}") from None
