from __future__ import annotations

import pytest
from rich.cells import cell_len

from mmbench.report.labels import wrap_label


@pytest.mark.parametrize(
    ("label", "width", "lines"),
    [
        ("lightgcn", 8, ["lightgcn"]),
        ("movielens-100k-lightgcn", 14, ["movielens-", "100k-lightgcn"]),
        ("vbpr -visual", 9, ["vbpr", "-visual"]),
        ("vbpr -visual -acoustic", 14, ["vbpr -visual", "-acoustic"]),
        ("mmgcn (textual=minilm-l6)", 16, ["mmgcn (textual=", "minilm-l6)"]),
        ("paper/table_03", 8, ["paper/", "table_03"]),
        ("curriculum-ensemble", 8, ["curricul", "um-", "ensemble"]),
        ("\u5546\u54c1\u5546\u54c1", 4, ["\u5546\u54c1", "\u5546\u54c1"]),
        ("", 4, [""]),
    ],
)
def test_a_label_breaks_between_its_words(label: str, width: int, lines: list[str]) -> None:
    wrapped = wrap_label(label, width).split("\n")
    assert wrapped == lines
    assert all(cell_len(line) <= width for line in wrapped)
    assert "".join(lines).replace(" ", "") == label.replace(" ", "")


def test_the_narrowest_column_ends_too() -> None:
    assert wrap_label("ab\u5546", 1).split("\n") == ["a", "b", "\u5546"]
