"""Rows of a layout: which systems stand in one group, under which name, and in which order.

A row is made from the first system that belongs into it, with a function that says of any other
one whether it does too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mmbench.modality import MODALITIES
from mmbench.report.paradigms import Encoding, name_of
from mmbench.report.systems import System

Kind = Literal["encoders", "paradigms", "modalities"]
MODELS = ("vbpr", "mmgcn", "mmgcl", "slmrec", "lattice")
"""Recommenders in the order of the paper; others follow."""
PARADIGMS = ("fixed", "pt", "ft", "ete", "table")
FROZEN = ("pt", "fixed")


@dataclass(frozen=True)
class Place:
    """A system and where it belongs: the recommender, the encoder, the paradigm, the modalities."""

    system: System
    model: str
    encoding: Encoding


@dataclass(frozen=True)
class Row:
    """One row of the layout.

    Attributes:
        group: number of its group, from 0.
        name: what tells it from the others of its group, for example "PT".
        label: what the table calls it, for example "vbpr clip-vit-b16 PT".
        is_separate: whether its encoders are specific to a modality.
    """

    group: int
    name: str
    label: str
    model: str
    encoder: str
    paradigm: str
    letters: str
    is_separate: bool


def called(place: Place) -> str:
    """A system by where it belongs, for sentences."""
    e = place.encoding
    return f"{place.model} {e.encoder} {name_of(e.paradigm)}" if e.encoders else place.model


def rows_of(kind: Kind, places: Sequence[Place]) -> dict[Row, Callable[[Place], bool]]:
    """The rows in their order, each with what says whether a system belongs into it."""
    make = {"encoders": _by_encoder, "paradigms": _by_paradigm, "modalities": _by_modality}[kind]
    rows: dict[Row, Callable[[Place], bool]] = {}
    for group, members in enumerate(make(sorted(places, key=_order))):
        for row, belongs in members:
            rows[replace(row, group=group)] = belongs
    return rows


def _order(place: Place) -> tuple[int, str, bool, str, int, int, tuple[int, ...]]:
    encoding = place.encoding
    known = place.model in MODELS
    stage = PARADIGMS.index(encoding.paradigm) if encoding.paradigm in PARADIGMS else len(PARADIGMS)
    return (
        MODELS.index(place.model) if known else len(MODELS),
        place.model,
        encoding.is_shared,
        encoding.encoder,
        stage,
        -len(encoding.encoders),
        tuple(MODALITIES.index(modality) for modality, _ in encoding.encoders),
    )


_Members = list[tuple[Row, Callable[[Place], bool]]]


def _row(place: Place, name: str, *parts: str) -> Row:
    e = place.encoding
    label = " ".join((place.model, *parts))
    return Row(0, name, label, place.model, e.encoder, e.paradigm, e.letters, not e.is_shared)


def _grouped(
    places: Sequence[Place],
    group: Callable[[Place], tuple[str, ...]],
    name: Callable[[Place], str],
    label: Callable[[Place], tuple[str, ...]],
) -> list[_Members]:
    """Rows by group and by name, in the order in which they come."""
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for place in places:
        rows = groups.setdefault(group(place), {})
        rows.setdefault(name(place), _row(place, name(place), *label(place)))
    return [
        [
            (row, lambda p, key=key, own=row.name: group(p) == key and name(p) == own)  # type: ignore[misc]
            for row in rows.values()
        ]
        for key, rows in groups.items()
    ]


def _by_encoder(places: Sequence[Place]) -> list[_Members]:
    def stage(place: Place) -> str:
        return "pt" if place.encoding.paradigm in FROZEN else place.encoding.paradigm

    several = len({stage(place) for place in places}) > 1

    def label(place: Place) -> tuple[str, ...]:
        e = place.encoding
        stages = [name_of(e.paradigm)] if several else []
        return (e.encoder, *stages, *_fewer(place, places))

    return _grouped(
        places,
        lambda place: (place.model, stage(place), place.encoding.letters),
        lambda place: place.encoding.encoder,
        label,
    )


def _by_paradigm(places: Sequence[Place]) -> list[_Members]:
    return _grouped(
        places,
        lambda place: (place.model, place.encoding.encoder, place.encoding.letters),
        lambda place: name_of(place.encoding.paradigm),
        lambda place: (
            place.encoding.encoder,
            name_of(place.encoding.paradigm),
            *_fewer(place, places),
        ),
    )


def _fewer(place: Place, places: Sequence[Place]) -> tuple[str, ...]:
    """The modalities, where others of the recommender have more."""
    most = max(len(p.encoding.encoders) for p in places if p.model == place.model)
    return () if len(place.encoding.encoders) == most else (f"({place.encoding.letters})",)


def _by_modality(places: Sequence[Place]) -> list[_Members]:
    """A group for each recommender with all modalities: it, then those with some of them."""
    most_first = sorted(places, key=lambda p: (-len(p.encoding.encoders), _order(p)))
    wholes: list[Place] = []
    for place in most_first:
        inside = any(place.model == w.model and _pairs(place) <= _pairs(w) for w in wholes)
        if place.encoding.encoders and not inside:
            wholes.append(place)
    groups: list[_Members] = []
    for whole in sorted(wholes, key=_order):
        e = whole.encoding

        def belongs(place: Place, letters: str, of: Place = whole) -> bool:
            same = place.model == of.model and place.encoding.letters == letters
            return same and _pairs(place) <= _pairs(of)

        letters = [p.encoding.letters for p in most_first if belongs(p, p.encoding.letters)]
        members: _Members = [
            (
                replace(
                    _row(whole, each, e.encoder, name_of(e.paradigm), f"({each})"), letters=each
                ),
                lambda p, each=each, ask=belongs: ask(p, each),  # type: ignore[misc]
            )
            for each in dict.fromkeys(letters)
        ]
        if len(members) > 1:
            groups.append(members)
    return groups


def _pairs(place: Place) -> frozenset[tuple[tuple[str, str], tuple[str, str]]]:
    return frozenset(zip(place.encoding.encoders, place.encoding.paradigms, strict=True))
