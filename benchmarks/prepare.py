"""Wall time and peak memory of `mmbench prepare` on raw files as large as the field's.

Two raw forms are written with invented content, and `python -m mmbench prepare` runs on each in
a process of its own. Run `python benchmarks/prepare.py --help`.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
import polars as pl
from making import made_by
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from mmbench import console

RATINGS, METADATA = 5_700_000, 1_500_000
INTERACTIONS = 20_000_000
CLOTHING = "Clothing_Shoes_and_Jewelry"
_BLOCK = 1_000_000  # rows that are made and written at a time
_FIRST, _LAST = 1_100_000_000, 1_406_000_000  # seconds: 2004-11 .. 2014-07

# Started from here a process would inherit this one's peak; started from a small one it does not.
_LAUNCH = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
sys.stderr.buffer.write(done.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(done.returncode)
"""


@dataclass
class Measured:
    """One preparation.

    Attributes:
        work: which raw form.
        rows: interactions in the raw files.
        raw_mib: size of the raw files as they lie on disk.
        time_s: from the start of the process to its end.
        cpu_s: time its threads computed; more of `time_s` than that over the threads is waiting.
        memory_mib: largest resident memory of the process.
        kept: interactions, users and items that were left.
        time_bound_s, memory_bound_mib: what it has to stay within; None for other sizes.
    """

    work: str
    rows: int
    raw_mib: float
    time_s: float
    cpu_s: float
    memory_mib: float
    kept: dict[str, int]
    time_bound_s: float | None = None
    memory_bound_mib: float | None = None


def zipf_like(
    rng: np.random.Generator, size: int, n: int, exponent: float
) -> Iterator[NDArray[np.int64]]:
    """Blocks of `size` draws of 0..n-1 in all, number k with weight (k + 1) ** -exponent.

    Popularity and number have nothing to do with each other: the numbers are shuffled.
    """
    cumulated = np.cumsum(np.arange(1, n + 1) ** -exponent)
    shuffled = rng.permutation(n)
    for start in range(0, size, _BLOCK):
        drawn = rng.random(min(_BLOCK, size - start)) * cumulated[-1]
        yield shuffled[np.searchsorted(cumulated, drawn)]


def write_ratings(
    path: Path, n: int, users: pl.Series, items: pl.Series, *, header: bool, day: int
) -> None:
    """Write `n` rows user, item, rating, timestamp in random order; times are multiples of `day`.

    Users have a few rows and rarely many, items a few or thousands, as in the real files.
    """
    rng = np.random.default_rng(0)
    blocks = zip(
        zipf_like(rng, n, len(users), 0.6), zipf_like(rng, n, len(items), 0.8), strict=True
    )
    with path.open("wb") as file:
        if header:
            file.write(b"user_id,item_id,rating,timestamp\n")
        for user, item in blocks:
            frame = pl.DataFrame(
                {
                    "user": users.gather(user),
                    "item": items.gather(item),
                    "rating": rng.integers(1, 6, user.size).astype(float),
                    "time": rng.integers(_FIRST // day, _LAST // day, user.size) * day,
                }
            )
            frame.write_csv(file, include_header=False)


def user_ids(n: int) -> pl.Series:
    """Invented ids of 14 characters, as Amazon's reviewers have."""
    return pl.select(
        pl.format("A{}", pl.int_range(n).cast(pl.String).str.zfill(13)).alias("user")
    ).to_series()


def item_ids(n: int) -> pl.Series:
    """Invented ids of 10 characters, as Amazon's products have; the last third are numbers."""
    number = pl.int_range(n).cast(pl.String).str.zfill(9)
    letter = pl.when(pl.int_range(n) % 3 == 2).then(pl.lit("0")).otherwise(pl.lit("B"))
    return pl.select(pl.concat_str(letter, number).alias("item")).to_series()


def write_metadata(path: Path, items: pl.Series) -> None:
    """Write a Python literal of 0.5 to 1.5 kB for each item, gzip, keys as in the 2014 release.

    A pool of bodies is made once and shared out; titles and addresses are each item's own.
    """
    rng = np.random.default_rng(1)
    bodies = [_body(rng) for _ in range(2000)]
    choice = rng.integers(0, len(bodies), len(items)).tolist()
    with gzip.open(path, "wb", compresslevel=1) as file:
        for start in range(0, len(items), 20_000):
            ids = items[start : start + 20_000].to_list()
            lines = (
                f"{{'asin': '{asin}', 'title': 'Item {asin} of many', 'imUrl': "
                f"'http://pictures.invalid/images/I/{asin}.jpg', {bodies[k]}}}\n"
                for asin, k in zip(ids, choice[start : start + 20_000], strict=True)
            )
            _write(file, "".join(lines))


def _write(file: Any, text: str) -> None:
    binary: BinaryIO = file
    binary.write(text.encode())


def _body(rng: np.random.Generator) -> str:
    def words(n: int) -> str:
        letters = rng.integers(97, 123, (n, 6), dtype=np.uint8)
        return " ".join(bytes(row).decode() for row in letters)

    def asins(n: int) -> list[str]:
        return [f"B{number:09d}" for number in rng.integers(0, 10**6, n).tolist()]

    parts: dict[str, Any] = {
        "related": {"also_bought": asins(int(rng.integers(5, 40))), "also_viewed": asins(8)},
        "salesRank": {"Clothing": int(rng.integers(1, 10**6))},
        "categories": [["Clothing, Shoes & Jewelry", words(1).title(), words(2).title()]],
        "price": float(rng.integers(99, 9999)) / 100,
    }
    if rng.random() < 0.5:
        parts["brand"] = words(1).title()
    if rng.random() < 0.3:  # most clothes have no description
        parts["description"] = f'It\'s {words(int(rng.integers(20, 80)))}; "as new".'
    return repr(parts)[1:-1]


def run_prepare(
    arguments: list[str], raw: Path, data: Path, threads: int
) -> tuple[float, float, float, dict[str, int]]:
    """Prepare the files in `raw` in a process of its own.

    Returns:
        seconds by the clock, seconds of computing, MiB of resident memory at the most, and the
        counts of what was left.

    Raises:
        click.ClickException: the command failed.
    """
    command = [
        sys.executable, "-m", "mmbench", "prepare", *arguments, "--source", str(raw),
        "--data-dir", str(data), "--no-features", "--user-core", "5", "--item-core", "5",
        "--split", "random-per-user",
    ]  # fmt: skip
    limits = {"POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCH, *command],
        env={**os.environ, **limits},
        capture_output=True,
        text=True,
        check=False,
    )
    elapsed = time.perf_counter() - begin
    if done.returncode:
        raise click.ClickException(f"{' '.join(arguments)} failed: {done.stderr.strip()}")
    cpu, memory = map(float, done.stdout.split())
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    manifest = json.loads((data / arguments[0] / "manifest.json").read_text(encoding="utf-8"))
    counts = {key: manifest["counts"][key] for key in ("interactions", "users", "items")}
    return elapsed, cpu, memory / unit, counts


def clothing(folder: Path, ratings: int, metadata: int) -> list[str]:
    """The raw category of 2014: all ratings without header, and the metadata."""
    items = item_ids(metadata)
    rated = items[: max(metadata * 3 // 4, 1)]
    path = folder / f"ratings_{CLOTHING}.csv"
    write_ratings(path, ratings, user_ids(max(ratings // 2, 1)), rated, header=False, day=86_400)
    write_metadata(folder / f"meta_{CLOTHING}.json.gz", items)
    return ["amazon14-clothing-ratings"]


def plain(folder: Path, interactions: int, users: int, items: int) -> list[str]:
    """One CSV file with header."""
    path = folder / "interactions.csv"
    write_ratings(path, interactions, user_ids(users), item_ids(items), header=True, day=1)
    return ["plain-table"]


def measure(
    work: str, write: Callable[[Path], list[str]], rows: int, folder: Path, threads: int
) -> Measured:
    """Write the raw files below `folder`, prepare them, and remove both."""
    with tempfile.TemporaryDirectory(prefix="mmbench-", dir=folder) as name:
        raw, data = Path(name) / "raw", Path(name) / "data"
        raw.mkdir()
        console.note(f"{work}: writing the raw files")
        arguments = write(raw)
        size = sum(path.stat().st_size for path in raw.iterdir()) / 2**20
        console.note(f"{work}: preparing {rows:,} interactions, {size:,.0f} MiB")
        elapsed, cpu, memory, kept = run_prepare(arguments, raw, data, threads)
        return Measured(work, rows, size, elapsed, cpu, memory, kept)


def show(results: list[Measured]) -> None:
    """Print the figures, with a tick or a cross where there is a bound."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("raw form", "rows", "MiB", "kept", "seconds", "CPU s", "peak MiB"):
        justify: Any = "left" if heading == "raw form" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for one in results:
        table.add_row(
            one.work,
            f"{one.rows:,}",
            f"{one.raw_mib:,.0f}",
            f"{one.kept['interactions']:,}",
            _judged(one.time_s, one.time_bound_s),
            f"{one.cpu_s:,.0f}",
            _judged(one.memory_mib, one.memory_bound_mib),
        )
    console.result(table)


def _judged(value: float, bound: float | None) -> str:
    shown = f"{value:,.0f}"
    return shown if bound is None else f"{shown} of {bound:,.0f} {'✓' if value < bound else '✗'}"


@click.command()
@click.option("--only", type=click.Choice(["clothing", "plain"]), help="Measure one form alone.")
@click.option("--ratings", type=click.IntRange(1), default=RATINGS, show_default=True)
@click.option("--metadata", type=click.IntRange(2), default=METADATA, show_default=True)
@click.option("--interactions", type=click.IntRange(1), default=INTERACTIONS, show_default=True)
@click.option("--users", type=click.IntRange(1), default=1_000_000, show_default=True)
@click.option("--items", type=click.IntRange(1), default=200_000, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
    help="Where the raw files and the dataset are written and removed; usually the system's "
    "temporary folder. The full sizes need 4 GB.",
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures there.")
def main(
    only: str | None,
    ratings: int,
    metadata: int,
    interactions: int,
    users: int,
    items: int,
    threads: int,
    folder: Path | None,
    file: Path | None,
) -> None:
    """Measure time and peak memory of mmbench prepare on large raw files.

    clothing: RATINGS rows and METADATA Python literals (gzip) in the raw form of the Amazon
    category of 2014, within 4 GiB. plain: a CSV file of INTERACTIONS rows, within 180 s. Both
    with 5-core and a random split per user. The bounds are judged at the default sizes only.
    """
    place = folder or Path(tempfile.gettempdir())
    if shutil.disk_usage(place).free < 150 * (ratings + interactions) + 1500 * metadata:
        raise click.ClickException(f"{place} has too little space; choose another --folder")
    results = []
    if only != "plain":
        one = measure("clothing", lambda raw: clothing(raw, ratings, metadata), ratings, place,
            threads)  # fmt: skip
        if (ratings, metadata) == (RATINGS, METADATA):
            one.memory_bound_mib = 4096
        results.append(one)
    if only != "clothing":
        one = measure("plain", lambda raw: plain(raw, interactions, users, items), interactions,
            place, threads)  # fmt: skip
        if interactions == INTERACTIONS:
            one.time_bound_s = 180
        results.append(one)
    show(results)
    if file is not None:
        results_of = [asdict(one) for one in results]
        report = {**made_by("prepare.py"), "threads": threads, "results": results_of}
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
