"""Stored benchmark results as entries of one kind: the figure, the other side's, and the bar.

A file belongs to the script that its name begins with: `engine-*.json` to `engine.py`. Files older
than the key `command` have theirs rebuilt from the settings that are stored beside the figures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from entries import Entry, Facts
from readers import KINDS

from mmbench.errors import DataError
from mmbench.report.numbers import fixed, significant


@dataclass(frozen=True)
class Benchmark:
    """One file of results."""

    file: str
    script: str
    beside: str
    command: str
    rebuilt: bool
    caption: str
    entries: tuple[Entry, ...]


def read_results(folder: Path) -> tuple[list[Benchmark], list[str]]:
    """Every file of results that a reader is known for, and sentences on what is lacking.

    Raises:
        DataError: the folder or a file of a known kind cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of results; give --results another one")
    found, said, unknown, empty = [], [], [], []
    for file in sorted(folder.glob("*.json")):
        script = file.stem.split("-")[0]
        if script == "evidence":
            continue
        if script not in KINDS:
            unknown.append(file.name)
            continue
        one = _read(file, script)
        if one.entries:
            found.append(one)
        else:
            empty.append(file.name)
    order = list(KINDS)
    found.sort(key=lambda one: (order.index(one.script), one.file))
    for script in order:
        if not any(one.script == script for one in found):
            said.append(
                f"Missing: no {script}-*.json; python benchmarks/{script}.py --help tells how to "
                "make it."
            )
    if unknown:
        said.append(f"Not shown, for their figures have no reader here: {', '.join(unknown)}.")
    if empty:
        said.append(f"Not shown, for they hold no figures yet: {', '.join(empty)}.")
    return found, said


def title(benchmark: Benchmark) -> str:
    """What stands above a file's figures."""
    return f"{KINDS[benchmark.script].title} ({benchmark.file})"


def _read(file: Path, script: str) -> Benchmark:
    kind = KINDS[script]
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(facts, list):  # figures alone, without what they were made with
            facts = {"results": facts}
        entries = tuple(kind.entries(facts))
        command = str(facts["command"]) if "command" in facts else kind.command(facts)
        caption = _caption(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as problem:
        raise DataError(
            f"{file} does not hold what {script}.py writes ({type(problem).__name__}: {problem}); "
            f"make it again, as python benchmarks/{script}.py --help tells"
        ) from None
    return Benchmark(
        file.name, script, kind.beside, command, "command" not in facts, caption, entries
    )


def _caption(facts: Facts) -> str:
    """What the file says of itself; threads and versions, where it says nothing."""
    told = str(facts.get("caption", ""))
    machine = facts.get("environment") or facts.get("machine") or {}
    known = {
        f"{threads} thread(s)": threads
        for threads in (machine.get("threads", facts.get("threads")),)
        if threads and "thread" not in told
    }
    parts = [str(machine["device"])] if "device" in machine and known else []
    parts += [*known, *([f"torch {machine['torch']}"] if "torch" in machine and known else [])]
    if "python" in machine:
        parts.append(f"Python {machine['python']}")
    load = facts.get("load_before")
    if load is not None and "load" not in told:
        parts.append(f"load before {load:.1f}")
    parts.append(f"date {facts['date']}" if "date" in facts else "no date stored")
    lines = [" ".join(told.split())] if told else []
    return " ".join([*lines, f"{', '.join(parts)}."])


def heads(benchmark: Benchmark) -> list[str]:
    """The heads of the columns of `cells`, the work left out."""
    theirs = benchmark.beside or "theirs"
    return ["unit", "ours", theirs, "ratio", "/floor", "bar", "", "MiB", "their MiB"]


def cells(entry: Entry) -> list[str]:
    """The texts of an entry, in the order of `heads`."""
    return [
        entry.unit,
        *("-" if figure is None else significant(figure) for figure in (entry.ours, entry.theirs)),
        fixed(entry.ratio, 3 if entry.ratio is not None and entry.ratio < 1 else 1),
        fixed(entry.over_floor, 1),
        entry.bar or "-",
        entry.verdict,
        *(fixed(memory, 0) for memory in (entry.memory_mib, entry.their_memory_mib)),
    ]
