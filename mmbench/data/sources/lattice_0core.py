"""LATTICE's cold-start split (0-core): items held out of training.

0-core/{train,val,test}.json   "user index" -> list of item indices

A tenth of the items is in val.json alone and a tenth in test.json alone. Id lists, texts and
features are those of the 5-core folder beside it, see `lattice`.
"""

from __future__ import annotations

from pathlib import Path

from mmbench.data.source import RawDataset, Source, register_dataset
from mmbench.data.sources.lattice import COLD, core_folders, read_split
from mmbench.data.sources.positional import has_json_parts


@register_dataset("lattice-0core")
class LATTICEColdFolder(Source):
    """The cold-start split of LATTICE's layout; indices, labels and features are kept."""

    title = "the cold-start split of a folder in LATTICE's layout (0-core/train.json)"
    layout = True
    expects = "0-core/train.json, val.json and test.json, lists and features as for lattice"

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether there is a 0-core folder, and no 5-core folder that is meant first."""
        return has_json_parts(folder / COLD) and not core_folders(folder)

    def read(self, source: Path | None, scratch: Path) -> RawDataset:
        """Read the folder `source`; see `Source.read`."""
        assert source is not None
        split = source / COLD
        lists = next((core for core in core_folders(source)), split)
        return read_split(source, split, lists, scratch)
