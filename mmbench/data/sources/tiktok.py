"""TikTok micro-videos, as DiffMM distributes them: a split and features, no raw content.

trnMat.pkl, valMat.pkl, tstMat.pkl   the three parts of the split, pickled SciPy matrices
image_feat.npy, audio_feat.npy       128 columns each, row k belongs to item k
text_feat.npy                        768 columns

The site of the challenge that the videos are from is closed. Three copies of different sizes are
about; this is the one of DiffMM. MMSSL's (9,319 users, JSON) is read by the layout `hkuds` too.
The features are all that is known of the videos, so they are fetched with the split.
"""

from __future__ import annotations

from pathlib import Path

from mmbench.data.cards import Card, Published, RemoteFile
from mmbench.data.source import DATASETS, RawDataset, Source, register_dataset

_PAGE = "https://github.com/HKUDS/DiffMM"
_COMMIT = "fae20e642aeeaad4284be6f7fb3432ebb551da8e"
_PLACES = (
    f"https://raw.githubusercontent.com/HKUDS/DiffMM/{_COMMIT}/Datasets/tiktok/",
    f"https://github.com/HKUDS/DiffMM/raw/{_COMMIT}/Datasets/tiktok/",
)
_MEASURED = {
    "trnMat.pkl": (953_073, "1efbc49d1a7ce5268f01e3e0c558df1f8f8644628c76aa6536be4ec61d256916"),
    "valMat.pkl": (49_233, "b6971ed696613d565613dd74b101c45b2aa002b66e8ba99cad03abf04db2397b"),
    "tstMat.pkl": (98_497, "e83a93787d88728572dbdd5b131bae01a90e17c340820e7b8f0a7c27e69d6f9e"),
    "image_feat.npy": (
        1_717_888, "f6c1ec1726ed2aa80315411199ab2143bee6333821bf58c5f00bd3f5b462efc2",
    ),
    "audio_feat.npy": (
        1_717_888, "d45a44a9d462f578802de914c2feea5cfd45742b2922775a085b9bdc1beba26f",
    ),
    "text_feat.npy": (None, None),
}  # fmt: skip
_CARD = Card(
    name="tiktok",
    title="TikTok micro-videos as released with DiffMM (9,308 users, 6,710 videos), features only",
    citation=(
        "Y. Jiang, L. Xia, W. Wei, D. Luo, K. Lin, C. Huang. DiffMM: Multi-Modal Diffusion Model "
        "for Recommendation. ACM MM 2024. "
        "W. Wei, C. Huang, L. Xia, C. Zhang. Multi-Modal Self-Supervised Learning for "
        "Recommendation. WWW 2023."
    ),
    terms="none stated; the authors ask to be cited; the videos are not distributed",
    page=_PAGE,
    files=tuple(
        RemoteFile(
            path=name,
            addresses=tuple(place + name for place in _PLACES),
            bytes=size,
            sha256=digest,
        )
        for name, (size, digest) in _MEASURED.items()
    ),
    published=(
        Published(
            9_308,
            6_710,
            68_722,
            where="DiffMM, table of datasets",
            settings={"user_min": 0, "item_min": 0},
        ),
    ),
)


@register_dataset("tiktok")
class TikTok(Source):
    """TikTok in the files of DiffMM, read by the layout they share with MMSSL."""

    title = _CARD.title
    citation = _CARD.citation
    terms = _CARD.terms
    expects = "the files of DiffMM's Datasets/tiktok; any other copy is read by its layout"

    @classmethod
    def cards(cls) -> tuple[Card, ...]:
        """The one dataset of this source."""
        return (_CARD,)

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        # Looked up, not imported: a source is known by its name, and files beside this one stay
        # apart from it.
        return DATASETS.get("hkuds").obj(self.card).read(source, scratch)
