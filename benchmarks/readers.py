"""How the stored results of each script become figures, and its command where none is stored."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping

import extract
import finetuning
import mmsr
import planted
import sequential
from entries import Entry, Facts, Kind

CHANCE = 1.96
"""Standard errors by which a rate may exceed its level and still be that of chance."""
LEVEL = 0.05
"""Below it a p of fine-tuning's is significant."""


def _beside_mmrec(facts: Facts) -> Iterator[Entry]:
    for one in facts["results"]:
        ratio, needed = one["ratio"], float(one["ratio_needed_on_cpu"])
        yield Entry(
            work=one["work"],
            unit="s",
            ours=one["median_s"],
            theirs=one["toolbox_median_s"],
            ratio=ratio,
            bar=f"{needed:g} times",
            met=None if ratio is None else ratio >= needed,
            memory_mib=one["memory_mib"],
            their_memory_mib=one["toolbox_memory_mib"],
            over_floor=one["distance_from_floor"],
            note=_absent(one),
        )


def _absent(one: Facts) -> str:
    reason = one.get("toolbox_absent", "")
    return f"no other side, {reason}" if reason else ""


def _beside_recbole(facts: Facts) -> Iterator[Entry]:
    for one in facts["results"]:
        theirs = one["recbole_rate"]
        ratio = None if theirs is None else one["rate"] / theirs
        yield Entry(
            work=one["work"],
            unit=f"{one['unit']}/s",
            ours=one["rate"],
            theirs=theirs,
            ratio=ratio,
            bar=f"{sequential.NEEDED:g} times",
            met=None if ratio is None else ratio >= sequential.NEEDED,
            over_floor=statistics.median(one["times_s"]) / one["floor_s"]
            if "floor_s" in one
            else None,
        )


def _extraction(facts: Facts) -> Iterator[Entry]:
    items = facts.get("items")
    for one in facts["rows"]:
        # Files from before the number of items was kept hold seconds for all of them.
        ours, theirs = (items / one[k] if items else one[k] for k in ("ours_s", "bare_s"))
        yield Entry(
            work=one["encoder"],
            unit="items/s" if items else "s",
            ours=ours,
            theirs=theirs,
            ratio=one["ratio"],
            bar=f"{extract.NEEDED:g} of it",
            met=one["ratio"] >= extract.NEEDED,
        )


def _preparation(facts: Facts) -> Iterator[Entry]:
    for one in facts["results"]:
        bounds = {"s": ("time_s", "time_bound_s"), "MiB": ("memory_mib", "memory_bound_mib")}
        set_ = {u: (one[f], one[b]) for u, (f, b) in bounds.items() if one[b] is not None}
        yield Entry(
            work=f"{one['work']}, {one['rows']:,} rows",
            unit="s",
            ours=one["time_s"],
            bar=" and ".join(f"{bound:,} {unit}" for unit, (_, bound) in set_.items()),
            met=all(figure < bound for figure, bound in set_.values()) if set_ else None,
            memory_mib=one["memory_mib"],
            note=f"{one['cpu_s']:.0f} s of processor time",
        )


def _calibration(facts: Facts) -> Iterator[Entry]:
    level = float(facts["level"])
    for one in facts["results"]:
        rate, n = float(one["users_and_seeds"]), int(one["cases"])
        independent = str(one["null"]).startswith("simulated")
        error = CHANCE * math.sqrt(level * (1 - level) / n)
        cautious = "; rejects less often than its level" if rate < level - error else ""
        yield Entry(
            work=f"{one['null']}, {one['seeds_a_side']} seeds a side",
            unit="rejected",
            ours=rate,
            theirs=float(one["users"]),
            bar=f"<= {level + error:.3f}" if independent else "",
            met=rate <= level + error if independent else None,
            note=f"{n:,} cases{cautious}"
            if independent
            else f"{n:,} deals of the same trainings, so no error is known; level {level:g}",
        )


def _outside_encoders(facts: Facts) -> Iterator[Entry]:
    for one in facts["results"]:
        share, least = one["share_outside"], one["least_share_outside"]
        yield Entry(
            work=str(mmsr.Case(one["mask_ratio"], one["cache"], one["tune"])),
            unit="% of a step",
            ours=100 * share,
            theirs=100 * least,
            bar=f"<= {100 * mmsr.MOST_OUTSIDE:g}",
            met=share <= mmsr.MOST_OUTSIDE,
            note=f"{statistics.median(one['step_s']):.1f} s a step",
        )


def _retrieval(facts: Facts) -> Iterator[Entry]:
    """The place of the right item, which is what is tested, and Recall@10 without a bar."""
    for system, found in facts["results"].items():
        for name, row, better in (("place", 3, -1), ("recall@10", 2, 1)):
            ours, theirs = (
                100 * statistics.mean(way[row] for way in found[when])
                for when in ("after", "before")
            )
            tested = found[name]
            rose = better * tested["difference"] > 0 and tested["p"] < LEVEL
            yield Entry(
                work=f"{finetuning.NAMES[system]}, {name}",
                unit="%",
                ours=ours,
                theirs=theirs,
                bar=f"better, p < {LEVEL:g}" if name == "place" else "",
                met=rose if name == "place" else None,
                note=f"p {tested['p']:.4f}, beside chance ({100 * found['chance'][row]:.1f}) "
                f"{tested['p_chance']:.4f}, {found['n_items']:,} items, {found['n_runs']} runs",
            )


def _planted(facts: Facts) -> Iterator[Entry]:
    every = [planted.Found(**one) for one in facts["results"]]
    modalities = (*planted.PLANTED, planted.NOTHING) if every else ()
    levels = {"users": "users"}
    if all(found.over_systems is not None for found in every):
        levels["systems"] = "users and seeds"
    for level, over in levels.items():
        for modality in modalities:
            own = [found for found in every if found.modality == modality]
            found, harmed = (sum(one.says(level, way) for one in own) for way in (True, False))
            low, high = planted.exact_interval(found, len(own))
            nothing = modality == planted.NOTHING
            yield Entry(
                work=f"{modality}, over {over}",
                unit="shops",
                ours=found,
                theirs=len(own),
                bar=f"<= {planted.ALPHA:.0%}, up to chance" if nothing else "",
                met=low <= planted.ALPHA if nothing else None,
                note=f"{'carries nothing' if nothing else 'planted'}, 95 % interval {low:.0%} to "
                f"{high:.0%}, significantly worse with it in {harmed}",
            )


def _end_to_end(facts: Facts) -> Iterator[Entry]:
    for one in facts["lines"]:
        lower, seeds = sum(d < 0 for d in one["differences"]), len(one["seeds"])
        yield Entry(
            work=f"{one['model']} with {one['encoder']}, beside {one['against']}",
            unit="loss",
            ours=one["learnt"],
            theirs=one["frozen"],
            bar="lower",
            met=one["learnt"] < one["frozen"],
            note=f"lower in {lower} of {seeds} seeds, after {one['steps']} steps",
        )


def _threads(facts: Facts) -> int:
    machine = facts.get("environment") or facts.get("machine") or facts
    return int(machine["threads"])


def _named_dataset(facts: Facts) -> str:
    """The option that chose the data, by the caption."""
    prepared = re.match(r"Data: (\S+) \(prepared\)", facts["caption"])
    return f" --dataset {prepared[1]}" if prepared else ""


def _of_engine(facts: Facts) -> str:
    theirs = any(one["toolbox_median_s"] is not None for one in facts["results"])
    return (
        f"python benchmarks/engine.py{_named_dataset(facts)}{' --mmrec DIR' if theirs else ''} "
        f"--threads {_threads(facts)} --repeats {facts['repeats']}"
    )


def _of_models(facts: Facts) -> str:
    steps = f" --steps {facts['steps_timed']}" if facts["steps_timed"] < facts["steps"] else ""
    return _of_engine(facts).replace("engine.py", "models.py") + steps


def _of_sequential(facts: Facts) -> str:
    users = re.match(r"([\d,]+) users", facts["caption"])
    return (
        f"python benchmarks/sequential.py{f' --users {users[1]}'.replace(',', '') if users else ''}"
        f" --threads {_threads(facts)} --repeats {len(facts['results'][0]['times_s'])}"
    )


def _of_extract(facts: Facts) -> str:
    items = f" --items {facts['items']}" if "items" in facts else ""
    return (
        f"python benchmarks/extract.py{items} --batch-size {facts['batch_size']} "
        f"--threads {_threads(facts)} --repeats {len(facts['rows'][0]['ours_all_s'])}"
    )


def _of_prepare(facts: Facts) -> str:
    return f"python benchmarks/prepare.py --threads {_threads(facts)}"


def _of_calibration(facts: Facts) -> str:
    return "python benchmarks/calibration.py"


def _of_mmsr(facts: Facts) -> str:
    sizes = re.match(r"([\d,]+) items, batches of (\d+) .* medians of (\d+)",
                     " ".join(facts["caption"].split()))  # fmt: skip
    if sizes is None:
        raise ValueError(f"no sizes in the caption {facts['caption']!r}")
    n_items, batch_size, steps = (size.replace(",", "") for size in sizes.groups())
    cases = facts["results"]
    ratios = ",".join(dict.fromkeys(f"{one['mask_ratio']:g}" for one in cases))
    return (
        f"python benchmarks/mmsr.py --items {n_items} --batch-size {batch_size} --mask-ratios "
        f"{ratios} --tune {cases[0]['tune']} --steps {steps} --threads {_threads(facts)}"
    )


def _of_finetuning(facts: Facts) -> str:
    runs = facts["runs"]
    systems, seeds = (dict.fromkeys(str(one[key]) for one in runs) for key in ("system", "seed"))
    return (
        f"python benchmarks/finetuning.py --dataset {facts['dataset']}"
        f"{' --minilm DIR' if 'pair' in systems else ''} --systems {','.join(systems)} "
        f"--seeds {','.join(seeds)} --batch-size {runs[0]['settings']['batch_size'][0]} "
        f"--threads {_threads(facts)}"
    )


def _of_planted(facts: Facts) -> str:
    return f"python benchmarks/planted.py --shops {len({one['shop'] for one in facts['results']})}"


def _of_paradigms(facts: Facts) -> str:
    return str(facts["command"])


KINDS: Mapping[str, Kind] = {
    "engine": Kind("Engine beside MMRec", "MMRec", _beside_mmrec, _of_engine),
    "models": Kind("Epochs of models beside MMRec", "MMRec", _beside_mmrec, _of_models),
    "sequential": Kind("SASRec beside RecBole's", "RecBole", _beside_recbole, _of_sequential),
    "extract": Kind("Extraction beside the forward pass", "forward", _extraction, _of_extract),
    "prepare": Kind("Preparation of large raw files", "", _preparation, _of_prepare),
    "mmsr": Kind(
        "MMSR: the share of a step outside its encoders", "least", _outside_encoders, _of_mmsr
    ),
    "finetuning": Kind(
        "Fine-tuning: retrieval on items nobody learnt from", "before", _retrieval, _of_finetuning
    ),
    "paradigms": Kind(
        "End-to-end training: loss beside that of frozen encoders, at equal steps",
        "frozen",
        _end_to_end,
        _of_paradigms,
    ),
    "planted": Kind(
        "Planted shops in which an ablation finds a modality", "of", _planted, _of_planted
    ),
    "calibration": Kind(
        "Calibration: true nulls rejected by the test over users and seeds",
        "users alone",
        _calibration,
        _of_calibration,
    ),
}
"""Scripts whose results are shown, in that order."""
