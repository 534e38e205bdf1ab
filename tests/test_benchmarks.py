"""The benchmark script runs, on tiny data; nothing here depends on how fast."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = ("--size", "90,80,900", "--widths", "12,5", "--rate-seconds", "0.01", "--repeats", "1")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls the script as Python would: with its own folder first on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    main = importlib.import_module("engine").main
    return lambda *arguments: CliRunner().invoke(
        main, ["--device", "cpu", "--threads", "1", *map(str, arguments)]
    )


def test_every_piece_of_work_is_measured_and_has_a_floor(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    done = run(*TINY, "--json", file)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert [one["work"] for one in results] == ["evaluation", "BPR-MF", "LightGCN", "VBPR"]
    for one in results:
        assert len(one["times_s"]) == 1
        assert one["median_s"] > 0
        assert one["floor_s"] == pytest.approx(sum(part["time_s"] for part in one["floor"]))
        assert one["ratio"] is None
        assert one["work"] in done.stdout


def test_a_file_in_the_mmrec_layout_is_read(run: Callable[..., Result], tmp_path: Path) -> None:
    rows = [f"{user}\t{(user * 7 + k) % 60}\t{k % 3}" for user in range(40) for k in range(6)]
    file = tmp_path / "some.inter"
    file.write_text("\n".join(["userID\titemID\tx_label", *rows]), encoding="utf-8")
    done = run(*TINY, "--inter", file, "--only", "evaluation")
    assert done.exit_code == 0, done.output
    assert "some.inter" in done.stdout
    assert "40 users, 60 items" in done.stdout
    assert "80 training pairs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inter", "missing.inter"], "missing.inter"),
        (["--size", "1,2"], "is not 3 positive numbers"),
        (["--dataset", "nowhere", "--data-dir", "."], "nowhere"),
        ([*TINY, "--mmrec", "."], "is no checkout of MMRec"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    run: Callable[..., Result], arguments: list[str], message: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert isinstance(done.exception, SystemExit)
