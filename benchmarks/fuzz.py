"""Every subcommand with random options, random bytes in what it reads, full disks: no traceback.

    python benchmarks/fuzz.py --cases 2000 --seed 0
    python benchmarks/fuzz.py --seed 0 --only 137          # one case again, with all it printed

Subcommands and their options are found by listing. A case is a command line that is mostly sound,
run in a copy of a small playground (a dataset, finished runs, raw files, recipes) in a process of
its own, forked from one that has everything imported. What may go wrong besides:

    options     flags and values of the right and of other kinds
    bytes       a file of the playground is cut, emptied, overwritten, deleted, a folder, or, where
                it is JSON, YAML or an array, sound but for one value of another kind
    disk        no file may grow beyond some bytes; where a file system can be mounted: the
                folder of the data, of the runs, or all lie on a full or a read-only one
    extras      optional packages are not there
    tab         a shell asks what could come next on such a line, cut anywhere

Wrong is: an exit status beside 0, 1 and 2, 1 where nothing compares or checks, a traceback, a
failure without a message, and a result that is there after a failure or is left half-written. What
takes longer than the limit is ended and counted, since some settings do take long.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pkgutil
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS"):  # threads do not survive a fork
    os.environ[name] = "1"
for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):  # no case asks the network
    os.environ[name] = "http://127.0.0.1:9"
os.environ.update(HF_HUB_OFFLINE="1", MMBENCH_NO_PROGRESS="1", COLUMNS="80", NO_PROXY="")

import click  # noqa: E402
from fuzz_faults import can_mount, own_disk, spoil  # noqa: E402
from fuzz_playground import SOUND, make_playground  # noqa: E402

import mmbench  # noqa: E402
from mmbench import console  # noqa: E402
from mmbench.cli.completing import BY_NAME  # noqa: E402
from mmbench.cli.main import VARIABLE, cli, main  # noqa: E402

CRASHED, TOO_LONG = 99, 98
MAY_FAIL = ("compare", "doctor")
"""Commands whose exit status can be 1: a regression, something broken."""
SMALL = ("processes", "threads", "workers", "trials", "ray")
"""Options that could ask for more of this machine than a case may have."""
GARBAGE = (
    "", " ", "x", "0", "-1", "1e400", "nan", "null", "[red]x[/]", "../..", "a=b", "=", "a=", "{",
    "recall@", "recall@0", "ndcg@99999999999999999999", "@5", "é☃", "a" * 5000, "a\nb", "visual",
    "visual=x", "missing:visual", "0-4", "4-0", "1,2", "10K", "auto", "none", "/", ".", "%s", "*",
)  # fmt: skip
PATHS = (
    "missing", "empty", "noise.bin", "notes.txt", "data", "runs", "raw", "vbpr.yaml", "matrix.npy",
    "clip", "as-mmrec", "as-recbole", "grid.yaml",
    "/proc/nosuch", "/dev/null", "x" * 300, "notes.txt/below", "raw/images", "data/tiny", "new",
)  # fmt: skip


@dataclass
class Case:
    """One case: what was done to the playground, and the command line."""

    number: int
    arguments: list[str]
    faults: list[str]
    file_limit: int | None = None
    without: tuple[str, ...] = ()
    disk: tuple[str, int | None] | None = None  # a folder, and what it can still hold
    typed: str | None = None  # what stands on the line where the tab key is pressed
    status: int = 0
    out: str = ""
    err: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The command as it can be typed."""
        if self.typed is not None:
            return f"{self.typed}<TAB>"
        return shlex.join(["mmbench", *self.arguments])


# --------------------------------------------------------------------------------------------
# Command lines


def guess_line(rng: random.Random, name: str, root: Path) -> list[str]:
    """A command line of a subcommand, mostly sound."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    sound = SOUND.get(name, [])
    line = list(rng.choice(sound)) if sound and rng.random() < 0.7 else []
    begun = bool(line)
    options = [p for p in command.params if isinstance(p, click.Option)]
    for param in command.params:
        if isinstance(param, click.Argument) and not begun and rng.random() < 0.9:
            count = rng.randint(1, 3) if param.nargs == -1 else 1
            line += [guess_value(rng, param, root) for _ in range(count)]
    chosen = [p for p in options if p.required and not begun and rng.random() < 0.9]
    chosen += rng.sample(options, k=min(len(options), rng.choice((0, 0, 1, 1, 2, 3, 5))))
    for param in chosen:
        flag = rng.choice([*param.opts, *param.secondary_opts])
        line += [flag] if param.is_flag else [flag, guess_value(rng, param, root)]
    names = {param.name for param in command.params}
    for there, option, folder in (
        ("data_dir", "--data-dir", "data"),
        ("runs_dir", "--runs-dir", "runs"),
    ):
        if there in names and option not in line and rng.random() < 0.95:
            line += [option, folder]
    if "settings" in names:  # whatever else: the case shall end
        line += ["--set", "training.epochs=1", "--set", "evaluation.depth=10"]
    return [name, *line]


def guess_value(rng: random.Random, param: click.Parameter, root: Path) -> str:
    """A value, of the right kind three times out of four."""
    kind = param.type
    if param.name in SMALL:
        return rng.choice(("1", "2", "0", "-1", "x", ""))
    if param.name == "settings":
        return guess_setting(rng)
    if rng.random() < 0.25:
        return rng.choice((*GARBAGE, *PATHS))
    if isinstance(kind, click.Choice):
        return str(rng.choice(list(kind.choices)))
    if isinstance(kind, click.types.IntParamType):
        return str(rng.choice((0, 1, 2, 3, 5, 10, 100, 2**31, 2**64, -5)))
    if isinstance(kind, click.types.FloatParamType):
        return str(rng.choice((0, 0.01, 0.5, 0.99, 1, 3, 1e9, -1, "inf")))
    if isinstance(kind, click.Path):
        return rng.choice(PATHS)
    if (completer := BY_NAME.get(param.name or "")) is not None:
        with contextlib.suppress(Exception):
            offers = sorted(completer(click.Context(cli), param, ""))
            return rng.choice([*offers, "tiny", "vbpr", "visual__colour-edge"])
    seeds_or_counts = ("0", "0,1", "1-2", "3", "10", "0.5", "0.25,1")
    return rng.choice((*seeds_or_counts, "new", "visual", "recall@5", "random-per-user", "tiny"))


def guess_setting(rng: random.Random) -> str:
    """A value of --set: a key of the recipe, or of none, and anything."""
    from mmbench import recipe_keys

    parts = {
        "training": recipe_keys.Training,
        "protocol": recipe_keys.Protocol,
        "evaluation": recipe_keys.Evaluation,
    }
    section = rng.choice((*parts, "model", "features", "", "nosuch"))
    keys = [*parts[section].model_fields] if section in parts else ["name", "visual", "dim", "x"]
    value = rng.choice(
        ("0", "1", "-1", "0.5", "null", "[]", "{}", "true", "1.0e400", "recall@5", "x", "[1, 2]",
         "2.0e18", "{name: linear}", "colour-edge", "sgd", "!!python/object:x.y {}", "&a [*a]", "")
    )  # fmt: skip
    key = rng.choice((f"{section}.{rng.choice(keys)}", section, rng.choice(keys)))
    return f"{key}={value}" if rng.random() < 0.95 else rng.choice(GARBAGE)


# --------------------------------------------------------------------------------------------
# Running


def run_here(arguments: Sequence[str], folder: Path) -> tuple[int, str, str]:
    """Run a command line in this process: exit status, stdout, stderr."""
    # With bytes below, as a terminal's streams have: click writes some there.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    os.chdir(folder)
    sys.argv = ["mmbench", *arguments]
    console.out.file, console.err.file = out, err
    console.out.soft_wrap = False
    status = CRASHED
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0) if not isinstance(ended.code, str) else CRASHED
        except BaseException:  # noqa: BLE001  # that is what is looked for
            traceback.print_exc()
    return status, _written(out), _written(err)


def _written(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", "replace")


def run_case(case: Case, folder: Path, answer: Path, limit_s: int) -> None:
    """Run a case in a process of its own, and read what it said."""
    child = os.fork()
    if child == 0:
        os.setsid()  # its own children end with it
        for name in [n for n in sys.modules if n.partition(".")[0] in case.without]:
            sys.modules[name] = None  # type: ignore[assignment]  # Python's word for "not there"
        sys.modules.update(dict.fromkeys(case.without))  # type: ignore[arg-type]
        if case.typed is not None:
            words = case.typed.split(" ")
            os.environ.update({VARIABLE: "bash_complete", "COMP_WORDS": case.typed})
            os.environ["COMP_CWORD"] = str(len(words) - 1)
        if case.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.file_limit, resource.RLIM_INFINITY))
        told = run_here(case.arguments, folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        answer.write_text(json.dumps(told))
        os._exit(0)
    began = time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - began > limit_s:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            case.status = TOO_LONG
            return
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left behind
    if not answer.exists():
        case.status = CRASHED
        case.err = "the process died without an answer"
        return
    case.status, case.out, case.err = json.loads(answer.read_text())


def judge(case: Case, folder: Path, before: set[Path]) -> None:
    """Note what is wrong with how a case ended."""
    if case.status == TOO_LONG:
        return
    if "Traceback (most recent call last)" in case.err + case.out:
        case.problems.append("traceback")
    elif case.status not in (0, 1, 2):
        case.problems.append(f"exit status {case.status}")
    if case.status == 1 and case.arguments[0] not in MAY_FAIL:
        case.problems.append("exit status 1")
    if case.status == 2 and not case.err.strip():
        case.problems.append("no message")
    left = set(folder.rglob("*")) - before
    targets = _targets(case, folder)
    if case.status == 2:
        for option, target in targets.items():
            # Lists that `stages` has re-ranked are runs, and whole ones stay, as of training.
            whole = case.arguments[0] == "stages" and option == "--to"
            if whole and all((p / "manifest.json").is_file() for p in target.glob("*")):
                continue
            if target in left and any(target.rglob("*")) | target.is_file():
                case.problems.append(f"left {option} {target.name} behind")
        for path in left:
            if path.name in ("manifest.json", "feature.json", "cold.json") and not _is_json(path):
                case.problems.append(f"left a broken {path.relative_to(folder)}")
    asked = {"--help", "-h", "--list"} & set(case.arguments) or case.typed is not None
    if case.status == 0 and not asked and case.arguments[0] != "transfer":  # its --to is a dataset
        missing = [option for option, target in targets.items() if not target.exists()]
        case.problems += [f"said nothing and wrote no {option}" for option in missing]
    half = [p for p in left if p.suffix in (".tmp", ".part") or p.name.startswith((".tmp", "tmp"))]
    if half:
        case.problems.append(f"left {half[0].relative_to(folder)} behind")


def _targets(case: Case, folder: Path) -> dict[str, Path]:
    """Where a case was to write, by option; of an option that is given twice the last counts."""
    pairs = zip(case.arguments[:-1], case.arguments[1:], strict=True)
    return {here: folder / after for here, after in pairs if here in ("--to", "--out", "--html")}


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def make_case(number: int, seed: int, folder: Path, names: Sequence[str]) -> Case:
    """The case of a number; `folder` is a copy of the playground, which it may spoil."""
    rng = random.Random(f"{seed}/{number}")
    os.chdir(folder)
    name = rng.choice(list(names))
    kind = rng.choice(("options", "options", "bytes", "bytes", "bytes", "disk", "disk", "extras"))
    if name == "completion" and rng.random() < 0.5:
        name, kind = rng.choice(list(names)), "tab"
    sound = SOUND.get(name)
    if kind in ("options", "extras", "tab") or not sound or rng.random() < 0.2:
        line = guess_line(rng, name, folder)
    else:
        line = [name, *rng.choice(sound)]
    case = Case(number, line, [])
    if kind == "bytes":
        case.faults = [spoil(rng, folder) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
    elif kind == "disk":
        if can_mount() and rng.random() < 0.6:
            where, free = rng.choice((".", "data", "runs")), rng.choice((None, 0, 0, 5000, 50_000))
            case.disk = where, free
            state = "is read-only" if free is None else f"has {free} bytes left"
            case.faults = [f"the disk of {where} {state}"]
        else:
            case.file_limit = rng.choice((0, 0, 10, 100, 500, 2000, 20_000))
            case.faults = [f"no file beyond {case.file_limit} bytes"]
    elif kind == "extras":
        case.without = ("optuna", "ray", "cmaes")
        case.faults = ["without the optional packages"]
    elif kind == "tab":
        whole = shlex.join(["mmbench", *case.arguments])
        case.typed = whole[: rng.randrange(len("mmbench "), len(whole) + 1)]
    return case


def import_everything() -> None:
    """Load what commands load, once, before any process is forked."""
    for module in pkgutil.walk_packages(mmbench.__path__, "mmbench."):
        if module.name not in ("mmbench.__main__",) and not module.name.startswith(
            "mmbench.recipes"
        ):
            importlib.import_module(module.name)
    import transformers

    for name in ("CLIPModel", "CLIPTokenizer", "CLIPImageProcessor", "AutoTokenizer"):
        getattr(transformers, name)  # loaded when it is first asked for


def cases(args: argparse.Namespace, root: Path) -> Iterator[Case]:
    """Run the cases."""
    names = args.command or cli.list_commands(click.Context(cli))
    numbers = [args.only] if args.only is not None else range(args.first, args.first + args.cases)
    for number in numbers:
        folder, answer = root / "case", root / "answer.json"
        shutil.rmtree(folder, ignore_errors=True)
        answer.unlink(missing_ok=True)
        shutil.copytree(root / "playground", folder)
        case = make_case(number, args.seed, folder, names)
        with contextlib.ExitStack() as stack:
            if case.disk is not None:
                os.chdir(root)
                stack.enter_context(own_disk(folder / case.disk[0], case.disk[1]))
            before = set(folder.rglob("*"))
            run_case(case, folder, answer, args.limit_s)
            judge(case, folder, before)
        yield case


def report(done: Sequence[Case], seconds: float) -> str:
    """What came of it, in lines."""
    states = Counter({0: "fine", 1: "failed a check", 2: "refused"}.get(c.status, "") for c in done)
    states["too long"] = sum(c.status == TOO_LONG for c in done)
    wrong = [case for case in done if case.problems]
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if state)
    per_command = Counter("tab" if case.typed is not None else case.arguments[0] for case in done)
    return (
        f"{len(done)} cases in {seconds:.0f} s: {told}; {len(wrong)} wrong\n"
        f"{', '.join(f'{name} {count}' for name, count in sorted(per_command.items()))}"
    )


def fuzz() -> int:
    """Run it; exit status 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this case alone and print all of it")
    parser.add_argument("--command", action="append", help="of this subcommand alone; repeatable")
    parser.add_argument("--limit-s", type=int, default=30)
    args = parser.parse_args()
    began, done = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="mmbench-fuzz-") as place:
        root = Path(place)
        (root / "playground").mkdir()
        import_everything()
        if (child := os.fork()) == 0:  # what makes it must not start threads in this process
            try:
                make_playground(root / "playground", run_here)
            except BaseException:  # noqa: BLE001  # nothing may go on in the copy
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            return 2
        for case in cases(args, root):
            done.append(case)
            if len(done) % 100 == 0:
                print(report(done, time.monotonic() - began), file=sys.stderr, flush=True)
            if case.problems or args.only is not None:
                again = [f"--command {name}" for name in args.command or ()]
                print(f"\ncase {case.number}: {'; '.join(case.problems) or case.status}")
                print(f"  {case.line}\n  {'; '.join(case.faults)}")
                said = case.out + case.err if args.only is not None else case.err
                print("  " + "\n  ".join(said.strip().splitlines()[-40:]))
                print(
                    f"  again: python benchmarks/fuzz.py --seed {args.seed} --only {case.number}",
                    *again,
                    flush=True,
                )
        os.chdir("/")
    print(report(done, time.monotonic() - began))
    return int(any(case.problems for case in done))


if __name__ == "__main__":
    sys.exit(fuzz())
