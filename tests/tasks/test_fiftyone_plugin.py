"""The App's operators, run as FiftyOne runs them, on a real MongoDB."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml
from fiftyone_home import fiftyone, home  # noqa: F401
from review_world import folders  # noqa: F401

from engine.curation.requests import read_requests
from engine.data.dataset import read_dataset
from engine.data.world import render_scene
from engine.errors import ConfigError
from engine.generation.plan import make_plan
from engine.sections import GenerationSettings, ReviewSettings, Settings
from tasks.app_decisions import reject
from tasks.app_plugins import PLUGIN, plugin_environment
from tasks.app_queues import REVIEWER, arrange, opened
from tasks.app_requests import send_to_export
from tasks.collect import collect
from tasks.fiftyone_plugin import ACTIONS
from tasks.review import review

NAME = "@diffusion-engine/review"
SETTINGS = Settings(review=ReviewSettings(min_mean_score=0.5))


class App:
    """What a reviewer does to a loaded dataset."""

    def __init__(self, fiftyone, folder, name):  # noqa: F811
        self.fiftyone, self.folder, self.name = fiftyone, folder, name

    @property
    def dataset(self):
        return self.fiftyone.load_dataset(self.name, reload=True)

    def ids(self, *images: int) -> list[str]:
        return self.dataset.match(self.fiftyone.ViewField("image_id").is_in(images)).values("id")

    def do(self, operator: str, *images: int, selected=None, **params) -> dict:
        import fiftyone.operators as foo

        context = {"dataset": self.dataset, "selected": selected or self.ids(*images), "params": params}
        return foo.execute_operator(f"{NAME}/{operator}", context).result

    def tags(self) -> dict[int, set[str]]:
        columns = self.dataset.values(["image_id", "tags"])
        return {image_id: set(tags) for image_id, tags in zip(*columns, strict=True)}


@pytest.fixture
def app(folders, fiftyone, monkeypatch):  # noqa: F811
    """Image 1 good, 2 low score, 3 duplicate of 1, 4 repeats val image 1, 5 nearly its own source."""
    monkeypatch.setattr(fiftyone.config, "plugins_dir", plugin_environment(None)["FIFTYONE_PLUGINS_DIR"])
    monkeypatch.setattr(fiftyone.config, "plugins_cache_enabled", True)
    pictures = [render_scene(seed).image for seed in (100, 101, 100, 10, 2)]
    folders.generate(pictures, [1, 2, 3, 4, 3], [[0.9, 0.7], [0.3], [0.9], [0.9], [0.6]])
    return App(fiftyone, folders.generated, review(folders.generated, folders.real, SETTINGS).dataset)


def test_fiftyone_finds_every_operator(app):
    import fiftyone.operators as foo

    named = yaml.safe_load((PLUGIN / "fiftyone.yml").read_text())["operators"]
    assert named == [action.name for action in ACTIONS]
    assert {f"{NAME}/{name}" for name in named} <= {operator.uri for operator in foo.list_operators(builtin=False)}


def test_decisions_are_tags_that_collect_reads_and_final_verdicts_stay(app):
    kept = app.do("accept_selected", 2, 3, 4)
    assert kept["done"] and kept["message"].startswith(
        "2 images accepted. 1 image cannot be accepted by anyone: image 4 (leakage)"
    )
    assert app.do("reject_selected", 1, reason="blurry")["message"] == "1 image rejected: blurry."
    tags = app.tags()
    assert tags[1] == {"rejected", "blurry", "decided"} and tags[2] == {"accepted", "low_score", "decided"}
    assert "rejected" in tags[4] and "accepted" not in tags[4]
    assert app.dataset.load_saved_view("queue").values("image_id") == [5, 4], "what is decided leaves the queue"
    assert app.do("reject_selected", 1, reason="wrong class")["done"]
    assert app.tags()[1] == {"rejected", "wrong class", "decided"}

    summary = collect(app.folder)
    content = json.loads((app.folder / "decisions.json").read_text())
    assert content["accepted"] == [2, 3, 5] and content["rejected"]["1"] == "reviewer: wrong class"
    assert set(content["rejected"]) == {"1", "4"} and summary.reviewer == 3


def test_the_last_decision_is_taken_back_and_then_the_one_before(app):
    before = app.tags()
    app.do("accept_selected", 2, 3)
    app.do("reject_selected", 1, 2, reason="other")
    app.dataset.match(app.fiftyone.ViewField("image_id") == 2).tag_samples("keep for the paper")
    assert app.do("undo_decision", 2)["message"] == "The last decision on 1 image is taken back."
    assert app.tags()[2] == {"accepted", "low_score", "decided", "keep for the paper"}, "other tags stay"
    assert app.tags()[1] == {"rejected", "other", "decided"}, "and so do other images"
    app.do("undo_decision", 1, 2, 3)
    assert app.tags() == before | {2: before[2] | {"keep for the paper"}}
    assert app.do("undo_decision", 1)["message"].endswith("Nothing to take back on 1 image.")


def test_two_reviewers_have_queues_of_their_own_and_both_are_collected(app, monkeypatch):
    with (
        opened(app.name, None),
        pytest.raises(ConfigError, match="is open, shared out between nobody. Close every App"),
    ):
        arrange(app.fiftyone, app.name, "anna", ["ben", "anna"])
    arrange(app.fiftyone, app.name, "anna", ["ben", "anna"])
    arrange(app.fiftyone, app.name, "ben", [])
    with pytest.raises(ConfigError, match="carl is none of the reviewers anna, ben"):
        arrange(app.fiftyone, app.name, "carl", [])
    queues = {who: app.dataset.load_saved_view(f"queue {who}").values("image_id") for who in ("anna", "ben")}
    assert sorted(queues["anna"] + queues["ben"]) == [1, 2, 3, 4, 5] and min(map(len, queues.values())) == 2

    (a, *_), (b, *_) = ([i for i in queues[who] if i != 4] for who in ("anna", "ben"))  # 4 is a leak
    before = app.tags()
    monkeypatch.setenv(REVIEWER, "anna")
    refused = app.do("accept_selected", a, b)
    assert not refused["done"] and refused["message"].endswith(f"other reviewers' queues are among them: {b} (ben).")
    assert app.tags() == before
    app.do("reject_selected", a, reason="other")
    monkeypatch.setenv(REVIEWER, "ben")
    app.do("accept_selected", b)
    assert not app.do("undo_decision", a)["done"], "and nobody takes back what another decided"
    sample = app.dataset[app.ids(b)[0]]
    sample.predictions.detections[0].label = "fish"
    sample.save()

    collect(app.folder, "the one who collects")
    content = json.loads((app.folder / "decisions.json").read_text())
    assert content["decided_by"] == {str(a): "anna", str(b): "ben"}
    assert content["reviewer"] == {str(a): "rejected", str(b): "accepted"}
    assert json.loads((app.folder / "decisions.jsonl").read_text())["reviewer"] == "ben"
    assert app.dataset.load_saved_view("queue anna").values("image_id") == [i for i in queues["anna"] if i != a]
    with opened(app.name, "anna"):
        skipped = review(app.folder, app.folder.parent / "real", SETTINGS, fiftyone="skip")
    assert "is open in the App" in skipped.skipped
    assert json.loads((app.folder / "decisions.json").read_text())["decided_by"] == content["decided_by"]
    review(app.folder, app.folder.parent / "real", SETTINGS)
    assert {f"decided by {who}" for who in ("anna", "ben")} <= app.tags()[a] | app.tags()[b], "loaded anew, it is known"


def test_all_of_a_view_that_passes_is_accepted(app):
    app.do("reject_selected", 1, 5, reason="other")
    assert (
        app.do("accept_passing")["message"] == "2 images of this view pass the gates: 2 accepted now, 0 were already."
    )
    assert {i for i, tags in app.tags().items() if "accepted" in tags} == {1, 5}
    app.do("undo_decision", 1)
    assert app.tags()[1] == {"rejected", "other", "decided"}
    collect(app.folder)
    assert json.loads((app.folder / "decisions.json").read_text())["reviewer"] == {"1": "rejected", "5": "accepted"}


def test_requests_are_written_beside_the_dataset(app):
    assert app.do("more_like_this", 1, 2)["done"]
    message = app.do("less_like_this", 5)["message"]
    path = app.folder / "requests.jsonl"
    assert f"generation.requests={path}" in message
    found = [(r.image_id, r.source_image_id, r.classes, r.encode_ratio, r.wish) for r in read_requests(path)]
    assert found == [
        (1, 1, ("car", "house"), 0.5, "more"),
        (2, 2, ("house",), 0.5, "more"),
        (5, 3, ("house",), 0.5, "less"),
    ]
    identity = {"ldm": {"id": "stub", "multiple": 16}, "adapter": {}}
    settings = Settings(generation=GenerationSettings(requests=str(path)))
    plan = make_plan(read_dataset(app.folder.parent / "real", "train"), 66, 0, settings, identity)
    assert Counter(item.source_image_id for item in plan.items) == {1: 27, 2: 27, 3: 3, 4: 9}


def test_the_accepted_go_out_below_the_dataset_once(app):
    app.do("accept_selected", 2)
    first = app.do("export_accepted", format="coco")
    (out,) = (app.folder / "exports").iterdir()
    assert first["done"] and str(out) in first["message"] and out.name.startswith("coco-")
    sent = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert [image["id"] for image in sent["images"]] == [1, 2, 5], "what was decided is collected first"
    assert "Nothing was decided since" in app.do("export_accepted", format="coco")["message"]
    app.do("reject_selected", 1, reason="other")
    app.do("export_accepted", format="coco")
    assert len(list((app.folder / "exports").iterdir())) == 2


def test_mistakes_are_one_message_and_change_nothing(app):
    from fiftyone.operators.executor import ExecutionError

    before = app.tags()
    real = app.dataset.select_group_slices("source").values("id")
    for operator, more in (
        ("accept_selected", {}),
        ("accept_selected", {"selected": real}),
        ("undo_decision", {}),
        ("more_like_this", {}),
        ("reject_selected", {"reason": "other"}),
    ):
        answer = app.do(operator, **more)
        assert not answer["done"] and answer["message"].startswith("Select generated images first")
    for operator, odd in (("reject_selected", {"reason": "../../x"}), ("export_accepted", {"format": "../x"})):
        for params in (odd, {}):
            with pytest.raises(ExecutionError, match="Validation error"):
                app.do(operator, 1, **params)
    with pytest.raises(ConfigError, match="'../../x' is no reason to reject. Reasons: blurry"):
        reject(app.dataset, app.ids(1), "../../x", None)
    with pytest.raises(ConfigError, match="Format '../x' is not written"):
        send_to_export(app.fiftyone, app.dataset, "../x")
    (app.folder / "requests.jsonl").write_text("{}\n")
    assert "requests.jsonl, entry 1: must be an object" in app.do("more_like_this", 1)["message"]
    (app.folder / "annotations.json").write_bytes((app.folder / "annotations.json").read_bytes() + b"\n")
    assert "changed since it was loaded" in app.do("more_like_this", 1)["message"]
    assert app.tags() == before and not (app.folder / "exports").exists()


def test_a_dataset_of_another_origin_is_left_alone(app, tmp_path):
    strange = app.fiftyone.Dataset("strange", persistent=True)
    strange.add_group_field("group", default="generated")
    strange.info = {"folder": str(tmp_path)}
    strange.save()
    import fiftyone.operators as foo

    answer = foo.execute_operator(f"{NAME}/export_accepted", {"dataset": strange, "params": {"format": "coco"}}).result
    assert not answer["done"] and "was not loaded by" in answer["message"]
    app.fiftyone.delete_dataset("strange")
