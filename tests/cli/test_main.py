from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmbench.cli.main import cli


def test_commands_are_the_files_of_the_folder() -> None:
    import click

    names = cli.list_commands(click.Context(cli))
    assert {"ablate", "compare", "extract", "prepare", "train"} <= set(names)
    for name in names:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
        assert command.help


def test_help_of_every_command_fits_a_terminal_and_loads_no_torch() -> None:
    code = (
        "import sys, click\n"
        "from mmbench.cli.main import cli\n"
        "context = click.Context(cli)\n"
        "for name in cli.list_commands(context):\n"
        "    command = cli.get_command(context, name)\n"
        "    inner = click.Context(command, info_name=name, max_content_width=80)\n"
        "    text = command.get_help(inner)\n"
        "    assert max(map(len, text.splitlines())) <= 80, name\n"
        "print('torch' in sys.modules or 'polars' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


def test_version(mmbench: Callable) -> None:
    done = mmbench("--version")
    assert done.status == 0
    assert done.out.startswith("mmbench, version 0.")


def test_an_unknown_command_offers_the_nearest(mmbench: Callable) -> None:
    done = mmbench("ablat")
    assert done.status == 2
    assert 'Did you mean "ablate"?' in done.err


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_adds_the_traceback_wherever_it_stands(mmbench: Callable, where: str) -> None:
    line = ["--debug", "train", "nosuch"] if where == "before" else ["train", "nosuch", "--debug"]
    done = mmbench(*line)
    assert done.status == 2
    assert "Traceback" in done.err
    assert "Traceback" not in mmbench("train", "nosuch").err


def test_an_unforeseen_file_error_is_one_message(mmbench: Callable) -> None:
    line = ("train", "popularity", "--dataset", "x", "--data-dir", "x" * 300)
    done = mmbench(*line)
    assert done.status == 2
    assert "File name too long" in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1
    assert "Traceback" in mmbench(*line, "--debug").err


def test_a_terminal_that_lacks_signs_shows_the_rest(tiny_data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "mmbench", "train", "popularity", "--dataset", "tiny",
            "--set", "label=\N{GREEK SMALL LETTER ALPHA}-model", "--seeds", "0",
            "--data-dir", str(tiny_data), "--runs-dir", str(tmp_path),
        ],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "?-model" in done.stdout


def _no_room() -> None:
    """A limit on file sizes fails writes as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_output_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "mmbench", "extract", "--list"],
            stdout=out, stderr=subprocess.PIPE, text=True, check=False, preexec_fn=_no_room,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output cannot be written: File too large")
    assert len(done.stderr.splitlines()) == 1


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmbench", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("mmbench, version")
