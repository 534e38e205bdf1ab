"""Unpacking archives that nobody has looked into. CONTRACT ONLY: being built."""

from __future__ import annotations

from pathlib import Path


def unpack(
    archive: Path, target: Path, *, max_bytes: int = 200 * 2**30, max_files: int = 5_000_000
) -> None:
    """Unpack a zip or (compressed) tar below `target`, whole or not at all.

    Raises:
        DataError: it is broken (E106), or a member is a link, a device, lies outside the target,
            or the whole is larger than allowed (E107).
    """
    raise NotImplementedError


def check_kind(path: Path) -> None:
    """Check that a fetched file is what its suffix says (.gz, .zip, .json, .csv, .npy, ...).

    Raises:
        DataError: E106, for example for the login page of a site saved under the name.
    """
    raise NotImplementedError
