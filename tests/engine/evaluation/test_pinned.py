"""What pins the data of a comparison."""

from __future__ import annotations

import json
import shutil

import pytest

from engine.baselines.making import make_baseline
from engine.baselines.request import BaselineRequest
from engine.config import load_settings
from engine.data.dataset import read_dataset
from engine.data.files import file_sha256
from engine.errors import DatasetError
from engine.evaluation.pinned import no_version, trained_on
from engine.generation.contents import content_of, kind_of

MANIFEST = {name: name for name in ("plan", "annotations_sha256", "images_sha256")}
MANIFEST |= {"counts": {}, "classes": [], "settings": {}, "identity": {}, "data": "d", "seed": 0}


def test_real_data_by_its_pictures_generated_data_by_its_manifest_and_decisions(world_folder, tmp_path):
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "manifest.json").write_text(json.dumps(MANIFEST))
    train = read_dataset(world_folder, "train")
    asked = []

    def version_of(content):
        asked.append(content)
        return f"v{len(asked)}"

    found = trained_on(
        (world_folder, {"train": train.digest()}), (drawn, train), {"b": (world_folder, train)}, version_of
    )
    assert [found["real"]["version"], found["generated"]["version"], found["further"]["b"]["version"]] == [
        "v1",
        "v2",
        "v3",
    ]
    assert found["generated"]["content"] == {name: name for name in list(MANIFEST)[:3]} | {"decisions_sha256": None}
    assert found["further"]["b"]["content"] == {"train": train.digest()} and found["generated"]["folder"] == "drawn"
    (drawn / "decisions.json").write_text("{}")
    assert content_of(drawn)["decisions_sha256"] == file_sha256(drawn / "decisions.json")
    assert trained_on((drawn, {}), (drawn, train), {}, no_version)["generated"]["version"] is None
    (drawn / "manifest.json").write_text('{"plan": 1')
    with pytest.raises(DatasetError, match="manifest.json is not readable.*de resume"):
        content_of(drawn)


def test_a_baseline_is_pinned_by_what_it_wrote(world_folder, tmp_path):
    make_baseline("copy_paste", BaselineRequest(tmp_path / "pasted", load_settings(), data=world_folder, images=2))
    train, pasted = read_dataset(world_folder, "train"), read_dataset(tmp_path / "pasted", "annotations")
    found = trained_on(
        (world_folder, {}), (tmp_path / "pasted", pasted), {"b": (tmp_path / "pasted", train)}, no_version
    )
    manifest = json.loads((tmp_path / "pasted" / "manifest.json").read_text())
    wanted = {name: manifest[name] for name in ("annotations_sha256", "images_sha256")} | {"decisions_sha256": None}
    assert (
        found["generated"]["content"] == wanted == content_of(tmp_path / "pasted") == found["further"]["b"]["content"]
    )


def test_each_kind_of_folder_has_its_digests(world_folder, tmp_path):
    data = shutil.copytree(world_folder, tmp_path / "data")
    before = content_of(data)
    assert kind_of(data) == "dataset" and set(before) == {"train", "val", "test"}
    image = read_dataset(data, "val").images[0]
    shutil.copy(data / "images" / read_dataset(data, "train").images[0].file_name, data / "images" / image.file_name)
    after = content_of(data)
    assert {split for split in before if before[split] != after[split]} == {"val"}
    assert kind_of(tmp_path) == "other" and content_of(tmp_path) == {}
