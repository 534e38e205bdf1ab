"""Item text: which fields, cleaned how, joined in which order."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable

_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SPACE = re.compile(r"\s+")


def clean_text(text: str | None) -> str:
    """One field without entities, tags and control characters, in NFC, white space collapsed."""
    if not text:
        return ""
    # Twice, because shops escape texts that were escaped already (`&amp;quot;`).
    plain = html.unescape(html.unescape(text)) if "&" in text else text
    if "<" in plain:
        plain = _TAG.sub(" ", plain)
    return _SPACE.sub(" ", unicodedata.normalize("NFC", _CONTROL.sub("", plain))).strip()


def compose(parts: Iterable[str]) -> str:
    """Cleaned fields joined by a full stop; empty ones are skipped, so no item has a blank text."""
    return ". ".join(part for part in parts if part)
