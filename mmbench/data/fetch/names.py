"""File names for raw ids, which may be anything: paths, dots, very long, or differ by case only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import quote

_LONGEST = 150
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def name_for(item: str, *, caseless: bool = False) -> str:
    """The percent-encoded id; one that would be too long for a file name ends with its hash.

    Args:
        caseless: encode every letter, so that no two ids differ by case alone.
    """
    name = quote(item, safe="", errors="surrogatepass") or "%"
    if name.startswith(".") or _RESERVED.match(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if caseless:  # but not the letters of the codes themselves
        name = re.sub(r"(%..)|([A-Za-z])", lambda m: m[1] or f"%{ord(m[2]):02X}", name)
    if len(name) > _LONGEST:
        name = f"{name[:100]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return name


def names_for(items: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """A name for each item, different from each other and from `taken` on every file system."""
    folded = {name.casefold() for name in taken}
    names = {}
    for item in items:
        name = name_for(item)
        if name.casefold() in folded:
            name = name_for(item, caseless=True)
        folded.add(name.casefold())
        names[item] = name
    return names
