"""`mmbench doctor`: what is installed, which device, what is missing for which command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbench import console
from mmbench.cli import options

if TYPE_CHECKING:
    from mmbench.cli.examining import Check

BROKEN = 1
SIGNS = {"ok": "ok", "note": "[yellow]note[/]", "missing": "-", "broken": "[bold red]BROKEN[/]"}


@click.command("doctor")
@click.option(
    "--imports",
    is_flag=True,
    help="Import every package for real: slower, and finds those that are installed but broken.",
)
@options.data_dir_option
@options.runs_dir_option
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How results are printed.",
)
@click.pass_context
def doctor(ctx: click.Context, imports: bool, data_dir: Path, runs_dir: Path, output: str) -> None:
    """Say what is installed, which device there is, and what is missing for which command.

    Packages with their versions, processor and memory, GPUs, folders with the room on their
    disks, prepared datasets, encoders whose weights are here, and the commands. Nothing is
    fetched or written. The exit status is 1 where something is broken that nothing works
    without, else 0.

    \b
    Examples:
      mmbench doctor
      mmbench doctor --imports --format json
    """
    from mmbench.cli.examining import as_rows, examine

    checks = examine(data_dir, runs_dir, imports=imports)
    broken = [check for check in checks if check.state == "broken"]
    essential = [check for check in broken if check.essential]
    if output == "json":
        told = {"works": not essential, "checks": as_rows(checks)}
        console.text(json.dumps(told, indent=2))
    else:
        _print(checks)
        console.text(_verdict(essential, broken))
    if essential:
        ctx.exit(BROKEN)


def _print(checks: Sequence[Check]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    section = ""
    for check in _shortened(checks):
        if check.section != section:
            if section:
                table.add_row("", "", "")
            section = check.section
            table.add_row(f"[bold]{escape(section)}[/]", "", "")
        found = escape(check.found) + (f"\n[dim]{escape(check.cure)}[/]" if check.cure else "")
        table.add_row(f"  {escape(check.name)}", SIGNS[check.state], found)
    console.result(table)


def _shortened(checks: Sequence[Check]) -> list[Check]:
    """Checks with one line for all encoders of a kind; as JSON each has its own."""
    from mmbench.cli.examining import Check

    groups: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        alike = (check.state, check.cure) if check.section == "encoders" else (check.name, "")
        groups.setdefault((check.section, "|".join(alike)), []).append(check)
    kinds = {"ok": "here", "missing": "not here", "note": "by an id", "broken": "broken"}
    return [
        Check(group[0].section, kinds[group[0].state], group[0].state, names, group[0].cure)
        if len(group) > 1
        else group[0]
        for group in groups.values()
        for names in [", ".join(check.name for check in group)]
    ]


def _verdict(essential: Sequence[Check], broken: Sequence[Check]) -> str:
    if essential:
        return f"\nmmbench does not work here: {', '.join(check.name for check in essential)}."
    if broken:
        return f"\nThe core works; broken: {', '.join(check.name for check in broken)}."
    return "\nThe core works."
