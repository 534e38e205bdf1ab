"""Where the raw files of a dataset lie: in the folder itself, or one folder deeper.

Archives unpack into a folder of their own, and people keep them that way; so every named source
looks in both places. Looking never raises: a folder that cannot be read holds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmbench.errors import DataError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
_PICTURES = ("jpg", "jpeg", "png", "webp")


def find_home(folder: Path, *needed: Sequence[str]) -> Path | None:
    """The first of `folder` and the folders directly in it that holds all that is needed.

    Each of `needed` lists the names that one file may have.
    """
    for place in (folder, *_inside(folder)):
        if all(find_file(place, names) is not None for names in needed):
            return place
    return None


def need_home(folder: Path, *needed: Sequence[str], cure: str) -> Path:
    """As `find_home`, for a source that cannot go on without.

    Raises:
        DataError: E101, naming the first file that is missing, or the archive that is still
            packed; `cure` ends the message.
    """
    home = find_home(folder, *needed)
    if home is not None:
        return home
    # Of several folders that hold a part, the fullest is the one that was meant.
    places = (folder, *_inside(folder))
    found = [[find_file(place, names) is not None for names in needed] for place in places]
    best = max(range(len(places)), key=lambda k: (sum(found[k]), -k))
    missing = needed[found[best].index(False)][0]
    packed = [path.name for path in _listing(places[best]) if path.name.endswith(_ARCHIVES)]
    if packed:
        raise DataError(
            f"E101 {missing} not found under {places[best]}, but {', '.join(sorted(packed)[:5])} "
            "lies there still packed; unzip it there"
        )
    raise DataError(f"E101 {missing} not found under {places[best]}; {cure}")


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the files called `names` that is in `folder`."""
    for name in names:
        try:
            if (folder / name).is_file():
                return folder / name
        except OSError:
            continue
    return None


def list_pictures(folder: Path) -> dict[str, str]:
    """Path below `folder` of every picture in it or one folder deeper, by name without suffix.

    Folders are listed, files are not looked at one by one: there can be 100,000 of them. Of
    several pictures of one name the first in the order of paths counts.
    """
    found: dict[str, str] = {}
    for path in _listing(folder):
        if _is_folder(path):
            held = [f"{path.name}/{inner.name}" for inner in _listing(path.path)]
        else:
            held = [path.name]
        for name in held:
            stem, _, suffix = name.rpartition("/")[2].rpartition(".")
            if stem and suffix.lower() in _PICTURES:
                found.setdefault(stem, name)
    return found


def _inside(folder: Path) -> list[Path]:
    return [Path(path) for path in _listing(folder) if _is_folder(path)]


def _listing(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
