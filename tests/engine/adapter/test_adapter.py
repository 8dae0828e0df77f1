import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.adapter.adapter import CARD, WEIGHTS, Adapter, build_adapter, build_reader, load_adapter, stem_input
from engine.adapter.pseudo_labels import label_pictures
from engine.adapter.train import train_adapter
from engine.config import load_settings
from engine.data.dataset import read_dataset, write_dataset
from engine.errors import DatasetError, ModelError
from engine.generation.draw import load_drawer
from engine.ldm.diffusion import load_ldm

SETTINGS = load_settings(
    None,
    [
        "adapter.steps=3",
        "adapter.batch_size=2",
        "adapter.width=32",
        "adapter.convs=1",
        "adapter.extra_levels=1",
        "adapter.stem=picture",
        "ldm.resolution=64",
        "ldm.device=cpu",
        "generation.steps=4",
    ],
)


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory, world_folder, ldm_folder):
    out = tmp_path_factory.mktemp("adapter")
    train_adapter(world_folder, ldm_folder, out, SETTINGS)
    return out


@pytest.fixture
def copy(adapter_folder, tmp_path):
    shutil.copytree(adapter_folder, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(scope="module")
def ldm(ldm_folder):
    return load_ldm(ldm_folder, device="cpu")


def test_the_card_says_what_it_was_trained_on(adapter_folder, ldm):
    card = json.loads((adapter_folder / CARD).read_text())
    assert card["ldm"] == ldm.identity.as_dict()
    assert card["timestep"] == 1 and card["prompt_mode"] == "none"
    assert [tap[:2] for tap in card["taps"]] == [[4, 160], [8, 192], [16, 352]]
    assert [c["name"] for c in card["classes"]] == ["house", "car", "tree", "boat", "fish", "mushroom"]
    assert card["validation"]["images"] == 6 and card["validation"]["map"] is not None
    assert len(card["training"]["curve"]) == 3


def test_training_again_gives_the_same_weights(adapter_folder, world_folder, ldm_folder, tmp_path):
    train_adapter(world_folder, ldm_folder, tmp_path, SETTINGS)
    assert (tmp_path / WEIGHTS).read_bytes() == (adapter_folder / WEIGHTS).read_bytes()


def test_the_diffusion_model_is_left_as_it_was(adapter_folder, ldm_folder, ldm):
    assert load_ldm(ldm_folder, device="cpu").identity == ldm.identity
    assert not any(name.startswith("backbone") for name in load_file(adapter_folder / WEIGHTS))


def test_another_diffusion_model_is_refused(copy, ldm_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ldm_folder, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.weight"] += 0.01
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="cannot read its features"):
        load_adapter(copy, load_ldm(other, device="cpu"))


def test_damaged_checkpoints_are_refused(copy, ldm, tmp_path):
    tensors = load_file(copy / WEIGHTS)

    def spoil(change) -> None:
        change()
        with pytest.raises(ModelError) as caught:
            load_adapter(copy, ldm)
        assert str(copy) in str(caught.value)

    def rewrite(new) -> None:
        import hashlib

        save_file(new, copy / WEIGHTS)
        card = json.loads((copy / CARD).read_text())
        card["weights_sha256"] = hashlib.sha256((copy / WEIGHTS).read_bytes()).hexdigest()
        (copy / CARD).write_text(json.dumps(card))

    name = next(key for key in tensors if key.endswith("weight"))
    spoil(lambda: (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-5]))
    spoil(lambda: rewrite({k: v for k, v in tensors.items() if k != name}))
    spoil(lambda: rewrite({**tensors, name: torch.full_like(tensors[name], float("nan"))}))
    spoil(lambda: (copy / CARD).write_text('{"format": 1}'))
    spoil(lambda: (copy / CARD).write_text("{"))
    spoil(lambda: (copy / CARD).unlink())


def test_drawing_gives_boxes_of_the_datasets_classes(adapter_folder, world_folder, ldm_folder):
    from engine.generation.plan import PlannedItem

    drawer = load_drawer(world_folder, ldm_folder, adapter_folder, SETTINGS)
    drawer.floor = 0.0
    record = next(iter(drawer.sources.values()))
    fields = dict(source_file=record.file_name, prompt="a red house", negative_prompt="", width=64, height=64)
    items = [
        PlannedItem(item=i, source_image_id=i, seed=i, strength=0.5, guidance_scale=2.0, eta=0.1, **fields)
        for i in (1, 2, 3)
    ]
    drawn = list(drawer.draw(items, 2))
    assert [d.image.shape for d in drawn] == [(64, 64, 3)] * 3
    for d in drawn:
        assert len(d.boxes_xyxy) == len(d.scores) == len(d.category_ids)
        assert set(d.category_ids.tolist()) <= {1, 2, 3, 4, 5, 6}
        assert (d.boxes_xyxy >= 0).all() and (d.boxes_xyxy <= 64).all()


def test_a_picture_stem_reads_the_picture_and_a_latent_stem_does_not(ldm_folder):
    ldm = load_ldm(ldm_folder, device="cpu")
    latents = ldm.encode_images(torch.zeros(1, 3, 64, 80))
    picture = torch.linspace(-1, 1, 3 * 64 * 80).reshape(1, 3, 64, 80)
    noisy, *levels = ldm.features(latents, 1, torch.zeros_like(latents), [""])
    found = {}
    for stem in ("latent", "picture"):
        torch.manual_seed(0)
        reader = build_reader(dataclasses.replace(SETTINGS.adapter, stem=stem), SETTINGS.detr, 3, ldm).eval()
        adapter = Adapter(reader, {"head": {"stem": stem}})
        shown = [adapter.detect([noisy, *levels], pixels)[0].boxes_xyxy for pixels in (picture, -picture)]
        found[stem] = torch.equal(*shown)
    assert found == {"latent": True, "picture": False}
    cells = stem_input(noisy, picture)  # the patch of a cell, channel by channel
    assert torch.equal(cells[0, -48:, 2, 3], picture[0, :, 8:12, 12:16].flatten())


@pytest.mark.parametrize(("taps", "strides"), [("down", [8, 16]), ("mid", [16]), ("up", [4, 8])])
def test_a_stem_meets_whichever_levels_are_tapped(ldm_folder, taps, strides):
    ldm = load_ldm(ldm_folder, device="cpu", taps=taps)
    assert [tap.stride for tap in ldm.taps] == strides
    reader = build_reader(dataclasses.replace(SETTINGS.adapter, taps=taps), SETTINGS.detr, 3, ldm).eval()
    # 80 x 112 px: the extra level halves an odd number of cells.
    found = build_adapter(reader, ldm, 1, SETTINGS.adapter.stem).eval().detect(torch.zeros(2, 3, 80, 112))
    assert len(found) == 2


def test_a_reader_without_stem_reads_the_taps_alone(world_folder, ldm_folder, tmp_path):
    settings = dataclasses.replace(SETTINGS, adapter=dataclasses.replace(SETTINGS.adapter, stem="none"))
    train_adapter(world_folder, ldm_folder, tmp_path, settings)
    assert not any(name.startswith("stem") for name in load_file(tmp_path / WEIGHTS))
    assert load_drawer(world_folder, ldm_folder, tmp_path, settings).adapter.reader.stem is None


def test_other_classes_and_other_noise_levels_are_refused(copy, world_folder, ldm_folder):
    card = json.loads((copy / CARD).read_text())
    (copy / CARD).write_text(json.dumps({**card, "timestep": 50}))
    with pytest.raises(ModelError, match="t = 50"):
        load_drawer(world_folder, ldm_folder, copy, SETTINGS)
    (copy / CARD).write_text(json.dumps({**card, "classes": [{"id": 1, "name": "cell"}]}))
    with pytest.raises(ModelError, match="knows the classes"):
        load_drawer(world_folder, ldm_folder, copy, SETTINGS)


def test_drawing_on_a_cpu_uses_one_thread_so_that_the_bytes_do_not_depend_on_workers(
    adapter_folder, world_folder, ldm_folder
):
    from engine.generation.plan import make_plan

    drawer, seen = load_drawer(world_folder, ldm_folder, adapter_folder, SETTINGS), []
    drawer.ldm.denoiser.register_forward_pre_hook(lambda module, inputs: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in drawer.draw(make_plan(drawer.dataset, 2, 0, SETTINGS, drawer.identity).items, 2):
            assert torch.get_num_threads() == 2  # whoever takes the results has all of them
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(before)


def test_pictures_are_labelled_by_the_thresholds_of_generation(adapter_folder, world_folder, ldm_folder, tmp_path):
    shutil.copytree(world_folder, tmp_path / "data")
    val = read_dataset(world_folder, "val")
    pictures = [dataclasses.replace(image, id=500 + image.id) for image in val.images]
    write_dataset(tmp_path / "data", "unlabelled", pictures, [], val.categories)
    sets = ["generation.score_threshold=0.06", "generation.ignore_threshold=0.05", "generation.keep_negatives=true"]
    generation = load_settings(None, sets).generation
    settings = dataclasses.replace(SETTINGS, generation=dataclasses.replace(generation, steps=4))
    counts = label_pictures(tmp_path / "data", ldm_folder, adapter_folder, tmp_path / "out", settings)
    labelled = read_dataset(tmp_path / "out", "annotations")
    assert counts["images"] == len(labelled.images) == len(pictures) and counts["dropped"] == 0
    assert counts["boxes"] + counts["ignored"] == len(labelled.annotations)
    assert all((a.extra["score"] < 0.06) == bool(a.iscrowd) for a in labelled.annotations)
    with pytest.raises(DatasetError, match="is there already"):
        label_pictures(tmp_path / "data", ldm_folder, adapter_folder, tmp_path / "out", settings)
