"""What is known of a public dataset before any file of it is here: its card.

Addresses are data, not code: a mirror that dies is one line to change. Sizes and hashes are
written down only where somebody measured them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RemoteFile:
    """One raw file that can be fetched.

    Attributes:
        path: where it is put, below the raw folder of the dataset, with `/`.
        addresses: where it is, the first choice before its mirrors.
        part: "core" is fetched whenever the dataset is; other parts, for example "features" or
            "pictures", when they are asked for.
        bytes, sha256: as measured, None where unknown.
        unpacks_to: the folder below the raw folder that an archive's content goes to, "" for the
            raw folder itself; None for a file that is read as it is.
    """

    path: str
    addresses: tuple[str, ...]
    part: str = "core"
    bytes: int | None = None
    sha256: str | None = None
    unpacks_to: str | None = None


@dataclass(frozen=True)
class Published:
    """Statistics that somebody printed, to compare a preparation with.

    Attributes:
        users, items, interactions: the counts.
        settings: settings of `PrepareConfig` under which they hold, by name; empty for the
            dataset's own defaults.
        where: who printed them.
    """

    users: int
    items: int
    interactions: int
    where: str
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """A dataset that is known by name.

    Attributes:
        name: its full name, release included, for example "amazon14-baby".
        title: one line about it.
        citation, terms: how it is cited and what its terms of use are.
        page: where people read about it.
        aliases: shorter names that mean the same.
        files: what can be fetched, none where a site asks for an account or a form.
        by_hand: for those, which files to fetch and where to put them; `{folder}` stands for the
            raw folder of the dataset.
        published: statistics to compare with.
        facts: what else its source needs to know, for example the category of a shop.
    """

    name: str
    title: str
    citation: str = ""
    terms: str = ""
    page: str = ""
    aliases: tuple[str, ...] = ()
    files: tuple[RemoteFile, ...] = ()
    by_hand: str = ""
    published: tuple[Published, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> list[str]:
        """Names of the parts that are fetched only when asked for."""
        return sorted({file.part for file in self.files} - {"core"})
