"""The restricted reader of sparse matrices: equal to SciPy on matrices, deaf to everything else."""

import copyreg
import io
import pickle
import pickletools
import struct
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from mmbench.data.unpickling import SIZE_CAP, read_sparse
from mmbench.errors import DataError

FORMS = ["coo_matrix", "csr_matrix", "csc_matrix", "coo_array", "csr_array", "csc_array"]
PROTOCOLS = [2, 3, 4, 5]


def random_matrix(form, seed, dtype=np.float64, shape=(7, 5)):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 9, shape) * (rng.random(shape) < 0.4)
    return getattr(sp, form)(dense.astype(dtype))


def write(path, matrix, protocol=4):
    with path.open("wb") as file:
        pickle.dump(matrix, file, protocol=protocol)
    return path


def assert_equals_scipy(path, matrix):
    """Against the triples that SciPy itself gives, bit by bit."""
    found, wanted = read_sparse(path), matrix.tocoo()
    assert found.shape == matrix.shape
    np.testing.assert_array_equal(found.row, wanted.row)
    np.testing.assert_array_equal(found.col, wanted.col)
    assert found.value.dtype == wanted.data.dtype
    assert found.value.tobytes() == wanted.data.tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", FORMS)
def test_matrices_read_as_scipy_reads_them(tmp_path, form, protocol):
    for seed in range(5):
        matrix = random_matrix(form, seed)
        assert_equals_scipy(write(tmp_path / "m.pkl", matrix, protocol), matrix)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"])
def test_every_type_of_numbers_is_read(tmp_path, dtype, protocol):
    matrix = random_matrix("csr_matrix", 3, np.dtype(dtype))
    assert_equals_scipy(write(tmp_path / "m.pkl", matrix, protocol), matrix)


def test_cached_properties_and_unsorted_indices_do_no_harm(tmp_path):
    matrix = sp.csr_matrix(
        (np.array([1.0, 2.0, 3.0]), np.array([4, 0, 2]), np.array([0, 2, 3])), shape=(2, 5)
    )
    assert not matrix.has_sorted_indices  # asked, so that the answer is in the state
    path = write(tmp_path / "m.pkl", matrix)
    assert_equals_scipy(path, matrix)
    assert read_sparse(path).col.tolist() == [4, 0, 2]


def test_room_behind_the_last_entry_is_not_read(tmp_path):
    matrix = sp.csr_matrix(
        (np.array([1.0, 2.0, 9.0]), np.array([4, 0, 3]), np.array([0, 1, 2])), shape=(2, 5)
    )
    found = read_sparse(write(tmp_path / "m.pkl", matrix))
    assert (found.row.tolist(), found.col.tolist()) == ([0, 1], [4, 0])
    assert found.value.tolist() == [1.0, 2.0]


def test_positions_leave_out_stored_zeros(tmp_path):
    matrix = sp.coo_matrix(([1.0, 0.0, 2.0], ([0, 1, 2], [2, 1, 0])), shape=(3, 3))
    row, col = read_sparse(write(tmp_path / "m.pkl", matrix)).positions()
    assert (row.tolist(), col.tolist()) == ([0, 2], [2, 0])


@pytest.mark.parametrize("protocol", PROTOCOLS[1:])
def test_an_empty_matrix_has_no_entries(tmp_path, protocol):
    found = read_sparse(write(tmp_path / "m.pkl", sp.coo_matrix((3, 4)), protocol))
    assert (found.shape, found.row.size, found.value.size) == ((3, 4), 0, 0)


def test_big_endian_arrays_are_read(tmp_path):
    path = tmp_path / "m.pkl"
    path.write_bytes(old_coo(index=">i4", value=">f8"))
    found = read_sparse(path)
    assert found.row.tolist() == [0, 1, 2]
    assert found.value.tolist() == [1.0, 0.0, 2.5]
    assert found.value.dtype == np.dtype("f8")


# Pickles written instruction by instruction, as older versions of SciPy and NumPy wrote them.


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


def integer(value):
    return b"J" + struct.pack("<i", value)


def content(data):
    return b"B" + struct.pack("<I", len(data)) + data


def old_array(values, dtype, *, n=None, module="numpy.core.multiarray", state=None, order=None):
    data = np.asarray(values, dtype=dtype).tobytes() if state is None else state
    code, sign = np.dtype(dtype).str[1:], order or np.dtype(dtype).str[0]
    made = name(module, "_reconstruct") + name("numpy", "ndarray")
    made += b"K\x00\x85" + b"C\x01b" + b"\x87R"
    kind = name("numpy", "dtype") + text(code) + b"\x89\x88\x87R"
    kind += b"(K\x03" + text(sign) + b"NNN" + integer(-1) * 2 + b"K\x00tb"
    n = len(values) if n is None else n
    return made + b"(K\x01" + integer(n) + b"\x85" + kind + b"\x89" + content(data) + b"tb"


def old_coo(
    *,
    module="scipy.sparse.coo",
    shape=(4, 5),
    rows=(0, 1, 2),
    cols=(4, 3, 0),
    values=(1.0, 0.0, 2.5),
    index="<i4",
    value="<f8",
    row=None,
    data=None,
):
    """A COO matrix as SciPy 1.2 and NumPy 1.16 pickled it, in protocol 3."""
    state = text("_shape") + integer(shape[0]) + integer(shape[1]) + b"\x86"
    state += text("maxprint") + b"K2"
    state += text("row") + (old_array(rows, index) if row is None else row)
    state += text("col") + old_array(cols, index)
    state += text("data") + (old_array(values, value) if data is None else data)
    return b"\x80\x03" + name(module, "coo_matrix") + b")\x81}(" + state + b"ub."


def test_old_module_names_and_states_are_read(tmp_path):
    path = tmp_path / "trnMat.pkl"
    path.write_bytes(old_coo())
    # The hand-written instructions are a pickle like those that are distributed.
    used = [a for i, a, _ in pickletools.genops(old_coo()) if i.name == "GLOBAL"]
    assert set(used) == {
        "scipy.sparse.coo coo_matrix",
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
    }
    found = read_sparse(path)
    assert found.shape == (4, 5)
    assert found.row.tolist() == [0, 1, 2]
    assert found.col.tolist() == [4, 3, 0]
    assert found.value.tolist() == [1.0, 0.0, 2.5]


def test_reading_imports_neither_scipy_nor_anything_named(tmp_path):
    path = tmp_path / "m.pkl"
    path.write_bytes(old_coo())
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from mmbench.data.unpickling import read_sparse\n"
        "read_sparse(Path(sys.argv[1]))\n"
        "assert 'scipy' not in sys.modules\nprint('read')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("read", "")


# Attacks. Every one would leave a file behind if anything of it were executed.


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def shell(canary):
    return b"\x80\x03" + name("os", "system") + text(f"touch {canary}") + b"\x85R."


def inside_the_state(canary):
    call = name("posix", "system") + text(f"touch {canary}") + b"\x85R"
    return old_coo(row=call)


def as_array_data(canary):
    call = name("builtins", "eval") + text(f"open({str(canary)!r}, 'w')") + b"\x85R"
    return old_coo(data=call)


def dotted(canary):
    call = text("numpy") + text("ndarray.__class__.__base__") + b"\x93" + text(f"{canary}")
    return b"\x80\x04" + call + b"\x85R."


def nested(canary):
    inner = shell(canary)
    return b"\x80\x03" + name("pickle", "loads") + content(inner) + b"\x85R."


def old_instance(canary):
    return b"\x80\x03(" + text(f"touch {canary}") + b"ios\nsystem\n."


def old_object(canary):
    return b"\x80\x03(" + name("os", "system") + text(f"touch {canary}") + b"o."


def by_keyword(canary):
    call = name("subprocess", "Popen") + b")}" + text("args") + text(f"touch {canary}") + b"s"
    return b"\x80\x04" + call + b"\x92."


def extension(canary):
    return b"\x80\x02\x82\x01" + text(f"touch {canary}") + b"\x85R."


def persistent(canary):
    return b"\x80\x03" + text(f"touch {canary}") + b"Q."


def persistent_old(canary):
    return b"\x80\x03Ptouch " + str(canary).encode() + b"\n."


def buffers(canary):
    return b"\x80\x05\x97."


def called_stand_in(canary):
    # What NumPy's names stand for is called with a call inside.
    call = name("os", "system") + text(f"touch {canary}") + b"\x85R"
    return b"\x80\x03" + name("numpy", "dtype") + call + b"\x85R."


def two_pickles(canary):
    return old_coo() + shell(canary)


ATTACKS = {
    shell: r"E116 .*pickle uses os\.system, not allowed; only SciPy sparse matrices are read",
    inside_the_state: r"E116 .*pickle uses posix\.system, not allowed",
    as_array_data: r"E116 .*pickle uses builtins\.eval, not allowed",
    dotted: r"E116 .*pickle uses numpy\.ndarray\.__class__\.__base__, not allowed",
    nested: r"E116 .*pickle uses pickle\.loads, not allowed",
    old_instance: r"E116 .*pickle uses the instruction INST, not allowed",
    old_object: r"E116 .*pickle uses the instruction OBJ, not allowed",
    by_keyword: r"E116 .*pickle uses the instruction NEWOBJ_EX, not allowed",
    extension: r"E116 .*pickle uses the instruction EXT1, not allowed",
    persistent: r"E116 .*pickle uses the instruction BINPERSID, not allowed",
    persistent_old: r"E116 .*pickle uses the instruction PERSID, not allowed",
    buffers: r"E116 .*pickle uses the instruction NEXT_BUFFER, not allowed",
    called_stand_in: r"E116 .*pickle uses os\.system, not allowed",
    two_pickles: r"E116 .*something follows the end of the pickle",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_nothing_of_an_attack_is_executed(tmp_path, attack):
    canary, path = tmp_path / "canary", tmp_path / "m.pkl"
    path.write_bytes(attack(canary))
    with pytest.raises(DataError, match=ATTACKS[attack]):
        read_sparse(path)
    assert not canary.exists()


def test_the_attacks_are_real(tmp_path):
    """Python's own unpickler executes those that need nothing set up."""
    live = [shell, inside_the_state, as_array_data, nested, old_instance, old_object]
    code = "import pickle, sys\nfor path in sys.argv[1:]:\n try: pickle.load(open(path, 'rb'))\n"
    code += " except Exception: pass"
    paths = []
    for attack in [*live, called_stand_in]:
        paths.append(tmp_path / f"{attack.__name__}.pkl")
        paths[-1].write_bytes(attack(tmp_path / f"{attack.__name__}.canary"))
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, timeout=60)
    assert [path.stem for path in paths if not path.with_suffix(".canary").exists()] == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_canary_would_sing(tmp_path, protocol):
    """The same call, written by Python's own pickler: Python executes it, the reader does not."""
    canary, path = tmp_path / "canary", tmp_path / "m.pkl"
    write(path, Calls(open, str(canary), "x"), protocol)
    with pytest.raises(DataError, match=r"E116 .*pickle uses .*open, not allowed"):
        read_sparse(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes()).close()
    assert canary.exists()


def test_a_cached_extension_is_no_way_in(tmp_path):
    """Python keeps resolved extensions in a cache that bypasses `find_class`."""
    canary, path = tmp_path / "canary", tmp_path / "m.pkl"
    copyreg.add_extension("os", "mkdir", 200)
    try:
        attack = b"\x80\x02\x82\xc8" + text(str(canary)) + b"\x85R."
        pickle.loads(attack)  # fills the cache
        canary.rmdir()
        path.write_bytes(attack)
        with pytest.raises(DataError, match="EXT1, not allowed"):
            read_sparse(path)
        assert not canary.exists()
    finally:
        copyreg.remove_extension("os", "mkdir", 200)
        copyreg._extension_cache.clear()


def test_state_cannot_change_what_names_stand_for(tmp_path):
    path = tmp_path / "m.pkl"
    for target in (
        name("scipy.sparse.coo", "coo_matrix"),  # the class
        name("scipy.sparse.coo", "coo_matrix") + b")\x81",  # an instance
        name("numpy", "dtype") + b")R",
    ):
        attack = b"\x80\x03" + target + b"}" + text("__setstate__") + b"K\x01sb."
        path.write_bytes(attack)
        with pytest.raises(DataError, match="E116"):
            read_sparse(path)
        # A pair as state sets attributes one by one on objects without __setstate__.
        path.write_bytes(
            attack.replace(
                b"}" + text("__setstate__") + b"K\x01s", b"N}" + text("x") + b"K\x01s\x86"
            )
        )
        with pytest.raises(DataError, match="E116"):
            read_sparse(path)
    path.write_bytes(old_coo())
    assert read_sparse(path).row.tolist() == [0, 1, 2]


def hash_bomb(after=b"", depth=60):
    """A dictionary key of pairs of pairs, each shared: its hash takes 2 ** depth steps.

    `after` stands between the making of a pair and the storing of it.
    """
    pairs = b"".join(
        b"h%ch%c\x86" % (k, k) + after.replace(b"K", bytes([k + 101])) + b"q%c" % (k + 1)
        for k in range(depth)
    )
    return b"\x80\x04}K\x01\x85" + after.replace(b"K", b"\x64") + b"q\x00" + pairs + b"K\x01s."


def test_bombs_are_refused_before_they_go_off(tmp_path):
    path = tmp_path / "m.pkl"
    bombs = {
        hash_bomb(): "uses place 0 of its memory, perhaps a tuple, again",
        hash_bomb(b"qK"): "perhaps a tuple, again",  # stored twice
        hash_bomb(b"(u"): "perhaps a tuple, again",  # nothing put into it
        hash_bomb(b"\x80\x04"): "perhaps a tuple, again",
        hash_bomb(b"\x95" + bytes(8)): "perhaps a tuple, again",
        b"\x80\x03" + b")" * 5000 + b".": "more than 2000 instructions",
        b"\x80\x03)r\xff\xff\xff\x7f.": "uses place 2147483647 of its memory",
        b"\x80\x03)p99999999\n.": "uses place 99999999 of its memory",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.": r"E106 .*not a complete pickle",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b").": "E116",
    }
    for bomb, message in bombs.items():
        path.write_bytes(bomb)
        with pytest.raises(DataError, match=message):
            read_sparse(path)


def test_a_file_above_the_cap_is_not_opened(tmp_path):
    path = tmp_path / "m.pkl"
    with path.open("wb") as file:
        file.truncate(SIZE_CAP + 1)  # takes no room on the disk
    with pytest.raises(DataError, match=r"E116 .*pickles above 1,073,741,824 bytes are not read"):
        read_sparse(path)


@pytest.mark.parametrize("protocol", [0, 1])
def test_protocols_0_and_1_are_refused(tmp_path, protocol):
    path = write(tmp_path / "m.pkl", random_matrix("coo_matrix", 0), protocol)
    with pytest.raises(DataError, match=r"E116 .*a pickle of protocol 0 or 1"):
        read_sparse(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, protocol):
    whole = write(tmp_path / "whole.pkl", random_matrix("csr_matrix", 1), protocol).read_bytes()
    path = tmp_path / "m.pkl"
    for end in [*range(0, len(whole), 3), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"E106|E116"):
            read_sparse(path)


def test_a_damaged_byte_never_ends_in_a_traceback(tmp_path):
    whole = write(tmp_path / "whole.pkl", random_matrix("csr_matrix", 1), 4).read_bytes()
    path, rng = tmp_path / "m.pkl", np.random.default_rng(0)
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_sparse(path)  # a value or an unused word may be another one
        except DataError:
            refused += 1
    assert refused > len(whole) / 3


@pytest.mark.parametrize(
    ("content_", "message"),
    [
        (b"<!DOCTYPE html><html>", r"E106 .*it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"E106 .*does not begin like one"),
        (b"", r"E106 .*it is empty"),
        (b"\x80\x09).", r"E116 .*its protocol is not one of 2 to 5"),
        (b"\x80\x03}.", r"E116 .*it holds something else"),
        (b"\x80\x03" + name("numpy", "dtype") + b".", r"E116 .*it holds something else"),
        (b"\x80\x03" + name("scipy.sparse.coo", "coo_matrix") + b")\x81.", "holds something else"),
        (b"\x80\x03" + name("scipy.sparse.lil", "lil_matrix") + b".", r"scipy\.sparse\.lil\.lil_m"),
        (b"\x80\x03" + b"b.", r"E116 .*instructions do not fit together"),
        (old_coo(shape=(-4, 5)), "its shape is not two whole numbers"),
        (old_coo(shape=(2, 5)), "row 2 lies outside its shape 2 x 5"),
        (old_coo(cols=(-1, 3, 0)), "column -1 lies outside its shape 4 x 5"),
        (old_coo(rows=(0, 1)), "it has 2 rows, 3 columns, 3 values"),
        (old_coo(values=(1.0, np.nan, 2.0)), "holds NaN or infinity"),
        (old_coo(row=old_array((0, 1, 2), "<f8")), "its row is of type float64, not whole numbers"),
        (old_coo(row=old_array((0,), "<u8", state=b"\xff" * 8)), "its row holds 1844674407"),
        (old_coo(row=old_array((0, 1), "<i4", n=3)), "holds 8 bytes, not the 12 of 3 x 4"),
        (old_coo(row=old_array((0, 1), "<i4", n=2**31 - 1)), "holds 8 bytes, not the 858993"),
        (old_coo(row=old_array((0,), "<i4", n=-1)), "its row is not one-dimensional"),
        (old_coo(row=old_array((0,), "<M8[s]", state=b"\0" * 8)), r"of type 'M8\[s\]', not"),
        (old_coo(row=old_array(("x",), "<U1", state=b"\0" * 4)), "of type 'U1', not numbers"),
        (old_coo(row=old_array((0,), "<i4", order="=")), "its row has no byte order"),
        (old_coo(row=old_array((0,), "<i4", order="|")), r"order '\|' for type 'i4'"),
        (old_coo(row=b"N"), "its row is no array"),
        (old_coo(row=name("numpy.core.multiarray", "_reconstruct")), "its row is no array"),
    ],
)  # fmt: skip
def test_what_is_no_sparse_matrix_is_refused(tmp_path, content_, message):
    path = tmp_path / "m.pkl"
    path.write_bytes(content_)
    with pytest.raises(DataError, match=message):
        read_sparse(path)


def test_arrays_of_objects_are_refused(tmp_path):
    matrix = sp.coo_matrix(np.eye(3))
    matrix.data = np.array([1, None, "x"], dtype=object)
    for protocol in PROTOCOLS:
        with pytest.raises(DataError, match=r"E116 .*(of type 'O8', not numbers|EMPTY_LIST)"):
            read_sparse(write(tmp_path / "m.pkl", matrix, protocol))


@pytest.mark.parametrize(
    ("indptr", "message"),
    [
        ([0, 2], "its indptr does not divide the entries"),
        ([1, 2, 3], "its indptr does not divide the entries"),
        ([0, 3, 2], "its indptr does not divide the entries"),
        ([0, 2, 9], "it has 9 entries, 3 indices, 3 values"),
    ],
)
def test_contradictory_parts_are_refused(tmp_path, indptr, message):
    matrix = sp.csr_matrix((np.ones(3), np.array([0, 1, 2]), np.array([0, 2, 3])), shape=(2, 4))
    matrix.indptr = np.array(indptr, dtype=np.int32)
    with pytest.raises(DataError, match=message):
        read_sparse(write(tmp_path / "m.pkl", matrix))


def test_other_pickles_of_python_are_refused(tmp_path):
    for value in ({"a": 1}, [1, 2], np.eye(2), sp.lil_matrix((2, 2)), io.StringIO, 3, "text", None):
        for protocol in PROTOCOLS:
            with pytest.raises(DataError, match="E116"):
                read_sparse(write(tmp_path / "m.pkl", value, protocol))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"E101 valMat\.pkl not found under"):
        read_sparse(tmp_path / "valMat.pkl")
