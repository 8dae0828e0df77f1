"""requests.jsonl: what is asked comes back, broken lines are named, and wishes are reckoned by source."""

from __future__ import annotations

import json

import pytest

from engine.curation.requests import LESS, MORE, Request, add_requests, merge_requests, read_requests, wishes_by_source
from engine.errors import DatasetError

SOUND = {"image_id": 7, "source_image_id": 3, "classes": ["car"], "encode_ratio": 0.5, "wish": "more"}


def ask(image_id: int, source: int, wish: str) -> Request:
    return Request(image_id, source, ("car",), 0.5, wish)


def test_requests_are_appended_in_order(tmp_path):
    first, second = ask(7, 3, "more"), Request(8, 3, (), None, "less")
    path = add_requests(tmp_path, [first])
    assert json.loads(path.read_text()) == SOUND
    assert add_requests(tmp_path, [second]) == path and read_requests(path) == (first, second)
    assert [entry.name for entry in tmp_path.iterdir()] == ["requests.jsonl"]


def test_the_last_word_on_an_image_and_the_majority_of_a_source_hold():
    assert wishes_by_source([]) == {}
    assert wishes_by_source([ask(1, 5, "more"), ask(2, 4, "less")]) == {4: "less", 5: "more"}
    assert wishes_by_source([ask(1, 5, "more"), ask(1, 5, "less")]) == {5: "less"}
    assert wishes_by_source([ask(1, 5, "more"), ask(2, 5, "less")]) == {}
    assert wishes_by_source([ask(1, 5, "more"), ask(2, 5, "less"), ask(3, 5, "more")]) == {5: "more"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wish": "much more"}, "its wish is 'much more'; write more or less"),
        ({"image_id": "7"}, "its image_id is '7', which is no integer"),
        ({"source_image_id": 0}, "its source_image_id is 0; ids start at 1"),
        ({"classes": "car"}, "'classes' must be a list of names"),
        ({"encode_ratio": 1.5}, "its encode_ratio is 1.5"),
        ({"path": "/etc/passwd"}, "must be an object of classes, encode_ratio"),
    ],
)
def test_a_line_that_is_no_request_is_named_and_nothing_is_added(tmp_path, change, words):
    path = tmp_path / "requests.jsonl"
    path.write_text(f"{json.dumps(SOUND)}\n\n{json.dumps(SOUND | change)}\n")
    before = path.read_bytes()
    with pytest.raises(DatasetError, match=f"requests.jsonl, entry 2: {words}"):
        add_requests(tmp_path, [ask(1, 1, "more")])
    assert path.read_bytes() == before


def test_a_broken_or_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(DatasetError, match="There is no file"):
        read_requests(tmp_path / "requests.jsonl")
    (tmp_path / "requests.jsonl").write_text(f"{json.dumps(SOUND)}\n{{")
    with pytest.raises(DatasetError, match="requests.jsonl, line 2, is not complete, valid json"):
        read_requests(tmp_path / "requests.jsonl")


def test_requests_of_several_datasets_do_not_hide_each_other(tmp_path):
    """Image 1 of one is not image 1 of the other, though both were drawn from source 7."""
    files = []
    for name, wishes in (("first", (MORE,)), ("second", (MORE, LESS))):
        (tmp_path / name).mkdir()
        files.append(add_requests(tmp_path / name, [ask(1, 7, wish) for wish in wishes]))
    assert merge_requests(files, tmp_path / "merged.jsonl") == 3
    merged = read_requests(tmp_path / "merged.jsonl")
    assert [(request.image_id, request.wish) for request in merged] == [(1, MORE), (2, MORE), (2, LESS)]
    assert wishes_by_source(merged) == {}, "of image 2 the last holds, and one of each balances"
    files[1].write_text("{}\n")
    before = (tmp_path / "merged.jsonl").read_bytes()
    with pytest.raises(DatasetError, match="must be an object"):
        merge_requests(files, tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == before
