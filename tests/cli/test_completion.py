"""Completion as a shell asks for it: click's own machinery, through the program's entrance."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from mmbench.cli.completing import BY_NAME
from mmbench.cli.main import VARIABLE, cli
from mmbench.models.base import MODELS
from mmbench.recipe_files import shipped_recipes


@pytest.fixture
def offers(mmbench: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What is offered for the last of some words, as `kind,text` lines of the bash script."""

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv(VARIABLE, "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(["mmbench", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        done = mmbench()
        assert done.err == ""
        return [line.partition(",")[2] for line in done.out.splitlines() if line]

    return ask


def test_commands_and_options_are_offered(offers: Callable) -> None:
    assert offers("co") == ["cold-start", "compare", "completion"]
    assert "--seeds" in offers("train", "--s")


def test_models_and_shipped_recipes_are_offered(offers: Callable) -> None:
    every = offers("train", "")
    assert set(MODELS.names()) <= set(every)
    assert set(shipped_recipes()) <= set(every)
    assert offers("ablate", "demo/vb") == ["demo/vbpr"]


def test_a_recipe_on_the_disk_is_offered(offers: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "new.yaml").write_text("model: {name: vbpr}\n", encoding="utf-8")
    assert offers("train", "mine/n") == ["mine/new.yaml"]


def test_prepared_datasets_are_offered_from_the_folder_on_the_line(
    offers: Callable, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offers("train", "--data-dir", str(tiny_data), "--dataset", "") == ["demo", "tiny"]
    assert offers("train", "--dataset", "") == ["demo"]
    monkeypatch.setenv("MMBENCH_DATA", str(tiny_data))
    assert offers("extract", "t") == ["tiny"]
    assert offers("extract", "tiny", "--from", "visual") == ["visual__imported"]
    assert "movielens-100k" in offers("prepare", "movielens")


def test_encoders_metrics_and_modalities_are_offered(offers: Callable) -> None:
    assert "clip-vit-b16" in offers("extract", "x", "--encoder", "clip")
    assert "ndcg@20" in offers("compare", "x", "--metric", "nd")
    assert offers("stages", "x", "--metric", "nd") == ["ndcg"]
    assert offers("ablate", "--drop", "a") == ["acoustic"]
    assert "optuna:tpe" in offers("train", "--tune", "opt")
    assert offers("export", "x", "r") == ["recbole"]


def test_runs_and_their_labels_are_offered(offers: Callable, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny-vbpr-1-s0"
    run.mkdir(parents=True)
    (tmp_path / "runs" / "notes").mkdir()
    (run / "manifest.json").write_text('{"label": "vbpr -visual"}', encoding="utf-8")
    assert offers("compare", "ru") == ["runs/"]
    assert offers("compare", "") == offers("compare", "runs/ti") == ["runs/tiny-vbpr-1-s0"]
    assert offers("compare", f"{tmp_path}/runs/") == [str(run)]
    assert offers("compare", "runs", "--baseline", "v") == ["vbpr -visual"]
    assert offers("compare", "notthere") == ["notthere"]  # the shell's own completion of paths


def test_what_is_broken_offers_nothing(offers: Callable, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (run / "manifest.json").write_bytes(b"\xff\x00 not json")
    assert offers("compare", "runs", "--baseline", "v") == []
    assert offers("nosuch", "--x") == []


def test_every_completer_belongs_to_a_parameter() -> None:
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in cli.list_commands(context)]
    names = {param.name for command in commands if command for param in command.params}
    assert set(BY_NAME) <= names


def test_no_press_of_the_tab_key_waits_for_torch(tiny_data: Path) -> None:
    code = (
        "import sys, click\n"
        "from mmbench.cli.main import cli\n"
        "from mmbench.cli.completing import BY_NAME\n"
        "context = click.Context(cli)\n"
        "for name in sorted(set(BY_NAME)):\n"
        "    list(BY_NAME[name](context, click.Option(['--x'], metavar='N@K'), ''))\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_by_the_variable(mmbench: Callable, shell: str) -> None:
    done = mmbench("completion", shell)
    assert done.status == 0
    assert f"{VARIABLE}={shell}_complete" in done.out
    assert "mmbench" in done.out


def test_an_unknown_shell_is_refused(mmbench: Callable) -> None:
    done = mmbench("completion", "powershell")
    assert done.status == 2
    assert "'bash', 'zsh', 'fish'" in done.err


def test_bash_itself_completes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    (tmp_path / "mmbench").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m mmbench "$@"\n', encoding="utf-8"
    )
    (tmp_path / "mmbench").chmod(0o755)
    line = (
        'eval "$(mmbench completion bash)"; COMP_WORDS=(mmbench train demo/vb); COMP_CWORD=2; '
        '_mmbench_completion mmbench; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop(VARIABLE, None)
    done = subprocess.run(
        [bash, "-c", line], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.strip() == "demo/vbpr", done.stderr
