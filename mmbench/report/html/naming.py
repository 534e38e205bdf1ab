"""Names of files and ids from what users named."""

from __future__ import annotations

import re


def slug(text: str) -> str:
    """Letters, digits and hyphens alone: "ndcg@20" becomes "ndcg-20"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
