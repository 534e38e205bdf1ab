"""What `mmbench doctor` looks at: packages, device, memory, disks, data, weights, commands.

Every look returns checks and raises nothing: a program that says what is broken must not break
of it. Torch alone is imported for real, since the device is its to say; all other packages are
known by their metadata, unless asked for.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "note", "missing", "broken"]
GIB = 2**30
LEAST_FREE = 2 * GIB
"""Free bytes of a disk, or of memory, below which the doctor says so."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        section: heading under which it is shown.
        name: what was looked at.
        state: ok; note, worth knowing; missing, wanted by some command; broken.
        found: what there is.
        cure: what to do about it.
        essential: whether nothing works without it.
    """

    section: str
    name: str
    state: State
    found: str
    cure: str = ""
    essential: bool = False


@dataclass(frozen=True)
class Requirement:
    """A line of the package's metadata, as `torch>=2.6` or `optuna>=4; extra == "tune"`."""

    name: str
    least: str
    extra: str


def examine(data_dir: Path, runs_dir: Path, *, imports: bool) -> list[Check]:
    """Everything there is to see.

    Args:
        imports: import every package for real, which takes longer and finds broken ones.
    """
    looks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("packages", lambda: packages(imports=imports)),
        ("machine", machine),
        ("device", device),
        ("folders", lambda: folders(data_dir, runs_dir)),
        ("data", lambda: datasets(data_dir)),
        ("encoders", encoders),
        ("commands", lambda: commands(data_dir)),
    )
    checks: list[Check] = []
    for section, look in looks:
        try:
            checks += look()
        except Exception as problem:  # noqa: BLE001  # what is broken is what it is here to say
            told = f"could not be looked at: {_first_line(problem)}"
            essential = section == "device"  # torch
            checks.append(Check(section, section, "broken", told, essential=essential))
    return checks


def requirements() -> list[Requirement]:
    """What the installed package declares.

    Raises:
        PackageNotFoundError: it is not installed, but run from its folder.
    """
    found = []
    for line in metadata.requires("mmbench") or []:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        least = re.search(r">=\s*([0-9][^,;\s]*)", line)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if name:
            least_text = least[1] if least else ""
            found.append(Requirement(name[0], least_text, extra[1] if extra else ""))
    return found


def packages(*, imports: bool) -> Iterator[Check]:
    """Python, what the package needs, and its optional extras."""
    python = platform.python_version()
    old = sys.version_info < (3, 10)
    yield Check(
        "packages", "Python", "broken" if old else "ok", python,
        "mmbench needs Python 3.10 or later" if old else "", essential=True,
    )  # fmt: skip
    try:
        needed = requirements()
        yield Check("packages", "mmbench", "ok", metadata.version("mmbench"))
    except metadata.PackageNotFoundError:
        yield Check(
            "packages", "mmbench", "broken", "run from a folder, not installed",
            "pip install . in its folder", essential=True,
        )  # fmt: skip
        return
    modules = _modules() if imports else {}
    for one in needed:
        if one.extra not in ("test", "dev"):
            yield _package(one, modules.get(one.name.lower()))


def _package(one: Requirement, module: str | None) -> Check:
    section = "extras" if one.extra else "packages"
    name = f"{one.name} ({one.extra})" if one.extra else one.name
    cure = f"pip install 'mmbench[{one.extra}]'" if one.extra else f"pip install '{one.name}'"
    if one.least and not one.extra:
        cure = f"pip install '{one.name}>={one.least}'"
    needed = not one.extra
    try:
        version = metadata.version(one.name)
    except metadata.PackageNotFoundError:
        state: State = "broken" if needed else "missing"
        return Check(section, name, state, "not installed", cure, essential=needed)
    if _number(version) < _number(one.least):
        told = f"{version}, older than {one.least}"
        return Check(section, name, "broken", told, cure, essential=needed)
    if module is not None:
        try:
            importlib.import_module(module)
        except Exception as problem:  # noqa: BLE001  # whatever a broken package raises
            told = f"{version} cannot be imported: {_first_line(problem)}"
            again = f"pip install --force-reinstall '{one.name}'"
            return Check(section, name, "broken", told, again, essential=needed)
    return Check(section, name, "ok", version)


def _modules() -> dict[str, str]:
    """The module of each installed distribution that has one called alike, or one at all."""
    found: dict[str, str] = {}
    for module, owners in metadata.packages_distributions().items():
        for owner in owners:
            alike = module.lower() == owner.lower().replace("-", "_")
            if not module.startswith("_") and (alike or owner.lower() not in found):
                found[owner.lower()] = module
    return found


def machine() -> Iterator[Check]:
    """Processor and memory."""
    n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    threads = n_threads or os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    told = f"{_threads(threads)}, {platform.machine()}, {platform.system()}"
    yield Check("machine", "CPU", "ok", told + (f", OMP_NUM_THREADS={limit}" if limit else ""))
    total, free = memory()
    if total is None:
        yield Check("machine", "memory", "note", "this system does not say")
        return
    told = f"{total / GIB:.1f} GiB" + (f", {free / GIB:.1f} GiB free" if free is not None else "")
    scarce = free is not None and free < LEAST_FREE
    cure = "smaller training.batch_size, or fewer --processes" if scarce else ""
    yield Check("machine", "memory", "note" if scarce else "ok", told, cure)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory that this process may use, and how many are free; None where unknown."""
    total: int | None = None
    free: int | None = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    told = _read(Path("/proc/meminfo"))
    if found := re.search(r"MemAvailable:\s+(\d+) kB", told):
        free = int(found[1]) * 1024
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()  # of a container
    used = _read(Path("/sys/fs/cgroup/memory.current")).strip()
    if limit.isdecimal() and (total is None or int(limit) < total):
        total = int(limit)
        if used.isdecimal():
            left = max(0, total - int(used))
            free = left if free is None else min(free, left)
    return total, free


def device() -> Iterator[Check]:
    """What torch computes on; it is imported here."""
    import torch

    yield Check(
        "device", "torch", "ok", f"{torch.__version__}, {_threads(torch.get_num_threads())}"
    )
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(n_gpus):
        facts = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        bfloat16 = facts.major >= 8
        told = (
            f"{facts.name}, {total / GIB:.1f} GiB, {free / GIB:.1f} GiB free, "
            f"bfloat16 {'yes' if bfloat16 else 'no, take float16'}"
        )
        yield Check("device", f"cuda:{number}", "ok", told)
    if n_gpus == 0:
        built = torch.version.cuda
        seen = Path("/dev/nvidia0").exists()
        told = "none" if built else "none; this build of torch is for CPUs"
        cure = "install a build of torch for CUDA, see pytorch.org" if seen and not built else ""
        if seen and built:
            told, cure = f"none usable by torch for CUDA {built}", "check the driver: nvidia-smi"
        yield Check("device", "CUDA", "note", told, cure)
    several = torch.distributed.is_available()
    told = "torchrun can share a training" if several else "this build of torch has none"
    yield Check("device", "processes", "ok" if several else "note", told)


def folders(data_dir: Path, runs_dir: Path) -> Iterator[Check]:
    """The folders that are written to: whether they can be, and how much room there is."""
    from huggingface_hub import constants

    for name, folder, option in (
        ("data", data_dir, "--data-dir or MMBENCH_DATA"),
        ("runs", runs_dir, "--runs-dir or MMBENCH_RUNS"),
        ("weights", Path(constants.HF_HUB_CACHE), "HF_HOME"),
    ):
        there = next(at for at in (folder, *folder.absolute().parents) if at.exists())
        free = shutil.disk_usage(there).free
        told = f"{folder}{'' if folder.exists() else ' (to be made)'}, {free / GIB:.1f} GiB free"
        if not there.is_dir():
            yield Check("folders", name, "broken", f"{there} is a file", f"choose {option}")
        elif not os.access(there, os.W_OK | os.X_OK):
            yield Check("folders", name, "broken", f"{told}, read-only", f"choose {option}")
        elif free < LEAST_FREE:
            yield Check("folders", name, "note", told, f"make room, or choose {option}")
        else:
            yield Check("folders", name, "ok", told)


def datasets(data_dir: Path) -> Iterator[Check]:
    """Every prepared dataset with its splits and feature sets."""
    names = sorted(path.parent.name for path in data_dir.glob("*/manifest.json"))
    if not names:
        cure = "mmbench prepare demo; mmbench prepare --list shows all"
        yield Check("datasets", "(none)", "note", f"none prepared in {data_dir}", cure)
    for name in names:
        try:
            manifest = json.loads((data_dir / name / "manifest.json").read_text(encoding="utf-8"))
            splits = ", ".join(sorted(_stems(data_dir / name / "splits")))
            sets = ", ".join(sorted(_stems(data_dir / name / "features")))
            told = (
                f"{manifest['counts']['users']:,} users, {manifest['counts']['items']:,} items; "
                f"splits {splits or 'none'}; features {sets or 'none'}"
            )
        except (OSError, ValueError, KeyError, TypeError) as problem:
            again = f"mmbench prepare {name} --force"
            yield Check("datasets", name, "broken", f"unreadable: {_first_line(problem)}", again)
            continue
        cure = "" if sets else f"mmbench extract {name}"
        yield Check("datasets", name, "ok" if sets else "note", told, cure)


def encoders() -> Iterator[Check]:
    """Which encoders need nothing, and whose weights are in the hub's cache."""
    from mmbench.encoders.base import ENCODERS
    from mmbench.encoders.hub import cached_snapshot, is_offline

    for name in ENCODERS.names():
        made = ENCODERS.get(name).obj
        hub = getattr(made, "hub", None)
        if made.builtin:
            yield Check("encoders", name, "ok", "built in")
        elif hub is None or not hub.id:
            yield Check("encoders", name, "note", "takes any model of its library")
        elif cached_snapshot(hub.id, hub.revision) is not None:
            yield Check("encoders", name, "ok", f"{hub.id} is here")
        else:
            ways = "--weights FOLDER" if is_offline() else "--download or --weights FOLDER"
            network = f"mmbench extract DATASET --encoder NAME with {ways}"
            yield Check("encoders", name, "missing", f"{hub.id} is not here", network)


NEEDS = {
    "tune": ("optuna", "--tune optuna", "tune"),
    "ray": ("ray", "--ray", "ray"),
}
"""Parameters of commands that work with an optional package only: package, usage, extra."""


def commands(data_dir: Path) -> Iterator[Check]:
    """What each subcommand lacks, told from its parameters, so that new ones are seen too."""
    import click

    from mmbench.cli.main import cli

    context = click.Context(cli)
    prepared = next(data_dir.glob("*/manifest.json"), None) is not None
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        given = {param.name: param for param in command.params}
        lacks, cures = [], []
        for parameter, (package, usage, extra) in NEEDS.items():
            if parameter in given and not _is_installed(package):
                lacks.append(usage)
                cures.append(f"pip install 'mmbench[{extra}]'")
        dataset = given.get("dataset")
        if dataset is not None and dataset.required and not prepared:
            lacks.append("a prepared dataset")
            cures.append("mmbench prepare demo")
        told = f"all but {', '.join(lacks)}" if lacks else "ready"
        yield Check("commands", name, "missing" if lacks else "ok", told, "; ".join(cures))


def _stems(folder: Path) -> Sequence[str]:
    if not folder.is_dir():
        return ()
    return [path.name for path in folder.iterdir() if path.is_dir()] or [
        path.stem for path in folder.iterdir()
    ]


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _number(version: str) -> tuple[int, ...]:
    """A version as numbers: "2.6.0+cu124" as (2, 6); what ends in zeros is the same without."""
    found = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in found[0].split(".")] if found else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _first_line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:200]}" if lines else type(problem).__name__


def as_rows(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Checks for machines."""
    return [vars(check) for check in checks]
