"""`mmbench`: the command group, and the one place where errors become messages."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path

import click

from mmbench import console
from mmbench.errors import MMBenchError

INTERRUPTED = 130
VARIABLE = "_MMBENCH_COMPLETE"
"""Set where a shell asks what could come next; the name is click's."""


class Commands(click.Group):
    """Finds a subcommand in the file of its name, so that there is no list to keep in step."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the files of this folder that hold a subcommand."""
        files = Path(__file__).parent.glob("*.py")
        marked = (p.stem for p in files if "\n@click.command(" in p.read_text(encoding="utf-8"))
        return sorted(name.replace("_", "-") for name in marked)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the one file that holds a subcommand."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"mmbench.cli.{module}"), module)
        if VARIABLE in os.environ:
            from mmbench.cli.completing import attach

            return attach(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Offer the nearest name where a subcommand is unknown."""
        from mmbench.errors import did_you_mean

        known = self.list_commands(ctx)
        is_typed = ctx.resilient_parsing  # a line that a shell completes may hold anything
        if args and not args[0].startswith("-") and args[0] not in known and not is_typed:
            near = did_you_mean(args[0], known)
            raise click.UsageError(
                f"No such command {args[0]!r}.{near} Commands: {', '.join(known)}.", ctx
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mmbench", prog_name="mmbench")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", "-q", is_flag=True, help="Print results and errors alone.")
def cli(debug: bool, quiet: bool) -> None:
    """Do pictures and texts improve recommendation? Measure it, with significance tests.

    \b
    A first look, on data that come along:
      mmbench ablate --drop visual
    Then, on your own:
      mmbench prepare mydata --source FOLDER
      mmbench train vbpr --dataset mydata --set features.textual=tfidf-svd
      mmbench compare runs/*
    """
    del debug  # read by `main`, so that it may stand anywhere; declared here for --help
    console.set_quiet(quiet)


def main() -> None:
    """Run the command line; errors raised on purpose become one message and exit status 2."""
    # Threads of one operation that spin long while they wait for one another make a training
    # many times slower as soon as another program wants a core; those that sleep at once make
    # small steps twice as slow on quiet cores. Some microseconds of spinning avoid both. Read by
    # the OpenMP runtime when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Wherever it stands on the line: it is wanted when a command has just failed.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if not debug:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal lacks signs for is no
            stream.reconfigure(errors="replace")  # reason to lose a table
    try:
        status = cli.main(arguments, prog_name="mmbench", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        console.error("interrupted; the same command resumes")
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        console.error("interrupted; the same command resumes")
        sys.exit(INTERRUPTED)
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except MMBenchError as problem:
        if debug:
            traceback.print_exc()
        console.error(str(problem))
        if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            # One of several: when another has ended, threads of the exchange may abort this
            # process while the interpreter is taken down, and hide the message and the status.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)
        sys.exit(2)
    except OSError as problem:
        # Where a file is expected to fail, a message of its own is raised; these are the rest.
        if debug:
            traceback.print_exc()
        where = problem.filename or "the output cannot be written"
        console.error(
            f"{where}: {problem.strerror or problem}; check that path, its permissions and the "
            "free space (--debug shows what was being done)"
        )
        if problem.filename is None:
            with contextlib.suppress(OSError):  # what is buffered would fail again on the way out
                sys.stdout.close()
        sys.exit(2)
