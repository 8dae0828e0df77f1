from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import results_table

DOCS = Path(__file__).parents[2] / "docs"
COMPARISONS = sorted(p for p in (DOCS / "results").glob("*.json") if "arm_order" in json.loads(p.read_text()))


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_the_tables_of_the_docs_are_what_is_printed(path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["results_table.py", str(path)])
    results_table.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    arms = [row for row in rows if row[0].removeprefix("| ") in json.loads(path.read_text())["arm_order"]]
    text = (DOCS / "results.md").read_text()
    assert len(arms) > 1
    for row in arms:
        assert f"| {row[1]} | {row[2]} |" in text  # mAP of each seed and their mean


def test_several_comparisons_have_a_line_each(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["results_table.py", *map(str, COMPARISONS)])
    results_table.main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(COMPARISONS)
