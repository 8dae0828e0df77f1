from __future__ import annotations

import json
import shutil

import pytest
from conftest import write_source
from typer.testing import CliRunner

from engine.config import load_settings
from engine.data.dataset import read_dataset
from engine.errors import DatasetError
from engine.evaluation.compare import compare
from engine.generation.contents import read_manifest
from engine.generation.integrity import check_unchanged
from engine.generation.merge import merge
from engine.generation.verify import verify
from engine.report.dataset_card import write_card
from flows.cli import app


@pytest.fixture
def generated(unbroken, tmp_path):
    return shutil.copytree(unbroken, tmp_path / "out")


def check(folder) -> None:
    check_unchanged(folder, read_dataset(folder, "annotations").images)


def test_a_whole_dataset_and_a_copy_of_its_merged_files_pass(generated):
    check(generated)
    shutil.rmtree(generated / "shards")
    (generated / "plan.json").unlink()
    check(generated)


def test_a_flipped_byte_is_named_and_without_shards_still_refused(generated):
    image = sorted((generated / "images").iterdir())[2]
    content = bytearray(image.read_bytes())
    content[-10] ^= 1
    image.unlink()  # it may be a link to the shard's own
    image.write_bytes(content)
    with pytest.raises(DatasetError, match=f"images/{image.name} has changed.*It is not used"):
        check(generated)
    shutil.rmtree(generated / "shards")
    with pytest.raises(DatasetError, match="images are not those"):
        check(generated)


def test_a_missing_image_a_changed_box_and_a_torn_manifest_are_refused(generated):
    dataset = read_dataset(generated, "annotations")
    image = generated / "images" / dataset.images[0].file_name
    image.rename(generated / "away.jpg")
    with pytest.raises(DatasetError, match=f"images/{image.name} is not readable"):
        check_unchanged(generated, dataset.images)
    (generated / "away.jpg").rename(image)
    annotations = json.loads((generated / "annotations.json").read_bytes())
    annotations["annotations"][0]["bbox"][0] += 0.5
    (generated / "annotations.json").write_text(json.dumps(annotations))
    with pytest.raises(DatasetError, match="annotations.json is not the one"):
        check_unchanged(generated, dataset.images)
    (generated / "manifest.json").write_bytes(b'{"version":')
    with pytest.raises(DatasetError, match="manifest.json is not readable"):
        check_unchanged(generated, dataset.images)


def test_a_comparison_does_not_start_on_a_changed_dataset(generated, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.evaluation.compare.run_jobs", lambda *_: pytest.fail("it trains"))
    data = generated.parent / "data"
    write_source(data)
    shutil.copy(data / "train.json", data / "test.json")
    image = min((generated / "images").iterdir())
    image.unlink()
    image.write_bytes(b"junk")
    with pytest.raises(DatasetError, match=f"images/{image.name} has changed"):
        compare(data, generated, tmp_path / "comparison", load_settings())
    assert not (tmp_path / "comparison").exists()


def test_a_changed_dataset_is_not_exported(generated, tmp_path):
    command = ["export", str(generated), str(tmp_path / "sent"), "--format", "coco"]
    image = min((generated / "images").iterdir())
    whole = image.read_bytes()
    image.unlink()
    image.write_bytes(b"junk")
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and f"images/{image.name} has changed" in refused.stderr
    assert not (tmp_path / "sent").exists()
    image.write_bytes(whole)
    assert CliRunner().invoke(app, command).exit_code == 0


def test_a_card_in_the_folder_is_known_and_one_of_other_labels_is_named_and_goes_with_the_next_merge(generated):
    card = write_card(generated, "coco-de-v1", None, None, None)
    check(generated)
    assert verify(generated) == []
    merge(generated)
    assert card.exists() and verify(generated) == []
    now = read_manifest(generated)["annotations_sha256"]
    card.write_text(card.read_text().replace(now, "0" * 64))
    assert verify(generated) == ["CARD.md tells of another annotations.json"]
    check(generated)  # whoever trains is not kept from it
    merge(generated)
    assert not card.exists() and verify(generated) == []
