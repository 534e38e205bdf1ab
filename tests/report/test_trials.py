from __future__ import annotations

import csv
import io
import json

from rich.console import Console

from mmbench.report.trials import SearchRow, SearchTable, budget_text, short_keys

SPACE = {"model.embedding_size": "8, 16", "training.learning_rate": "0.0001 to 0.1, log"}


def row(number: int, value: float | None, *, chosen: bool = False) -> SearchRow:
    point = {"model.embedding_size": 8, "training.learning_rate": 0.01 * number}
    return SearchRow(number, point, value, None if value is not None else "a NaN", chosen)


def table(label: str = "vbpr", n_trials: int = 4) -> SearchTable:
    rows = [row(1, 0.1), row(2, None), row(3, 0.3), row(4, 0.3, chosen=True)][:n_trials]
    return SearchTable(label, "recall@20", "random", 7, SPACE, rows)


def test_trials_are_sorted_by_validation_and_failed_ones_come_last() -> None:
    assert [r.number for r in table().ordered()] == [4, 3, 1, 2]
    document = json.loads(table().text("json"))
    assert [trial["valid"] for trial in document["trials"]] == [0.3, 0.3, 0.1, None]
    assert [trial["chosen"] for trial in document["trials"]] == [True, False, False, False]
    rows = list(csv.DictReader(io.StringIO(table().text("csv"))))
    assert [r["valid recall@20"] for r in rows] == ["0.3", "0.3", "0.1", ""]
    assert rows[3]["error"] == "a NaN"
    assert table().text("github").startswith("|")


def test_the_table_marks_the_chosen_trial_and_fits_a_terminal() -> None:
    out = Console(width=80, file=io.StringIO())
    out.print(table("vbpr with a long label of its own").table())
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= 80 for line in text.splitlines())
    assert next(line for line in text.splitlines() if "yes" in line).split()[1] == "4"
    assert "failed" in text
    assert "test" not in text


def test_equal_and_unequal_budgets_are_told_apart() -> None:
    equal = budget_text([table("a"), table("b")])
    assert "Equal budgets: 4 trials for each of 2 systems; random, sampler and trials" in equal
    assert "Space, the same for all:" in equal
    assert "failed: a trial 2: a NaN" in equal
    unequal = budget_text([table("a"), table("b", 1)])
    assert "Equal" not in unequal
    assert "a: 4 trials\n  b: 1 trial\n" in unequal
    part = SearchTable(
        "b", "recall@20", "random", 7, {"model.embedding_size": "8, 16"}, [row(1, 1)]
    )
    assert "training.learning_rate: 0.0001 to 0.1, log (of a)" in budget_text([table("a"), part])
    assert "Budget: 4 trials; random" in budget_text([table()])


def test_keys_are_short_where_they_differ() -> None:
    assert short_keys(["a.x", "b.x", "b.y"]) == {"a.x": "a.x", "b.x": "b.x", "b.y": "y"}
