"""Queues of several reviewers, and who decided, on its way through decisions.json."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from engine.curation.decisions import Decisions, load_decisions, write_decisions
from engine.curation.queues import checked_reviewers, decided_tag, share_out
from engine.curation.reviewer import Shown, decide, merge_edits
from engine.curation.verdicts import Verdict
from engine.errors import ConfigError, DatasetError


@pytest.mark.parametrize("count", [0, 1, 2, 101])
@pytest.mark.parametrize("names", [("anna",), ("ben", "anna"), ("anna", "ben", "carl")])
def test_every_image_is_in_one_queue_and_the_queues_are_alike_in_length(count, names):
    owner = share_out(range(1, count + 1), checked_reviewers(names))
    assert set(owner) == set(range(1, count + 1))
    lengths = Counter(owner.values())
    assert max(lengths.values(), default=0) - min((lengths[name] for name in names), default=0) <= 1
    assert owner == share_out(range(count, 0, -1), checked_reviewers(reversed(names))), "whatever the order"


def test_neighbours_do_not_all_go_to_one_reviewer():
    owner = share_out(range(1, 101), ("anna", "ben"))
    assert 20 < sum(owner[number] == "anna" for number in range(1, 51)) < 30
    assert [owner[number] for number in range(1, 101)] != ["anna", "ben"] * 50


@pytest.mark.parametrize("names", [["../x"], [""], ["a b"], ["x" * 41], ["-a"], ["anna", "Anna"], ["ünal"]])
def test_names_that_are_no_file_or_web_names_or_come_twice_are_refused(names):
    with pytest.raises(ConfigError, match="Reviewer"):
        checked_reviewers(names)


def test_who_decided_is_kept_also_where_the_word_agrees_with_the_gates():
    gates = Decisions(frozenset({1, 2}), {3: "low_score: 0.1", 4: "leakage: of val 1"})
    shown = [
        Shown(1, ("accepted", decided_tag("anna")), "accepted"),
        Shown(2, ("rejected", "blurry", decided_tag("ben")), "accepted"),
        Shown(3, ("rejected", decided_tag(None)), "rejected", ("low_score",), "low_score: 0.1"),
        Shown(4, ("rejected", decided_tag("ben")), "rejected", ("leakage",), "leakage: of val 1"),
    ]
    merged = merge_edits(shown, gates)
    assert merged.reviewer == {1: True, 2: False, 3: False}, "nobody decides about a leak"
    assert merged.decided_by == {1: "anna", 2: "ben"} and merged.rejected[2] == "reviewer: blurry"
    assert merge_edits(shown, merged) == merged
    again = decide([Verdict(1, False, ("low_score",)), Verdict(2, True), Verdict(3, True), Verdict(4, False)], merged)
    assert again.reviewer == merged.reviewer and again.decided_by == merged.decided_by and 1 in again.accepted
    changed = merge_edits([Shown(2, ("accepted", decided_tag("anna")), "rejected")], merged)
    assert changed.decided_by == {1: "anna", 2: "anna"} and 2 in changed.accepted


def test_who_decided_is_in_the_file_and_nothing_is_where_nobody_is_named(tmp_path):
    (tmp_path / "annotations.json").write_text("{}")
    dataset = SimpleNamespace(images=[SimpleNamespace(id=1), SimpleNamespace(id=2)])
    named = Decisions(frozenset({1}), {2: "reviewer"}, {2: False}, {2: "ben"})
    path = write_decisions(tmp_path, dataset, named)
    assert load_decisions(tmp_path, dataset) == named
    path.write_text(path.read_text().replace('"2": "ben"', '"2": 5'))
    with pytest.raises(DatasetError, match="'decided_by' must map image ids to words"):
        load_decisions(tmp_path, dataset)
    path = write_decisions(tmp_path, dataset, Decisions(frozenset({1, 2}), {}))
    assert "decided_by" not in path.read_text()
