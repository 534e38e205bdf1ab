"""Reading SciPy sparse matrices from pickles without running what a pickle says.

A pickle is a program: it names functions and calls them. Here it may name only what SciPy's
matrices are made of, and each of those names means an inert stand-in that keeps what it is
given. What came out is then decoded as data, every size and type checked; neither SciPy nor a
constructor of NumPy takes part in the loading.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mmbench.errors import DataError

SIZE_CAP = 2**30
"""Bytes up to which a pickle is read, 1 GiB: some 80 million entries."""
_MAX_INSTRUCTIONS = 2000  # a matrix needs about a hundred; its arrays are one instruction each
_MAX_SIDE = 2**31 - 1
_DTYPES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "b1")
_INSTRUCTIONS = {
    *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "NEWOBJ", "REDUCE", "BUILD"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_SHARED = {
    *("GLOBAL", "STACK_GLOBAL", "NEWOBJ", "REDUCE", "EMPTY_DICT", "GET", "BINGET", "LONG_BINGET"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Instructions whose results a pickle may use more than once."""


@dataclass(frozen=True)
class SparseEntries:
    """The stored entries of a sparse matrix, in stored order.

    Attributes:
        shape: rows and columns.
        row, col: int64 [n], within `shape`.
        value: [n], of the type that was stored.
    """

    shape: tuple[int, int]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    value: NDArray[Any]

    def positions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of each entry that is not zero, int64 [m] each."""
        there = self.value != 0
        return self.row[there], self.col[there]


def read_sparse(path: Path) -> SparseEntries:
    """Read a pickled COO, CSR or CSC matrix (or array) of SciPy, protocols 2 to 5.

    Raises:
        DataError: the file is missing (E101), not a whole pickle (E106), or holds anything but
            one such matrix whose parts fit each other (E116).
    """
    if not path.is_file():
        raise DataError(f"E101 {path.name} not found under {path.parent}; check --source")
    size = path.stat().st_size
    if size > SIZE_CAP:
        raise DataError(
            f"E116 {path}: {size:,} bytes; pickles above {SIZE_CAP:,} bytes are not read, convert "
            "it to tables"
        )
    content = path.read_bytes()
    _check_instructions(content, path)
    try:
        loaded = _Restricted(io.BytesIO(content), path).load()
    except (
        pickle.UnpicklingError, EOFError, TypeError, ValueError, AttributeError, LookupError,
        ArithmeticError, MemoryError, RecursionError,
    ) as error:  # fmt: skip
        raise _refuse(path, f"its instructions do not fit together ({error})") from None
    return _Decoder(path).matrix(loaded)


def _refuse(path: Path, problem: str) -> DataError:
    return DataError(f"E116 {path}: {problem}; only SciPy sparse matrices are read")


def _check_instructions(content: bytes, path: Path) -> None:
    """Look through the pickle without following it; refuse what no matrix needs.

    What a matrix does not need includes shared tuples: hashing a pair of pairs of pairs, each of
    them one object used twice, would take forever. So only what is surely none is used again.
    """
    if content[:1] != b"\x80":
        if content[:1] in (b"c", b"(", b"}", b"]"):
            raise DataError(
                f"E116 {path}: a pickle of protocol 0 or 1, which is not read; write it again with "
                "pickle.dump(..., protocol=4)"
            )
        what = "it is empty" if not content.strip() else "it does not begin like one"
        if content.lstrip()[:1] == b"<":
            what = "it is a web page"
        raise DataError(f"E106 {path} is not a pickle ({what}); download it again")
    if content[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise _refuse(path, "its protocol is not one of 2 to 5")
    file = io.BytesIO(content)
    harmless: dict[int, bool] = {}  # what lies at a place of the pickle's memory
    before = ""  # the instruction that made what is on top of its stack
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
            name, place = instruction.name, -1
            if name not in _INSTRUCTIONS:
                raise _refuse(path, f"pickle uses the instruction {name}, not allowed")
            if count > _MAX_INSTRUCTIONS:
                raise _refuse(path, f"pickle has more than {_MAX_INSTRUCTIONS} instructions")
            if name == "MEMOIZE":
                place = len(harmless)
            elif name.endswith(("PUT", "GET")) and argument is not None:
                place = int(argument)
            if place > _MAX_INSTRUCTIONS:
                raise _refuse(path, f"pickle uses place {place} of its memory")
            if name == "MEMOIZE" or name.endswith("PUT"):
                harmless[place] = before in _SHARED
            elif name.endswith("GET") and not harmless.get(place, False):
                raise _refuse(
                    path, f"pickle uses place {place} of its memory, perhaps a tuple, again"
                )
            elif name not in ("FRAME", "PROTO"):
                before = name
    except (ValueError, OverflowError, MemoryError) as error:
        raise DataError(
            f"E106 {path} is not a complete pickle ({error}); download it again"
        ) from None
    if file.read(1):
        raise _refuse(path, "something follows the end of the pickle")


class _StandIn:
    """What a pickled object becomes: what it was made with, and the state it was given."""

    __slots__ = ("made_with", "state")
    made_with: tuple[Any, ...]
    state: Any

    def __new__(cls, *made_with: Any) -> _StandIn:
        self = super().__new__(cls)
        self.made_with, self.state = made_with, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Coo(_StandIn):
    """coo_matrix or coo_array."""

    __slots__ = ()


class _Csr(_StandIn):
    """csr_matrix or csr_array."""

    __slots__ = ()


class _Csc(_StandIn):
    """csc_matrix or csc_array."""

    __slots__ = ()


class _Array(_StandIn):
    """The class numpy.ndarray, which is named but never made."""

    __slots__ = ()


class _Dtype(_StandIn):
    """numpy.dtype."""

    __slots__ = ()


class _Reconstructed(_StandIn):
    """An array of protocols 2 to 4: made empty, its content given as state."""

    __slots__ = ()


class _FromBuffer(_StandIn):
    """An array of protocol 5: made with its content."""

    __slots__ = ()


class _Encoded(_StandIn):
    """Bytes of protocol 2: text to be encoded as latin-1."""

    __slots__ = ()


_ALLOWED: dict[tuple[str, str], type[_StandIn]] = {
    (f"scipy.sparse.{private}{form}", f"{form}_{kind}"): stand_in
    for form, stand_in in (("coo", _Coo), ("csr", _Csr), ("csc", _Csc))
    for private in ("", "_")
    for kind in ("matrix", "array")
} | {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstructed,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstructed,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
}


class _Restricted(pickle.Unpickler):
    """An unpickler to which every allowed name means a stand-in, and no other name anything."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, fix_imports=False)
        self._path = path

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        stand_in = _ALLOWED.get((module, name))
        if stand_in is None:
            raise _refuse(self._path, f"pickle uses {module}.{name}, not allowed")
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise _refuse(self._path, "pickle refers to something outside it, not allowed")


class _Decoder:
    """Makes arrays of the stand-ins that a pickle left; trusts nothing in them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def matrix(self, loaded: Any) -> SparseEntries:
        """The entries of the matrix that `loaded` stands for."""
        if not isinstance(loaded, (_Coo, _Csr, _Csc)) or not isinstance(loaded.state, dict):
            raise _refuse(self.path, "it holds something else")
        state = loaded.state
        sides = state.get("_shape")
        if not isinstance(sides, tuple) or len(sides) != 2 or not all(map(_is_count, sides)):
            raise self._broken("its shape is not two whole numbers")
        n_rows, n_cols = sides
        value = self._array(state.get("data"), "data")
        if isinstance(loaded, _Coo):
            row, col = self._coordinates(state)
        elif isinstance(loaded, _Csr):
            row, col, value = self._compressed(state, n_rows, value)
        else:
            col, row, value = self._compressed(state, n_cols, value)
        if not row.size == col.size == value.size:
            raise self._broken(f"it has {row.size} rows, {col.size} columns, {value.size} values")
        for what, index, side in (("row", row, n_rows), ("column", col, n_cols)):
            outside = (index < 0) | (index >= side)
            if outside.any():
                bad = int(index[outside.argmax()])
                raise self._broken(f"{what} {bad} lies outside its shape {n_rows} x {n_cols}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise self._broken("it holds NaN or infinity")
        return SparseEntries((n_rows, n_cols), row, col, value)

    def _broken(self, problem: str) -> DataError:
        return DataError(f"E116 {self.path}: {problem}; the matrix is broken, write it again")

    def _coordinates(self, state: dict[Any, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of each entry: one pair in newer versions of SciPy, two parts before."""
        pair = state.get("coords", (state.get("row"), state.get("col")))
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise self._broken("its coordinates are not two arrays")
        return self._indices(pair[0], "row"), self._indices(pair[1], "col")

    def _compressed(
        self, state: dict[Any, Any], n_major: int, value: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        """Index along the compressed side, index along the other, and value of each entry."""
        starts = self._indices(state.get("indptr"), "indptr")
        minor = self._indices(state.get("indices"), "indices")
        if starts.size != n_major + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
            raise self._broken("its indptr does not divide the entries")
        n = int(starts[-1])
        if n > minor.size or minor.size != value.size:
            raise self._broken(f"it has {n} entries, {minor.size} indices, {value.size} values")
        # SciPy keeps room behind the last entry when some were taken out.
        return np.repeat(np.arange(n_major), np.diff(starts)), minor[:n], value[:n]

    def _indices(self, stands_for: Any, what: str) -> NDArray[np.int64]:
        array = self._array(stands_for, what)
        if array.dtype.kind not in "iu":
            raise self._broken(f"its {what} is of type {array.dtype}, not whole numbers")
        if array.size and int(array.max()) > _MAX_SIDE:
            raise self._broken(f"its {what} holds {int(array.max())}")
        return array.astype(np.int64)

    def _array(self, stands_for: Any, what: str) -> NDArray[Any]:
        """The one-dimensional array that a stand-in stands for, in this machine's byte order."""
        if isinstance(stands_for, _Reconstructed) and stands_for.made_with[:1] == (_Array,):
            parts = stands_for.state
            if not isinstance(parts, tuple) or len(parts) != 5:
                raise self._broken(f"its {what} is no array")
            _, shape, dtype, _, content = parts
        elif isinstance(stands_for, _FromBuffer) and len(stands_for.made_with) == 4:
            content, dtype, shape, _ = stands_for.made_with
        else:
            raise self._broken(f"its {what} is no array")
        if not isinstance(shape, tuple) or len(shape) != 1 or not _is_count(shape[0]):
            raise self._broken(f"its {what} is not one-dimensional")
        if isinstance(content, _Encoded):
            content = self._encoded(content, what)
        kind = self._dtype(dtype, what)
        if not isinstance(content, (bytes, bytearray)):
            raise self._broken(f"its {what} holds no bytes")
        if len(content) != shape[0] * kind.itemsize:
            raise self._broken(
                f"its {what} holds {len(content)} bytes, not the {shape[0] * kind.itemsize} of "
                f"{shape[0]} x {kind.itemsize}"
            )
        return np.frombuffer(content, dtype=kind).astype(kind.newbyteorder("="), copy=False)

    def _encoded(self, stands_for: _Encoded, what: str) -> bytes:
        made_with = stands_for.made_with
        if len(made_with) == 2 and isinstance(made_with[0], str) and made_with[1] == "latin1":
            try:
                return made_with[0].encode("latin-1")
            except UnicodeEncodeError:
                pass
        raise self._broken(f"its {what} is not encoded as latin-1")

    def _dtype(self, stands_for: Any, what: str) -> np.dtype[Any]:
        made_with = stands_for.made_with if isinstance(stands_for, _Dtype) else ()
        code = made_with[0] if made_with else None
        if not isinstance(code, str) or code not in _DTYPES:
            raise _refuse(self.path, f"its {what} is of type {code!r}, not numbers")
        state = stands_for.state
        order = state[1] if isinstance(state, tuple) and len(state) == 8 else None
        if order not in ("<", ">", "|") or state[2:5] != (None, None, None):
            raise self._broken(f"its {what} has no byte order")
        if (order == "|") != (code[1] == "1"):
            raise self._broken(f"its {what} has byte order {order!r} for type {code!r}")
        return np.dtype(code).newbyteorder(order)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIDE
