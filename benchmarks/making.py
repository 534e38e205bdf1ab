"""How figures were made: the command line with the names of paths alone, and the date."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource


def command_of(script: str) -> str:
    """The running command as it was given; of paths the last name, for folders are the machine's.

    Args:
        script: its file name.
    """
    return " ".join([f"python benchmarks/{script}", *_given(click.get_current_context())])


def _given(context: click.Context) -> Iterator[str]:
    for option in context.command.params:
        name = option.name or ""
        if context.get_parameter_source(name) in (None, ParameterSource.DEFAULT):
            continue
        value = context.params[name]
        for each in value if isinstance(value, tuple) else (value,):
            text = each.resolve().name if isinstance(each, Path) else str(each)
            yield f"{max(option.opts, key=len)} {shlex.quote(text)}"


def made_by(script: str) -> dict[str, Any]:
    """The command and the date, for a file of figures."""
    return {"command": command_of(script), "date": f"{datetime.now(timezone.utc):%Y-%m-%d}"}
