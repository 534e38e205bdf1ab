"""Stored benchmark results as entries of one kind: the figure, the other side's, and the bar.

A file belongs to the script that its name begins with: `engine-*.json` to `engine.py`. Files older
than the key `command` have theirs rebuilt from the settings that are stored beside the figures.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import extract
import sequential

from mmbench.errors import DataError
from mmbench.report.numbers import fixed, significant

Facts = Mapping[str, Any]
CHANCE = 1.96
"""Standard errors by which a rate may exceed its level and still be that of chance."""


@dataclass(frozen=True)
class Entry:
    """One measured figure.

    Attributes:
        work: what was done.
        unit: of both figures.
        ours: our figure.
        theirs: the other side's; None where there is none.
        ratio: how many times as good ours is.
        bar: what the benchmark asks for, in words; "" where it asks for nothing.
        met: whether the figure reaches the bar; None where there is no bar, or no other side.
        memory_mib: by how much our memory rose, or its peak; None where it was not measured.
        their_memory_mib: the same of the other side.
        over_floor: how many times its arithmetic floor our time is; None where it has none.
        note: what else there is to say.
    """

    work: str
    unit: str
    ours: float | None
    theirs: float | None = None
    ratio: float | None = None
    bar: str = ""
    met: bool | None = None
    memory_mib: float | None = None
    their_memory_mib: float | None = None
    over_floor: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Met, missed, or a dash."""
        return "-" if self.met is None else "met" if self.met else "missed"


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


@dataclass(frozen=True)
class _Kind:
    """How the results of one script are read."""

    title: str
    beside: str
    entries: Callable[[Facts], Iterator[Entry]]
    command: Callable[[Facts], str]


def read_results(folder: Path) -> tuple[list[Benchmark], list[str]]:
    """Every file of results that a reader is known for, and sentences on what is lacking.

    Raises:
        DataError: the folder or a file of a known kind cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of results; give --results another one")
    found, said, unknown = [], [], []
    for file in sorted(folder.glob("*.json")):
        script = file.stem.split("-")[0]
        if script == "evidence":
            continue
        if script not in KINDS:
            unknown.append(file.name)
            continue
        found.append(_read(file, script))
    order = list(KINDS)
    found.sort(key=lambda one: (order.index(one.script), one.file))
    for script in order:
        if not any(one.script == script for one in found):
            said.append(
                f"Missing: no {script}-*.json; python benchmarks/{script}.py --json FILE makes it."
            )
    if unknown:
        said.append(f"Not shown, for their figures have no reader here: {', '.join(unknown)}.")
    return found, said


def title(benchmark: Benchmark) -> str:
    """What stands above a file's figures."""
    return f"{KINDS[benchmark.script].title} ({benchmark.file})"


def _read(file: Path, script: str) -> Benchmark:
    kind = KINDS[script]
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        entries = tuple(kind.entries(facts))
        command = str(facts["command"]) if "command" in facts else kind.command(facts)
        caption = _caption(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as problem:
        raise DataError(
            f"{file} does not hold what {script}.py writes ({type(problem).__name__}: {problem}); "
            f"run python benchmarks/{script}.py --json {file} again"
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


def _beside_mmrec(facts: Facts) -> Iterator[Entry]:
    for one in facts["results"]:
        ratio, needed = one["ratio"], float(one["ratio_needed_on_cpu"])
        yield Entry(
            work=one["work"],
            unit="s",
            ours=one["median_s"],
            theirs=one["toolbox_median_s"],
            ratio=ratio,
            bar=f"{needed:g} times",
            met=None if ratio is None else ratio >= needed,
            memory_mib=one["memory_mib"],
            their_memory_mib=one["toolbox_memory_mib"],
            over_floor=one["distance_from_floor"],
            note=_absent(one),
        )


def _absent(one: Facts) -> str:
    reason = one.get("toolbox_absent", "")
    return f"no other side, {reason}" if reason else ""


def _beside_recbole(facts: Facts) -> Iterator[Entry]:
    for one in facts["results"]:
        theirs = one["recbole_rate"]
        ratio = None if theirs is None else one["rate"] / theirs
        yield Entry(
            work=one["work"],
            unit=f"{one['unit']}/s",
            ours=one["rate"],
            theirs=theirs,
            ratio=ratio,
            bar=f"{sequential.NEEDED:g} times",
            met=None if ratio is None else ratio >= sequential.NEEDED,
            over_floor=statistics.median(one["times_s"]) / one["floor_s"]
            if "floor_s" in one
            else None,
        )


def _extraction(facts: Facts) -> Iterator[Entry]:
    items = facts.get("items")
    for one in facts["rows"]:
        # Files from before the number of items was kept hold seconds for all of them.
        ours, theirs = (items / one[k] if items else one[k] for k in ("ours_s", "bare_s"))
        yield Entry(
            work=one["encoder"],
            unit="items/s" if items else "s",
            ours=ours,
            theirs=theirs,
            ratio=one["ratio"],
            bar=f"{extract.NEEDED:g} of it",
            met=one["ratio"] >= extract.NEEDED,
        )


def _preparation(facts: Facts) -> Iterator[Entry]:
    for one in facts["results"]:
        bounds = {"s": ("time_s", "time_bound_s"), "MiB": ("memory_mib", "memory_bound_mib")}
        set_ = {u: (one[f], one[b]) for u, (f, b) in bounds.items() if one[b] is not None}
        yield Entry(
            work=f"{one['work']}, {one['rows']:,} rows",
            unit="s",
            ours=one["time_s"],
            bar=" and ".join(f"{bound:,} {unit}" for unit, (_, bound) in set_.items()),
            met=all(figure < bound for figure, bound in set_.values()) if set_ else None,
            memory_mib=one["memory_mib"],
            note=f"{one['cpu_s']:.0f} s of processor time",
        )


def _calibration(facts: Facts) -> Iterator[Entry]:
    level = float(facts["level"])
    for one in facts["results"]:
        rate, n = float(one["users_and_seeds"]), int(one["cases"])
        independent = str(one["null"]).startswith("simulated")
        error = CHANCE * math.sqrt(level * (1 - level) / n)
        cautious = "; rejects less often than its level" if rate < level - error else ""
        yield Entry(
            work=f"{one['null']}, {one['seeds_a_side']} seeds a side",
            unit="rejected",
            ours=rate,
            theirs=float(one["users"]),
            bar=f"<= {level + error:.3f}" if independent else "",
            met=rate <= level + error if independent else None,
            note=f"{n:,} cases{cautious}"
            if independent
            else f"{n:,} deals of the same trainings, so no error is known; level {level:g}",
        )


def _threads(facts: Facts) -> int:
    machine = facts.get("environment") or facts.get("machine") or facts
    return int(machine["threads"])


def _named_dataset(facts: Facts) -> str:
    """The option that chose the data, by the caption."""
    prepared = re.match(r"Data: (\S+) \(prepared\)", facts["caption"])
    return f" --dataset {prepared[1]}" if prepared else ""


def _of_engine(facts: Facts) -> str:
    theirs = any(one["toolbox_median_s"] is not None for one in facts["results"])
    return (
        f"python benchmarks/engine.py{_named_dataset(facts)}{' --mmrec DIR' if theirs else ''} "
        f"--threads {_threads(facts)} --repeats {facts['repeats']}"
    )


def _of_models(facts: Facts) -> str:
    steps = f" --steps {facts['steps_timed']}" if facts["steps_timed"] < facts["steps"] else ""
    return _of_engine(facts).replace("engine.py", "models.py") + steps


def _of_sequential(facts: Facts) -> str:
    users = re.match(r"([\d,]+) users", facts["caption"])
    return (
        f"python benchmarks/sequential.py{f' --users {users[1]}'.replace(',', '') if users else ''}"
        f" --threads {_threads(facts)} --repeats {len(facts['results'][0]['times_s'])}"
    )


def _of_extract(facts: Facts) -> str:
    items = f" --items {facts['items']}" if "items" in facts else ""
    return (
        f"python benchmarks/extract.py{items} --batch-size {facts['batch_size']} "
        f"--threads {_threads(facts)} --repeats {len(facts['rows'][0]['ours_all_s'])}"
    )


def _of_prepare(facts: Facts) -> str:
    return f"python benchmarks/prepare.py --threads {_threads(facts)}"


def _of_calibration(facts: Facts) -> str:
    return "python benchmarks/calibration.py"


KINDS: Mapping[str, _Kind] = {
    "engine": _Kind("Engine beside MMRec", "MMRec", _beside_mmrec, _of_engine),
    "models": _Kind("Epochs of models beside MMRec", "MMRec", _beside_mmrec, _of_models),
    "sequential": _Kind("SASRec beside RecBole's", "RecBole", _beside_recbole, _of_sequential),
    "extract": _Kind("Extraction beside the forward pass", "forward", _extraction, _of_extract),
    "prepare": _Kind("Preparation of large raw files", "", _preparation, _of_prepare),
    "calibration": _Kind(
        "Calibration: true nulls rejected by the test over users and seeds",
        "users alone",
        _calibration,
        _of_calibration,
    ),
}
"""Scripts whose results are shown, in that order."""


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
