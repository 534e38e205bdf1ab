from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmbench.errors import ConfigError, DataError
from mmbench.studies.ledger import Ledger

IDENTITY = {"method": "random", "seed": 0}
FIRST = {"point": {"model.size": 3}, "status": "complete", "run": "a", "value": 0.1}
SECOND = {"point": {"model.size": 5}, "status": "failed", "error": "no"}


def opened(folder: Path, **identity: object) -> Ledger:
    return Ledger(folder, "tiny vbpr/random", {**IDENTITY, **identity}, {"by": "numpy 2"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = opened(tmp_path)
    ledger.add(1, FIRST)
    ledger.add(2, SECOND)
    ledger.close()
    return ledger.path


def test_what_was_added_is_there_when_it_is_opened_again(path: Path, tmp_path: Path) -> None:
    assert path.name.startswith("tiny-vbpr-random-")
    before = path.read_bytes()
    ledger = opened(tmp_path)
    assert ledger.path == path
    assert ledger.entries == {1: {"trial": 1, **FIRST}, 2: {"trial": 2, **SECOND}}
    ledger.add(1, FIRST)
    ledger.close()
    assert path.read_bytes() == before
    assert json.loads(before.splitlines()[0]) == {"schema": 1, "by": "numpy 2", **IDENTITY}


def test_another_search_has_another_ledger(path: Path, tmp_path: Path) -> None:
    other = opened(tmp_path, seed=1)
    assert other.path != path
    assert other.entries == {}
    other.close()


def test_a_line_that_was_cut_short_is_dropped_wherever_it_was_cut(
    path: Path, tmp_path: Path
) -> None:
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for length in (last, last + 1, len(data) - 1):
        path.write_bytes(data[:length])
        ledger = opened(tmp_path)
        assert list(ledger.entries) == [1]
        ledger.add(2, SECOND)
        ledger.close()
        assert path.read_bytes() == data
    path.write_bytes(data[:10])  # the very first line
    ledger = opened(tmp_path)
    assert ledger.entries == {}
    ledger.close()


def test_two_cannot_work_on_one_search(path: Path, tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with pytest.raises(ConfigError, match="another process works on this search"):
        opened(tmp_path)
    ledger.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("line", [b"{oops}\n", b"[]\n", b'{"schema": 9}\n', b"\xff\n"])
def test_a_damaged_ledger_is_told(path: Path, tmp_path: Path, line: bytes) -> None:
    path.write_bytes(line + path.read_bytes())
    with pytest.raises(DataError, match=r"line 1 cannot be read .* remove the file"):
        opened(tmp_path)


def test_other_settings_of_a_known_trial_are_told(path: Path, tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.check(1, {"model.size": 3}, "optuna 4")
    ledger.check(3, {"model.size": 9}, "optuna 4")
    with pytest.raises(ConfigError, match=r"its trial 1 has the settings .* optuna 4 now proposes"):
        ledger.check(1, {"model.size": 4}, "optuna 4")
    ledger.close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / ".tuning").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        opened(tmp_path)
