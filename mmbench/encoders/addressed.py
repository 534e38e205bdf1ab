"""Weights that are on no hub but at an address: one file, kept where torch keeps such files."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import torch

from mmbench.encoders.hub import is_offline
from mmbench.encoders.loading import Weights, local_weights
from mmbench.encoders.neural import Hub, Options
from mmbench.errors import DataError


def place_of(hub: Hub) -> Path:
    """Where the file of an address lies once it was fetched; TORCH_HOME moves the folder."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(hub.address).path).name


def stated_hash(hub: Hub) -> str:
    """The beginning of the SHA-256 that torch's file names end with; empty where there is none."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", hub.address)
    return found.group(1) if found else ""


def find_addressed(hub: Hub, options: Options, *, fetch: bool = False) -> Weights:
    """The weights in `options.weights`, where torch keeps them, or fetched from their address.

    Raises:
        DataError: E401 not here, E402 not to be had from the address, E403 a folder without
            weights, E404 a file that is broken or has another hash than its name says.
    """
    if options.weights is not None:
        return local_weights(options.weights, name=hub.id)
    place = place_of(hub)
    if not place.is_file():
        if not fetch:
            raise DataError(_not_here(hub, "nothing is fetched unasked. Pass --download, or fetch"))
        if is_offline():
            raise DataError(_not_here(hub, "HF_HUB_OFFLINE is set. Fetch"))
        _fetch(hub, place)
    weights = local_weights(place, name=hub.id)
    if not weights.digest.startswith(stated_hash(hub)):
        raise DataError(
            f"E404 {place} is not what its name says (SHA-256 {weights.digest[:12]}...); delete it "
            "and fetch it again"
        )
    return weights


def _fetch(hub: Hub, place: Path) -> None:
    if not hub.address.startswith("https://"):
        raise DataError(f"E402 {hub.address} is no https address; nothing is fetched from there")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Written under another name, compared with the hash, and renamed.
        torch.hub.download_url_to_file(
            hub.address, str(place), hash_prefix=stated_hash(hub) or None, progress=False
        )
    except (OSError, RuntimeError, ValueError) as problem:
        raise DataError(
            f"E402 {hub.address} was not fetched ({problem}). Repeat when the network is there, or "
            "fetch the file by hand and pass --weights FILE"
        ) from problem


def _not_here(hub: Hub, why: str) -> str:
    return (
        f"E401 {hub.id} is not here: looked for {place_of(hub)}, and {why} {hub.address} by hand "
        "and put it there, or pass --weights FILE"
    )
