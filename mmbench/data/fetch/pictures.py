"""Fetching item pictures by their addresses, in parallel. CONTRACT ONLY: being built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmbench.data.fetch.download import Watch, Web, nobody


@dataclass(frozen=True)
class FetchedPictures:
    """What became of the pictures that were asked for.

    Attributes:
        files: file name below the folder of each item whose picture is there.
        failures: why there is none, for the others: "404", "not a picture (text/html)", ...
    """

    files: Mapping[str, str]
    failures: Mapping[str, str]


def find_pictures(items: Sequence[str], folder: Path) -> FetchedPictures:
    """What an earlier `fetch_pictures` left in `folder` for these items; asks no server."""
    raise NotImplementedError


def fetch_pictures(
    addresses: Mapping[str, Sequence[str]], folder: Path, web: Web, watch: Watch = nobody
) -> FetchedPictures:
    """Fetch the picture of each item, at most once; the addresses of an item are tried in order.

    `addresses` maps raw item ids to web addresses. Files are called after the percent-encoded
    item id and the type that their content shows. Failures are listed in
    `folder/../image_failures.csv` (item_id, url, status).
    """
    raise NotImplementedError
