"""Feature sets of neural encoders: what is there already, what is to do, and the merging.

A set is known by what determines it: the encoder's settings with the SHA-256 of its weights, how
texts are composed, the hashes of texts and pictures, and the precision. One of equal settings is
not made again; one of other settings is not overwritten unasked.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from mmbench.data.features import (
    FeatureSet,
    feature_key,
    read_feature_manifest,
    rows_with_content,
    write_features,
)
from mmbench.data.prepared import PreparedDataset
from mmbench.encoders.addressed import find_addressed, place_of
from mmbench.encoders.hub import Remote
from mmbench.encoders.loading import Weights, find_weights, hash_files
from mmbench.encoders.neural import NeuralEncoder, Options
from mmbench.encoders.tuned import tuning_of
from mmbench.engine import device
from mmbench.engine.contents import Contents, TextTemplate, read_contents
from mmbench.engine.device import Compute
from mmbench.engine.encoding import (
    PRECISIONS,
    Encoding,
    Job,
    Watch,
    default_size,
    precision_type,
)
from mmbench.engine.feeding import BatchSize, default_workers
from mmbench.engine.identity import (
    is_same,
    load_stored,
    package_version,
    refuse_other,
    versions,
)
from mmbench.engine.ranks import Ranks, joined_ranks, local_device
from mmbench.engine.shards import (
    POOLED_ITEMS,
    TOKEN_ITEMS,
    Done,
    WorkFolder,
    alone,
    canonical_hash,
    make_shards,
)
from mmbench.errors import ConfigError, DataError, UnknownNameError

# Of an encoder's settings: where the weights come from does not move a number, what they are does.
WHENCE = ("hub", "id", "model", "revision", "address", "licence", "citation")


@dataclass(frozen=True)
class How:
    """How sets are made.

    Attributes:
        options: of the encoder.
        texts: which fields make a text; None for the text that was prepared.
        name: what the sets are called; None for the encoder's name.
        batch_size: items at a time; None to choose.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32", or "bfloat16" or "float16" for autocast.
        workers: threads that decode pictures; None to choose.
        fetch: whether weights may be fetched; `agree` is asked with what would be.
        force: make again what is there, and replace what was made otherwise.
        watch: is told of the progress.
    """

    options: Options = field(default_factory=Options)
    texts: TextTemplate | None = None
    name: str | None = None
    batch_size: int | None = None
    device: str = "auto"
    precision: str = "float32"
    workers: int | None = None
    fetch: bool = False
    agree: Callable[[Remote], bool] | None = None
    force: bool = False
    watch: Watch = field(default_factory=Watch)


@dataclass(frozen=True)
class Extraction:
    """A feature set, and whether it was made now or was there already.

    Attributes:
        time_s: how long that took.
        n_encoded: items that were encoded just now; fewer than there are after a resumption.
    """

    features: FeatureSet
    is_new: bool
    time_s: float = 0.0
    n_encoded: int = 0


@dataclass(frozen=True)
class _Task:
    """A job on the contents it is for.

    `request` is the hash of all that can be told of the result before the model is loaded; None
    where that is not enough.
    """

    job: Job
    contents: Contents
    request: str | None


@dataclass(frozen=True)
class _Making:
    """All that `_make` needs."""

    dataset: PreparedDataset
    name: str
    encoder: NeuralEncoder
    task: _Task
    how: How
    ranks: Ranks
    compute: Compute


def extract_neural(
    dataset: PreparedDataset, name: str, encoder: NeuralEncoder, how: How
) -> list[Extraction]:
    """Make the feature sets of an encoder that are not there yet.

    Args:
        name: what the sets are called.

    Raises:
        ConfigError: a stored set of that name was made otherwise, and `how.force` is not set.
        DataError: the weights are not here, no item has the content, or too many items fail.
    """
    if how.precision not in PRECISIONS:
        raise UnknownNameError("precision", how.precision, PRECISIONS)
    if encoder.new:
        raise ConfigError(
            f"the variant {encoder.variant} of {type(encoder).__name__} has a projection that no "
            "published weights hold, so its vectors would be random; it learns with a recommender: "
            "name it under encoders: in a recipe, with tune: top"
            + (", or from the dataset's own pairs: add --finetune" if encoder.parts else "")
        )
    with joined_ranks() as ranks, ExitStack() as stack:
        compute = device.choose(local_device(how.device))
        precision_type(how.precision, compute)
        if not ranks.is_first:
            how = replace(how, watch=Watch(), agree=None)
        # The first process fetches what is to be fetched; the others find it then.
        weights = ranks.together(lambda: find_files(encoder, how), first_only=True)
        if not ranks.is_first:
            weights = find_files(encoder, replace(how, fetch=False))
        tasks = ranks.together(lambda: _tasks(dataset, encoder, how, weights)) or []
        done: list[Extraction] = []
        todo = []
        for task in tasks:
            found = None if how.force else _stored(dataset, name, task)
            done += found or []
            todo += [task] if found is None else []
        # No process may write before all have looked.
        ranks.together(lambda: None)
        if not todo:
            return done
        features = dataset.root / "features"
        ranks.together(lambda: stack.enter_context(alone(features, name)), first_only=True)
        ranks.together(encoder.load)
        encoder.module.eval().to(compute.device)
        for task in todo:
            done += _make(_Making(dataset, name, encoder, task, how, ranks, compute))
        return done


def jobs_of(encoder: NeuralEncoder) -> list[Job]:
    """What an encoder does in one go each."""
    if encoder.is_joint:
        return [Job(("textual", "visual"), encoder.modalities)]
    return [Job((modality,), (modality,)) for modality in encoder.modalities]


def find_files(encoder: NeuralEncoder, how: How) -> Weights | None:
    """The files with the weights; None where the encoder alone knows how to find them.

    Raises:
        DataError: they are not here and were not to be fetched, or could not be.
    """
    hub, options = encoder.hub, encoder.options
    if encoder.parts and options.weights is None:
        for part in encoder.parts.values():
            find_files(part, how)
        return None
    if options.weights is not None:
        try:
            return find_weights(hub, options)
        except DataError:
            return None  # what `load` says of that folder is more to the point
    if hub.address:
        remote = Remote(hub.address, "", {}, {})
        asked = how.fetch and not place_of(hub).is_file() and how.agree is not None
        agreed = how.agree(remote) if asked and how.agree is not None else True
        return find_addressed(hub, options, fetch=how.fetch and agreed)
    if not hub.id:
        return None
    return find_weights(hub, options, fetch=how.fetch, agree=how.agree)


def _tasks(
    dataset: PreparedDataset, encoder: NeuralEncoder, how: How, weights: Weights | None
) -> list[_Task]:
    """The jobs that have contents.

    Raises:
        DataError: none has.
    """
    # Of what is on no hub, other parts (a tokenizer) may come from elsewhere.
    about = None if weights is None or encoder.hub.address else _fingerprint_of(weights)
    tasks = []
    lacking = []
    for job in jobs_of(encoder):
        contents = read_contents(dataset, job.needs, how.texts)
        if not contents.has.any():
            lacking.append(job)
            continue
        request = None
        if about is not None:
            given = asdict(encoder.options)
            options = {key: value for key, value in given.items() if key != "weights"}
            known = {
                "mmbench": package_version("mmbench"),
                "encoder": type(encoder).__qualname__,
                "hub": encoder.hub.id,
                "options": options,
                "weights": about,
                "text": contents.template,
                "inputs_sha256": contents.sha256,
                "precision": how.precision,
            }
            request = canonical_hash(known)
        tasks.append(_Task(job, contents, request))
    what = {"textual": "text", "visual": "picture"}
    for job in lacking:
        needed = " and a ".join(what[modality] for modality in job.needs)
        if not tasks:
            raise DataError(
                f"no item of {dataset.name} has a {needed}, so {type(encoder).__name__} has "
                "nothing to encode; prepare it with an item table that names them"
            )
        how.watch.say(f"no item of {dataset.name} has a {needed}: no {job.name} set is made")
    return tasks


def _fingerprint_of(weights: Weights) -> dict[str, Any]:
    """Hashes of the weights and of the small files beside them: settings and tokenizers."""
    beside = [
        path
        for pattern in ("*.json", "*.txt", "*.model", "*/config.json")
        for path in sorted(weights.folder.glob(pattern))
        if path.is_file() and path.stat().st_size < 64 * 2**20
    ]
    return {
        "weights": sorted(weights.sha256.values()),
        "beside": {
            path.relative_to(weights.folder).as_posix(): hash_files([path])[path.name]
            for path in beside
        },
    }


def _stored(dataset: PreparedDataset, name: str, task: _Task) -> list[Extraction] | None:
    """The sets of a task where all were made on the same request."""
    if task.request is None:
        return None
    keys = [feature_key(modality, name) for modality in task.job.gives]
    for key in keys:
        stored = read_feature_manifest(dataset.root, key) or {}
        if stored.get("dataset") != dataset.fingerprint:
            return None
        if stored.get("origin", {}).get("request_sha256") != task.request:
            return None
    return [Extraction(load_stored(dataset, key), is_new=False) for key in keys]


def _make(making: _Making) -> list[Extraction]:
    """Encode and store, unless sets with the same settings are there."""
    dataset, task, how, ranks = making.dataset, making.task, making.how, making.ranks
    began = time.monotonic()
    settings = _settings(making)
    keys = [feature_key(modality, making.name) for modality in task.job.gives]
    if not how.force and all(is_same(dataset, key, settings) for key in keys):
        ranks.together(lambda: None)
        return [Extraction(load_stored(dataset, key), is_new=False) for key in keys]
    if not how.force:
        for key in keys:
            refuse_other(dataset, key, settings)
    encoding = _begin(making, settings)
    before = sum(encoding.work.read(shard) is not None for shard in encoding.shards)
    ranks.together(lambda: encoding.run(ranks.share(encoding.shards)))
    ranks.together(lambda: _merge(making, encoding, settings), first_only=True)
    time_s = time.monotonic() - began
    has = task.contents.has
    n_encoded = int(has.sum()) if not before else 0
    return [Extraction(load_stored(dataset, key), True, time_s, n_encoded) for key in keys]


def _begin(making: _Making, settings: Mapping[str, Any]) -> Encoding:
    """Open or make the folder of the unfinished work."""
    dataset, task, how, ranks = making.dataset, making.task, making.how, making.ranks
    items = TOKEN_ITEMS if how.options.tokens else POOLED_ITEMS
    config = {
        **settings,
        "dataset": dataset.fingerprint,
        "shard_items": items,
        "device": making.compute.device.type,
        "versions": versions(),
    }
    if making.compute.is_cuda:
        config["gpu"] = making.compute.describe()["gpu"]
    key = feature_key(task.job.name, making.name)
    work = WorkFolder(dataset.root / "features", key, config)
    size = default_size(making.encoder, task.job, making.compute)
    if how.batch_size is not None:
        size = BatchSize(how.batch_size)
    asked = {**asdict(size), "asked": how.batch_size}
    ranks.together(lambda: work.begin(asked), first_only=True)
    recorded = ranks.together(work.recorded) or asked
    return Encoding(
        making.encoder,
        task.job,
        task.contents,
        dataset.item_ids,
        work,
        make_shards(dataset.n_items, items),
        making.compute,
        how.precision,
        how.workers or default_workers(making.compute.is_cuda),
        BatchSize(recorded["items"], recorded["tokens"]),
        how.watch,
    )


def _merge(making: _Making, encoding: Encoding, settings: Mapping[str, Any]) -> None:
    """Make feature sets of the finished shards, and remove these."""
    dataset, contents, work = making.dataset, making.task.contents, encoding.work
    found = [work.read(shard) or Done() for shard in encoding.shards]
    failed = {item: why for done in found for item, why in done.problems.items()}
    for modality in making.task.job.gives:
        key = feature_key(modality, making.name)
        matrix = work.joined(encoding.shards, f"{modality}.matrix")
        if matrix is None:
            raise DataError(f"E118 {key}: the encoder gave no {modality} vectors")
        tokens = work.joined(encoding.shards, f"{modality}.tokens")
        token_mask = work.joined(encoding.shards, f"{modality}.token_mask")
        mask = rows_with_content(matrix)
        causes = {
            int(item): contents.lacking.get(int(item)) or failed.get(int(item)) or "all zeros"
            for item in np.flatnonzero(~mask)
        }
        kinds = Counter("cannot be encoded" if k in failed else why for k, why in causes.items())
        ids = encoding.ids
        write_features(
            dataset.root,
            dataset.fingerprint,
            modality,
            making.name,
            matrix,
            mask,
            settings,
            tokens=None if tokens is None or token_mask is None else (tokens, token_mask),
            origin={
                "encoder": dict(making.encoder.settings),
                "licence": making.encoder.hub.licence,
                "finetuned": _tuning(making.encoder),
                "request_sha256": making.task.request,
                "device": work.config["device"],
                "gpu": work.config.get("gpu"),
                "versions": work.config["versions"],
                "batch": work.recorded(),
                "texts_cut": sum(done.n_cut for done in found),
                "without": dict(sorted(kinds.items())),
            },
            problems=[
                {"item": ids[item], "index": item, "cause": why} for item, why in causes.items()
            ],
        )
    work.remove()


def _tuning(encoder: NeuralEncoder) -> dict[str, Any] | None:
    """What the weights were fine-tuned from and how, where they were."""
    place = encoder.options.weights
    return None if place is None else tuning_of(place if place.is_dir() else place.parent)


def _settings(making: _Making) -> dict[str, Any]:
    """What determines the result, as JSON values."""
    encoder, contents = making.encoder, making.task.contents
    settings = {
        "kind": type(encoder).__qualname__,
        "encoder": {key: value for key, value in encoder.settings.items() if key not in WHENCE},
        "text": contents.template,
        "inputs_sha256": contents.sha256,
        "tokens": making.how.options.tokens,
        "precision": making.how.precision,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain
