"""Having the raw files of a known dataset here: found, fetched when agreed, or asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mmbench.data.cards import Card
from mmbench.data.fetch.download import Plan, download, missing_files, plan
from mmbench.data.fetch.ledger import LEDGER
from mmbench.data.fetch.web import Watch, Web, nobody
from mmbench.data.finding import Found
from mmbench.errors import DataError, UnknownNameError

PICTURES = "pictures"
"""The part that is fetched by the addresses in the item table, for the items that are kept."""


def _never(card: Card, plan: Plan) -> bool:
    return False


@dataclass(frozen=True)
class Fetching:
    """Whether and how files are fetched.

    Attributes:
        agree: asked, with the sizes known, before the first file is fetched.
        parts: parts beside "core" that are wanted.
        web: how to reach servers.
        watch: told how the work goes on.
    """

    agree: Callable[[Card, Plan], bool] = _never
    parts: frozenset[str] = frozenset()
    web: Web = field(default_factory=Web)
    watch: Watch = nobody


def obtain(found: Found, fetching: Fetching) -> None:
    """Make sure that the raw folder holds the files that are wanted.

    A folder that the user gave is taken as it is.

    Raises:
        UnknownNameError: a part is wanted that the dataset does not have.
        DataError: files are missing and must not, or cannot, be fetched.
    """
    card, folder = found.card, found.folder
    if not found.fetched or card is None or folder is None:
        return
    parts = {*card.parts, PICTURES}
    for part in sorted(fetching.parts - parts):
        raise UnknownNameError(f"part of {card.name}", part, parts)
    if not card.files:
        if not (folder.is_dir() and found.source.recognises(folder)):
            raise DataError(
                f"E104 {card.name} needs a login or a manual download: {card.page}\n"
                + card.by_hand.format(folder=folder)
            )
        return
    wanted = [file for file in card.files if file.part in {"core", *fetching.parts}]
    if not missing_files(wanted, folder):
        return
    by_hand = not (folder / LEDGER).exists() and found.source.recognises(folder)
    if by_hand and not missing_files([f for f in wanted if f.part != "core"], folder):
        return  # brought by hand, perhaps unpacked or under other names
    planned = plan(wanted, folder, fetching.web)
    if not fetching.agree(card, planned):
        names = ", ".join(file.path for file in planned.missing)
        raise DataError(
            f"E101 {card.name} is not here, and nothing is fetched unasked. Pass --download to "
            f"fetch {names} from {planned.missing[0].addresses[0]} ..., or put the files into "
            f"{folder}, or name their folder with --source"
        )
    download(planned, fetching.web, fetching.watch)
