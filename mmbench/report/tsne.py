"""Pictures of vectors in two dimensions, and the two numbers that need no eye.

After Figures 4 and 5 of arXiv 2403.17372: a t-SNE of random items, coloured by how often they
were trained on, and one of the items of some random users, a colour for each user. t-SNE tells
neighbours, not distances, and looks different with every seed; so two numbers stand beside it:

    same-user and different-user cosine   mean over pairs of distinct items of one user, and of
                                          two users; averaged over users and over pairs of users
    norm and popularity                   Spearman's correlation over all items of the norm of a
                                          vector with the item's training interactions
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from scipy.stats import spearmanr
from tabulate import tabulate

from mmbench import seeding
from mmbench.errors import DataError
from mmbench.metrics.lists import FloatArray, IntArray
from mmbench.report.blocks import Block, tables
from mmbench.report.listing import TABULATE
from mmbench.report.numbers import fixed, signed

ITEMS, USERS, PERPLEXITY = 1000, 10, 30.0
MEASURED_USERS = 1000
"""Users over whom the cosines are averaged; the ten in the picture are too few to measure."""
FEWEST = 5
"""Points that a picture needs."""


@dataclass(frozen=True)
class Vectors:
    """Item vectors of one system, and what it was trained on.

    Attributes:
        label: what pictures and tables call it.
        items: [I, D].
        popularity: training interactions of each item [I].
    """

    label: str
    items: NDArray[Any]
    popularity: IntArray


@dataclass(frozen=True)
class Sample:
    """The items and users that every picture shows.

    Attributes:
        items: ascending [N].
        users: the drawn users [M].
        pairs: for each drawn item of a drawn user, the place in `users` and the item [P] each.
    """

    items: IntArray
    users: IntArray
    pairs: tuple[IntArray, IntArray]


@dataclass(frozen=True)
class Geometry:
    """The numbers of one system; NaN where one is not defined.

    Attributes:
        width: D.
        same_user: mean cosine of two items of a user.
        different_users: mean cosine of two items of two users.
        gap: the first less the second: how much the items of a user stand together.
        norm_popularity: Spearman's correlation of norm and training interactions.
        n_users: users over whom the cosines were averaged.
    """

    label: str
    width: int
    same_user: float
    different_users: float
    gap: float
    norm_popularity: float
    n_users: int


@dataclass(frozen=True)
class Panels:
    """Several systems' items in two dimensions, the same items and users for each.

    Attributes:
        labels: of the systems.
        popularity: training interactions of the drawn items [N].
        by_item: of each system the drawn items' points [N, 2].
        users: the drawn users [M].
        owner: for each drawn item of a drawn user, the place in `users` [P].
        by_user: of each system these items' points [P, 2].
        numbers: of each system.
        without: labels of systems that have no vectors.
    """

    labels: tuple[str, ...]
    popularity: IntArray
    by_item: tuple[FloatArray, ...]
    users: IntArray
    owner: IntArray
    by_user: tuple[FloatArray, ...]
    numbers: tuple[Geometry, ...]
    without: tuple[str, ...] = ()


def owned_matrix(offsets: IntArray, items: IntArray, n_items: int) -> sp.csr_array:
    """Which user has which item, 0 or 1, [U, I]; an item that is there twice counts once."""
    matrix = sp.csr_array((np.ones(len(items)), items, offsets), shape=(len(offsets) - 1, n_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def draw(owned: sp.csr_array, *, items: int = ITEMS, users: int = USERS, seed: int = 0) -> Sample:
    """Draw the items and users that are shown, the same for every system.

    Args:
        owned: which user has which item [U, I].

    Raises:
        DataError: too few items, or no user with two.
    """
    n_items = owned.shape[1]
    if n_items < FEWEST:
        raise DataError(f"a picture needs {FEWEST} items or more, and there are {n_items}")
    rng = seeding.stream(seed, "t-SNE")
    chosen = np.sort(rng.choice(n_items, min(items, n_items), replace=False))
    several = np.flatnonzero(np.diff(owned.indptr) >= 2)
    if not len(several):
        raise DataError("no user has two items, so there is nothing to see of users' items")
    drawn = np.sort(rng.choice(several, min(users, len(several)), replace=False))
    rows = owned[drawn].tocoo()
    return Sample(chosen, drawn, (rows.row.astype(np.int64), rows.col.astype(np.int64)))


def flatten(vectors: NDArray[Any], *, perplexity: float = PERPLEXITY, seed: int = 0) -> FloatArray:
    """t-SNE of vectors to two dimensions, [N, 2], initialised by their principal components.

    Of few vectors the perplexity is lowered to a third of their number.

    Raises:
        DataError: there are too few vectors, or all are equal.
    """
    from sklearn.manifold import TSNE

    n = len(vectors)
    if n < FEWEST:
        raise DataError(f"a t-SNE needs {FEWEST} vectors or more, and there are {n}")
    points = np.asarray(vectors, dtype=np.float32)
    if (points == points[0]).all():
        raise DataError("all vectors are equal, so there is nothing to see; was the model trained?")
    if points.shape[1] == 1:  # principal components are two; a column of zeros changes no distance
        points = np.pad(points, ((0, 0), (0, 1)))
    tsne = TSNE(
        n_components=2, perplexity=min(perplexity, (n - 1) / 3), init="pca", random_state=seed
    )
    found: FloatArray = tsne.fit_transform(points).astype(np.float64)
    return found


def geometry(vectors: Vectors, owned: sp.csr_array, *, seed: int = 0) -> Geometry:
    """The numbers of one system; cosines over at most `MEASURED_USERS` random users."""
    items = np.asarray(vectors.items, dtype=np.float64)
    norms = np.linalg.norm(items, axis=1)
    directed = norms > 0  # a vector of zeros has no direction
    unit = np.divide(items, norms[:, None], out=np.zeros_like(items), where=directed[:, None])
    rows = owned @ sp.diags_array(directed.astype(np.float64))
    rows.eliminate_zeros()
    users = np.flatnonzero(np.diff(rows.indptr) >= 2)
    if len(users) > MEASURED_USERS:
        rng = seeding.stream(seed, "t-SNE", "users")
        users = np.sort(rng.choice(users, MEASURED_USERS, replace=False))
    rows = rows[users]
    n, sums = np.diff(rows.indptr).astype(np.float64), rows @ unit
    # Of all pairs of a user's n items, n are an item with itself, of cosine 1.
    same = ((sums * sums).sum(axis=1) - n) / np.maximum(1.0, n * (n - 1))
    shared = (rows @ rows.T).toarray()
    pairs = np.outer(n, n) - shared
    cosines = np.divide(sums @ sums.T - shared, pairs, out=np.zeros_like(pairs), where=pairs > 0)
    apart = (pairs > 0) & ~np.eye(len(n), dtype=bool)
    same_user = float(same.mean()) if len(same) else float("nan")
    different = float(cosines[apart].mean()) if apart.any() else float("nan")
    return Geometry(
        label=vectors.label,
        width=items.shape[1],
        same_user=same_user,
        different_users=different,
        gap=same_user - different,
        norm_popularity=_spearman(norms, vectors.popularity),
        n_users=len(users),
    )


def _spearman(norms: FloatArray, popularity: IntArray) -> float:
    # Equal norms differ by rounding only, as those of vectors that the model normalises.
    rounded = np.round(norms, 6)
    if len(rounded) < 2 or np.ptp(rounded) == 0 or np.ptp(popularity) == 0:
        return float("nan")
    return float(spearmanr(rounded, popularity).statistic)


HEADS = ("D", "same user", "other users", "gap", "norm~count")


def geometry_table(rows: Sequence[Geometry]) -> GeometryTable:
    """The numbers as a rich renderable."""
    return GeometryTable(tuple(rows))


@dataclass(frozen=True)
class GeometryTable:
    """Renders the numbers as wide as the console is."""

    rows: tuple[Geometry, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, and the sentences below it."""
        block = Block((), HEADS, tuple(tuple(map(Text, _cells(each))) for each in self.rows))
        labels = [each.label for each in self.rows]
        yield from tables(labels, [block], options.max_width)
        yield Text("")
        for line in geometry_notes(self.rows):
            yield Text(line, style="dim")


def geometry_notes(rows: Sequence[Geometry]) -> list[str]:
    """The sentences below the numbers."""
    users = max(each.n_users for each in rows)
    return [
        f"same user, other users: mean cosine of two items of one user, and of two users, over "
        f"{users:,} users; gap: their difference.",
        "norm~count: Spearman's correlation of a vector's norm with the item's training "
        "interactions, over all items.",
        "- where it is not defined, as of vectors of equal norm.",
    ][: 3 if any(not np.isfinite(each.norm_popularity + each.gap) for each in rows) else 2]


def geometry_text(rows: Sequence[Geometry], form: str) -> str:
    """The numbers as "github", "latex", "csv" or "json"; the last two at full precision."""
    if form in TABULATE:
        cells = [[each.label, *_cells(each)] for each in rows]
        align = ["left", *["right"] * len(HEADS)]
        return tabulate(
            cells, ["System", *HEADS], TABULATE[form], colalign=align, disable_numparse=True
        )
    records = [{key: _finite(value) for key, value in asdict(each).items()} for each in rows]
    if form == "json":
        return json.dumps(records, indent=2, allow_nan=False)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _cells(each: Geometry) -> list[str]:
    return [
        str(each.width),
        fixed(each.same_user, 3),
        fixed(each.different_users, 3),
        signed(each.gap, 3),
        signed(each.norm_popularity, 3),
    ]
