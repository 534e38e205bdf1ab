"""Long names in narrow columns, broken between their words."""

from __future__ import annotations

import re

from rich.cells import cell_len

# Behind a blank, or behind a joining sign that has something before it: "-visual" stays whole.
_BREAKS = re.compile(r"(?<=\s)|(?<=[^\s\-][-_/+,=:])")


def wrap_label(label: str, width: int) -> str:
    """The label on as many lines as it needs; a word breaks only where it alone is too long.

    Args:
        label: a name such as "movielens-100k/lightgcn -visual".
        width: cells of a terminal's line, at least 1.

    Returns:
        Lines joined by line ends, each no wider than `width`.
    """
    lines, line = [], ""
    for word in filter(None, _BREAKS.split(label)):
        if line and cell_len((line + word).rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += word
        while cell_len(line.rstrip()) > width:
            fits = max(1, sum(cell_len(line[: i + 1]) <= width for i in range(len(line))))
            lines.append(line[:fits])
            line = line[fits:]
    return "\n".join([*lines, *filter(None, [line.rstrip()])])
