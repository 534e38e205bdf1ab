"""What the items hold, ready to be encoded in any order: token ids, pictures, kept states.

Texts are tokenised once, pictures decoded once to 8 bits a channel; both lie in memory maps, or
on the GPU where they take little of it, and go to the device by batch. What is kept on disk lies
in the dataset's folder `kept`, under a hash of all that determines it; it can be deleted at any
time and is made again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmbench.encoders.neural import NeuralEncoder
from mmbench.encoders.pictures import open_picture
from mmbench.encoders.timm_vision import visible_patches
from mmbench.engine.contents import Contents
from mmbench.engine.encoding import FEW_FAILURES, MOST_FAILURES
from mmbench.engine.feeding import default_workers, refuse_changed
from mmbench.engine.shards import canonical_hash
from mmbench.errors import DataError
from mmbench.runs import write_json

FOLDER = "kept"
SHARE = 0.4
"""Of a GPU's free memory; what needs more of it stays in the main memory or on disk."""
_UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EEXIST,
}  # fmt: skip


class Rows:
    """Rows of an array, moved to the device by batch.

    Args:
        array: [I, ...], in memory or mapped from disk.
        kind: what the bits of an array of uint16 are, as numpy has no bfloat16.
    """

    def __init__(self, array: NDArray[Any], kind: torch.dtype | None = None) -> None:
        self.array, self.kind = array, kind
        self._there: Tensor | None = None
        self._is_asked = False

    def take(self, items: Tensor) -> Tensor:
        """Rows of items int64 [N], on the device of these."""
        if items.device.type != "cuda":
            return self._typed(torch.from_numpy(self.array[items.numpy()]))
        if not self._is_asked:
            self._is_asked = True
            if self.array.nbytes <= SHARE * torch.cuda.mem_get_info(items.device)[0]:
                self._there = self._moved(items.device)
        if self._there is not None:
            return self._there.index_select(0, items)
        chosen = items.cpu().numpy()
        shape = (len(chosen), *self.array.shape[1:])
        kind = torch.from_numpy(np.empty(0, self.array.dtype)).dtype
        staged = torch.empty(shape, dtype=kind, pin_memory=True)
        np.take(self.array, chosen, axis=0, out=staged.numpy())
        return self._typed(staged.to(items.device, non_blocking=True))

    def _moved(self, device: torch.device) -> Tensor:
        kind = torch.from_numpy(np.empty(0, self.array.dtype)).dtype
        there = torch.empty(self.array.shape, dtype=kind, device=device)
        for start in range(0, len(self.array), 1024):  # never twice in main memory
            part = np.array(self.array[start : start + 1024])
            there[start : start + 1024] = torch.from_numpy(part).to(device)
        return self._typed(there)

    def _typed(self, rows: Tensor) -> Tensor:
        return rows if self.kind is None else rows.view(self.kind)


class Texts:
    """The texts of all items as token ids.

    Attributes:
        lengths: tokens of each text [I].
        longest: of them; what all are padded to where `trims` is false.
    """

    def __init__(self, encoder: NeuralEncoder, texts: Sequence[str]) -> None:
        batch = encoder.text_batch(encoder.tokenize(texts))
        self._rows = {name: Rows(ids.to(torch.int32).numpy()) for name, ids in batch.items()}
        mask = batch.get("attention_mask")
        width = next(iter(batch.values())).shape[1]
        self.lengths = np.full(len(texts), width) if mask is None else mask.sum(dim=1).numpy()
        self.longest = width
        # Of a pair the patches stand behind the text, at places that must not move.
        self.trims = mask is not None and not (encoder.fixed_length or encoder.is_joint)

    def batch(self, items: Tensor) -> dict[str, Tensor]:
        """The texts of items int64 [N], padded to the longest of them."""
        found = {name: rows.take(items).long() for name, rows in self._rows.items()}
        if not self.trims:
            return found
        width = int(self.lengths[items.cpu().numpy()].max())
        return {name: ids[:, :width] for name, ids in found.items()}


class Pictures:
    """The pictures of all items.

    Attributes:
        problems: why pictures could not be read, by item; they count as absent.
    """

    def __init__(
        self,
        encoder: NeuralEncoder,
        contents: Contents,
        ids: Sequence[str],
        seed: int,
        device: torch.device,
    ) -> None:
        assert contents.pictures is not None
        self.encoder, self.contents, self.ids, self.device = encoder, contents, ids, device
        self.present = np.array([path is not None for path in contents.pictures])
        self.problems: dict[int, str] = {}
        self._workers = default_workers(device.type == "cuda")
        self._frames: Rows | None = None
        self._there: Rows | None = None
        self._seen: Rows | None = None
        if encoder.masking is not None:
            n_patches, n_seen = encoder.masking
            # Of an item always the same in evaluation, so that its vector is one.
            drawn = [visible_patches(f"{seed}/{name}", n_patches, n_seen) for name in ids]
            self._seen = Rows(np.stack(drawn))
        blank = encoder.read_picture(Image.new("RGB", (224, 224)), ids[0])
        if encoder.masking is not None:
            blank = blank[:3]
        self._blank = torch.zeros_like(blank)

    def keep(self, folder: Path) -> None:
        """Decode all pictures to a file, unless it is there, and read them from it from now on."""
        framing = self.encoder.framing
        if framing is None:
            return
        known = {"hashes": list(self.contents.picture_hashes), "made": dict(framing.settings)}

        def fill(arrays: Sequence[NDArray[Any]]) -> dict[str, Any]:
            (frames,) = arrays
            for start in range(0, len(frames), 256):
                items = np.arange(start, min(start + 256, len(frames)))
                frames[items] = self._decoded(items)
            return {"problems": {str(item): why for item, why in self.problems.items()}}

        shape = (len(self.ids), framing.size, framing.size, 3)
        name = f"pictures-{canonical_hash(known)[:16]}"
        (frames,), facts = kept(folder, name, [(shape, np.dtype(np.uint8))], fill)
        self._note({int(item): why for item, why in facts["problems"].items()})
        self._frames, self._there = Rows(frames), Rows(self.present)

    def batch(self, items: Tensor, *, drawn: bool = False) -> dict[str, Tensor]:
        """The pictures of items int64 [N] as the model takes them; zeros where there is none.

        Args:
            drawn: hide patches at random, in place of those that the item always hides.
        """
        framing = self.encoder.framing
        if framing is None:
            return self._read(items)
        if self._frames is not None:
            frames = self._frames.take(items)
        else:
            frames = torch.from_numpy(self._decoded(items.cpu().numpy())).to(items.device)
        # Asked after the pictures were opened, as some may turn out to be broken.
        there = (self._there or Rows(self.present)).take(items)
        pixels = framing.scaled_batch(frames) * there[:, None, None, None]
        return {**self._around(len(items), items.device), "pixel_values": pixels} | self._visible(
            items, drawn
        )

    def blank(self, items: Tensor) -> dict[str, Tensor]:
        """Empty pictures in the form of those of the items, where none is looked at."""
        around = self._around(len(items), items.device)
        return around | self._visible(items, drawn=False)

    def _around(self, n: int, device: torch.device) -> dict[str, Tensor]:
        """`n` empty pictures and what a batch holds beside them."""
        made: Mapping[str, Tensor] = {"pixel_values": self._blank[None]}
        if self.encoder.masking is None:
            made = self.encoder.picture_batch([self._blank])
        return {name: one.to(device).expand(n, *one.shape[1:]) for name, one in made.items()}

    def _visible(self, items: Tensor, drawn: bool) -> dict[str, Tensor]:
        if self._seen is None or self.encoder.masking is None:
            return {}
        if not drawn:
            return {"visible": self._seen.take(items)}
        n_patches, n_seen = self.encoder.masking
        noise = torch.rand(len(items), n_patches, device=items.device)
        return {"visible": noise.argsort(dim=1)[:, :n_seen].sort(dim=1).values}

    def _read(self, items: Tensor) -> dict[str, Tensor]:
        """Pictures that keep their own form, read anew each time."""
        chosen = items.cpu().tolist()

        def one(item: int) -> Tensor:
            picture = self._opened(item)
            if picture is None:
                return self._blank
            return self.encoder.read_picture(picture, self.ids[item])

        with ThreadPoolExecutor(self._workers) as pool:
            batch = self.encoder.picture_batch(list(pool.map(one, chosen)))
        return {name: tensor.to(items.device) for name, tensor in batch.items()}

    def _decoded(self, items: NDArray[np.int64]) -> NDArray[np.uint8]:
        framing = self.encoder.framing
        assert framing is not None
        side = framing.size

        def one(item: int) -> NDArray[np.uint8]:
            picture = self._opened(item)
            if picture is None:
                return np.zeros((side, side, 3), dtype=np.uint8)
            return framing.framed(picture)

        with ThreadPoolExecutor(self._workers) as pool:
            return np.stack(list(pool.map(one, items.tolist())))

    def _opened(self, item: int) -> Image.Image | None:
        """The picture of an item; None where there is none, or none that can be read.

        Raises:
            DataError: it was changed since the preparation, or too many cannot be read.
        """
        assert self.contents.pictures is not None
        path = self.contents.pictures[item]
        if path is None or not self.present[item]:
            return None
        refuse_changed(path, self.contents.picture_hashes[item])
        try:
            return open_picture(path)
        except DataError as problem:
            self._note({item: str(problem)})
            return None

    def _note(self, problems: Mapping[int, str]) -> None:
        self.problems.update(problems)
        self.present[list(problems)] = False
        n_with = int(self.present.sum()) + len(self.problems)
        if len(self.problems) > max(FEW_FAILURES, MOST_FAILURES * n_with):
            listed = "\n".join(list(self.problems.values())[:3])
            raise DataError(
                f"E116 {len(self.problems)} of {n_with} pictures cannot be read; mend them, then "
                f"prepare the dataset again. Among them:\n{listed}"
            )


def kept(
    folder: Path,
    name: str,
    forms: Sequence[tuple[tuple[int, ...], np.dtype[Any]]],
    fill: Callable[[Sequence[NDArray[Any]]], dict[str, Any]],
) -> tuple[list[NDArray[Any]], dict[str, Any]]:
    """Arrays in a folder, mapped for reading; made by one process where they are not there.

    Args:
        forms: shape and type of each.
        fill: writes their rows and returns what to note beside them, as JSON values.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    paths = [folder / f"{name}-{number}.npy" for number in range(len(forms))]
    note = folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{name}.lock"):
            found = _opened_arrays(paths, note, forms)
            if found is not None:
                return found
            needed = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in forms)
            if needed > (free := shutil.disk_usage(folder).free):
                raise DataError(
                    f"E108 {folder}: {needed / 2**30:.1f} GiB are needed to keep {name}, "
                    f"{free / 2**30:.1f} GiB are free; make room, or set cache: false for the "
                    "encoder"
                )
            partial = [path.with_suffix(".partial") for path in paths]
            try:
                arrays = [
                    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
                    for path, (shape, dtype) in zip(partial, forms, strict=True)
                ]
                facts = fill(arrays)
                for array in arrays:
                    array.flush()
                del arrays
                for path, whole in zip(partial, paths, strict=True):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                    path.replace(whole)
                write_json(note, facts)  # last: it says that the arrays are whole
            finally:
                for path in partial:
                    path.unlink(missing_ok=True)
            found = _opened_arrays(paths, note, forms)
            assert found is not None
            return found
    except OSError as problem:
        if problem.errno not in _UNWRITABLE:
            raise
        raise DataError(
            f"{folder} cannot be written ({os.strerror(problem.errno or 0)}), where what encoders "
            "compute once is kept; make room or give the right to write"
        ) from None


def _opened_arrays(
    paths: Sequence[Path], note: Path, forms: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]
) -> tuple[list[NDArray[Any]], dict[str, Any]] | None:
    """The arrays where they are there and whole."""
    if not note.is_file():
        return None
    try:
        facts = json.loads(note.read_text(encoding="utf-8"))
        arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    except (OSError, ValueError):
        return None
    fit = all(
        array.shape == shape and array.dtype == dtype
        for array, (shape, dtype) in zip(arrays, forms, strict=True)
    )
    return (arrays, facts) if fit else None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process makes the same; the lock dies with its process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
