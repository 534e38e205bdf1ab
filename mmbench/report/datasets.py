"""Tables about datasets: what there is, and what one holds. They fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mmbench.report.labels import wrap_label

_WIDTH = 80
_NAME = 31  # cells for the name of a dataset, in a list of them
_STEPS = ("min", "q25", "median", "mean", "q75", "max")


def listing_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Datasets, then layouts: name, whether it is here or how it comes, and what it is."""
    table = Table(
        title="Datasets, then layouts",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    longest = max((len(row["name"]) for row in rows), default=4)
    table.add_column("name", min_width=min(longest, _NAME), max_width=_NAME, overflow="fold")
    table.add_column("", min_width=len("by hand"), no_wrap=True)
    table.add_column("what it is", overflow="fold")
    table.caption = (
        "here: prepared in the data folder; the others come with: mmbench prepare NAME\n"
        "by hand: the site asks for a login or a form; prepare NAME says which files\n"
        "layout: reads any folder of that form; mmbench prepare NEW --source DIR\n"
        "files, terms and sizes of a dataset: mmbench prepare NAME --about"
    )
    for row in sorted(rows, key=lambda row: row["kind"] == "layout"):
        state = "by hand" if row.get("by_hand") else "layout" if row["kind"] == "layout" else ""
        name = wrap_label(row["name"], _NAME)
        table.add_row(Text(name), "here" if row["prepared"] else state, Text(row["about"]))
    return table


def card_tables(card: Any) -> Iterator[Table | Text]:
    """The parts of `mmbench prepare NAME --about`; `card` is a `mmbench.data.cards.Card`."""
    table = _table(f"{card.name}: {card.title}", "", "")
    table.show_header = False
    table.width = _WIDTH
    facts = {
        "also called": ", ".join(card.aliases),
        "page": card.page,
        "terms": card.terms,
        "cite": card.citation,
        "by hand": card.by_hand.format(folder=f"DATA_DIR/_raw/{card.name}"),
    }
    for key, value in facts.items():
        if value:
            table.add_row(key, escape(value))
    for published in card.published:
        settings = ", ".join(f"{key} {value}" for key, value in published.settings.items())
        table.add_row(
            "published",
            escape(
                f"{published.users:,} users, {published.items:,} items, "
                f"{published.interactions:,} interactions ({published.where}"
                + (f"; {settings})" if settings else ")")
            ),
        )
    yield table
    if not card.files:
        return
    table = _table("Files", "part", "file", "bytes", "SHA-256")
    table.caption = "core is always fetched; other parts with --with PART"
    table.columns[2].justify = "right"
    for file in card.files:
        size = f"{file.bytes:,}" if file.bytes is not None else "not known"
        known = file.sha256[:16] if file.sha256 else "not known"
        table.add_row(file.part, escape(file.path), size, known)
    yield table
    addresses = [address for file in card.files for address in file.addresses]
    # Not folded: an address is to be copied.
    yield Text("\n".join(["Addresses", *addresses]), no_wrap=True, overflow="ignore")


def summary_line(facts: Mapping[str, Any], status: str) -> str:
    """One line about a dataset that was just prepared."""
    counts = facts["counts"]
    features = ", ".join(feature["key"] for feature in facts["features"]) or "none"
    return (
        f"{facts['name']}: {status} in {facts['root']}\n"
        f"  {counts['users']:,} users, {counts['items']:,} items, "
        f"{counts['interactions']:,} interactions\n"
        f"  splits: {', '.join(split['name'] for split in facts['splits'])}\n"
        f"  features: {features}"
    )


def description_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of `mmbench prepare NAME --describe`."""
    yield _overview(facts)
    yield _distributions(facts)
    yield _splits(facts)
    yield _coverage(facts)
    yield _features(facts)


def alignment_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """How well feature sets of equal width agree, of `mmbench.data.aligned.alignments`."""
    ks = list(found[0]["recall_first"])
    heads = [*(f"R@{k}" for k in ks), "uniform", "paired", "others", "gap"]
    table = _table("Alignment", "features", *heads, numbers=True)
    table.caption = (
        "R@K: an item's other vector is among the K nearest, from each side; cosine of\n"
        "pairs and of others; gap: distance of the means. Sets of two encoders share no\n"
        "space, unless they were trained to."
    )
    for one in found:
        sides = [f"{one['recall_first'][k]:.3f}\n{one['recall_second'][k]:.3f}" for k in ks]
        even = f"{one['uniformity_first']:.2f}\n{one['uniformity_second']:.2f}"
        both = [f"{one[key]:.3f}" for key in ("paired", "unpaired", "gap")]
        table.add_row(f"{one['first']}\n{one['second']}", *sides, even, *both)
    return table


def _table(title: str, *heads: str, numbers: bool = False) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", width=None)
    for position, head in enumerate(heads):
        justify = "right" if numbers and position else "left"
        table.add_column(head, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _overview(facts: Mapping[str, Any]) -> Table:
    counts, time, source = facts["counts"], facts["time"], facts["source"]
    table = _table(f"Dataset {facts['name']}", "", "")
    table.show_header = False
    table.width = _WIDTH
    table.add_row("users", f"{counts['users']:,}")
    unseen = counts["items_unseen"]
    table.add_row("items", f"{counts['items']:,}" + (f" ({unseen:,} unseen)" if unseen else ""))
    table.add_row("interactions", f"{counts['interactions']:,}")
    table.add_row("density", f"{counts['density']:.6f}  (sparsity {counts['sparsity']:.4%})")
    if time["has_timestamps"]:
        table.add_row(
            "time",
            f"{_day(time['min'])} .. {_day(time['max'])}, {time['tied_rows']:,} rows share user "
            "and time",
        )
    else:
        table.add_row("time", "none")
    settings = [f"{k} {v}" for k, v in facts["config"].items() if v is not None]
    table.add_row("settings", escape(", ".join(settings)))
    origin = source["dataset"] or source["format"]
    table.add_row("source", escape(f"{origin}: {source['root'] or 'generated'}"))
    if source["licence_note"]:
        table.add_row("terms", escape(source["licence_note"]))
    for key, value in facts["facts"].items():
        table.add_row(escape(str(key)), escape(str(value)))
    table.add_row("fingerprint", facts["fingerprint"][:16])
    return table


def _distributions(facts: Mapping[str, Any]) -> Table:
    table = _table("Interactions", "per", *_STEPS, numbers=True)
    for head, key in (("user", "per_user"), ("item", "per_item")):
        spread = facts["counts"][key]
        table.add_row(head, *(f"{spread[step]:,.2f}".removesuffix(".00") for step in _STEPS))
    return table


def _splits(facts: Mapping[str, Any]) -> Table:
    table = _table(
        "Splits (the first is the default)",
        "split", "train", "valid", "test", "test users", "new items",
        numbers=True,
    )  # fmt: skip
    table.columns[0].no_wrap = True
    if any(split["rows"][3] for split in facts["splits"]):
        table.add_column("left out", justify="right")
    table.caption = "new items: items of the test part without a training row"
    for split in facts["splits"]:
        *rows, left_out = split["rows"]
        numbers = [*rows, split["users"][2], split["items_unseen_in_test"], left_out]
        shown = [f"{number:,}" for number in numbers]
        table.add_row(split["name"], *shown[: len(table.columns) - 1])
    return table


def _coverage(facts: Mapping[str, Any]) -> Table:
    n_items, text, images = facts["counts"]["items"], facts["text"], facts["images"]
    table = _table("Modality coverage", "content", "items", "share", "", numbers=True)
    words = text["words"]
    about = (
        f"words {words['min']:.0f}..{words['max']:.0f}, median {words['median']:.0f}"
        if words
        else ""
    )
    table.add_row("text", f"{text['ok']:,}", f"{text['ok'] / n_items:.1%}", about)
    bad = [f"{images[key]:,} {key}" for key in ("corrupt", "placeholder") if images[key]]
    why = {"not_fetched": "not fetched", "failed": "could not be fetched"}
    bad += [f"{images[key]:,} {words}" for key, words in why.items() if images[key]]
    if images["duplicate_groups"]:
        bad.append(f"{images['duplicate_groups']:,} groups of equal ones")
    table.add_row("pictures", f"{images['ok']:,}", f"{images['ok'] / n_items:.1%}", ", ".join(bad))
    if images["not_fetched"]:
        table.caption = f"fetch pictures: mmbench prepare {facts['name']} --with pictures --force"
    return table


def _features(facts: Mapping[str, Any]) -> Table:
    n_items = facts["counts"]["items"]
    table = _table(
        "Feature sets", "modality", "encoder", "dim", "type", "items", "share", numbers=True
    )
    for feature in facts["features"]:
        modality, _, encoder = feature["key"].partition("__")
        present = feature["present"] or 0
        shape = feature["shape"] or [0, 0]
        table.add_row(
            modality, encoder, str(shape[1]), str(feature["dtype"]), f"{present:,}",
            f"{present / n_items:.1%}",
        )  # fmt: skip
    if not facts["features"]:
        table.caption = f"none; make them with: mmbench extract {facts['name']}"
    return table


def _day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc).date().isoformat()
