"""The script that says where a step of MMSR spends its time runs, on tiny encoders."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "items": 12,
    "batch-size": 3,
    "max-length": 4,
    "max-tokens": 12,
    "width": 16,
    "layers": 3,
    "heads": 2,
    "picture": 32,
    "steps": 2,
}
PARTS = {"forward", "backward", "reading", "optimizer"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls the script as Python would: with its own folder first on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    main = importlib.import_module("mmsr").main
    tiny = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    return lambda *arguments: CliRunner().invoke(
        main, [*tiny, "--device", "cpu", "--threads", "1", *map(str, arguments)]
    )


def test_a_step_is_split_with_and_without_kept_trunks(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    done = run("--json", file)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    known = [(one["mask_ratio"], one["cache"], one["trunks_kept"]) for one in results]
    assert known == [
        (0.75, False, "none"),
        (0.75, True, "textual"),  # patches that are hidden are drawn anew
        (0.0, False, "none"),
        (0.0, True, "textual and visual"),
    ]
    for one in results:
        assert set(one["parts_s"]) == PARTS
        for number, whole in enumerate(one["step_s"]):
            parts = [one["parts_s"][part][number] for part in sorted(PARTS)]
            assert all(seconds > 0 for seconds in parts)
            assert sum(parts) < whole
        assert 0 < one["share_outside"] < 1
        assert 0 < one["least_share_outside"] < 1


def test_encoders_that_learn_in_full_have_no_trunk(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    done = run("--json", file, "--tune", "full", "--mask-ratios", "0")
    assert done.exit_code == 0, done.output
    (one,) = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert (one["tune"], one["trunks_kept"]) == ("full", "none")


def test_the_least_share_is_that_of_blocks_counted_by_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    mmsr = importlib.import_module("mmsr")
    size = mmsr.Size(200, 8, 20, 50, 768, 12, 12, 224, 16)
    top, full = (mmsr.Case(0.75, True, tune) for tune in ("top", "full"))
    # 50 tokens a tower: 12 blocks forwards and 2 of them backwards at twice the cost, against 3.
    assert mmsr.least_outside(size, top, set()) == pytest.approx(3 / (3 + 12 + 4))
    kept = mmsr.least_outside(size, top, {"textual"})
    assert kept == pytest.approx(300 / (300 + 50 * (2 + 4) + 50 * (12 + 4)))
    assert mmsr.least_outside(size, full, set()) == pytest.approx(3 / (3 + 36))


@pytest.mark.parametrize(
    ("ratios", "message"), [("much", "is no list of numbers"), ("1.5", "from 0 to below 1")]
)
def test_shares_that_are_none_are_refused(
    run: Callable[..., Result], ratios: str, message: str
) -> None:
    done = run("--mask-ratios", ratios)
    assert done.exit_code == 2
    assert message in done.output
