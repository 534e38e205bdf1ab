"""Training that begins with the weights of another run: of the same dataset, or of another one.

What moves is every stored tensor whose name and shape the new model has and that is not indexed
by users or items, who are others here. Optimiser and generators begin anew. What a model reads
must mean the same in both: vectors of one modality come from one encoder, column by column.

    recipe    training.start_from: {run: runs/source-s{seed}}
    identity  the system of that run, and its seed where it is not the run's own; so runs that
              start from runs of their own seeds are one system. Where the folder lies is no part
              of it. Whatever the weights are beyond that is in the folder's name: their SHA-256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from mmbench.data.hashing import sha256_file
from mmbench.engine.inputs import Inputs
from mmbench.engine.spaces import check_spaces
from mmbench.errors import ConfigError, DataError
from mmbench.models.base import MODELS, ItemFeatures, Recommender
from mmbench.recipe import RunRecipe
from mmbench.recipe_keys import StartFrom
from mmbench.runs import Run, open_run

KEY = "training.start_from"
WEIGHTS = "weights.safetensors"
_SHOWN = 6


@dataclass(frozen=True)
class Moved:
    """What the stored tensors of a model become.

    Attributes:
        taken: names of those that come from the other run.
        own: names of the parameters that do not: they begin as they would have without it.
    """

    taken: tuple[str, ...]
    own: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """A finished run to start from.

    Attributes:
        run: the run.
        how: the recipe's section.
        weights_sha256: of its weights.
    """

    run: Run
    how: StartFrom
    weights_sha256: str

    def identity(self, seed: int) -> dict[str, Any]:
        """What it adds to the identity of a run with this seed."""
        same = self.run.seed == seed
        return {"system": self.run.system, **({} if same else {"seed": self.run.seed})}

    def facts(self, moved: Moved) -> dict[str, Any]:
        """What a run's manifest says of it."""
        return {
            "run": self.run.path.name,
            "label": self.run.label,
            "dataset": self.run.manifest["dataset"]["name"],
            "system": self.run.system,
            "seed": self.run.seed,
            "weights_sha256": self.weights_sha256,
            "trained": self.how.train,
            "taken": list(moved.taken),
            "own": list(moved.own),
        }

    def begin(self, model: Recommender, inputs: Inputs, given: Sequence[ItemFeatures]) -> Moved:
        """Put the weights that fit into a fresh model.

        Raises:
            ConfigError: vectors are not comparable, no weight fits, or the model is not to be
                trained though it lacks some.
            DataError: the weights or feature sets of the other run's dataset cannot be read.
        """
        check_spaces(self.run.manifest, inputs, self.how.same_space)
        tensors = read_weights(self.run)
        moved = what_moves(model, tensors, sizes_of(self.run), sizes_of_inputs(inputs))
        name = self.run.manifest["model"]["name"]
        parameters = [name for name, _ in model.named_parameters()]
        if not set(parameters) & set(moved.taken):
            raise ConfigError(
                f"{KEY}: no weight of {name} moves from {self.run.path}: all belong to users or "
                "items, or are of another shape; choose a model that reads content, and equal "
                "settings"
            )
        lost = [key for key in tensors if ".encoder.learning." in key and key not in moved.taken]
        if lost:
            raise ConfigError(
                f"{KEY}: {self.run.path} holds tuned weights of an encoder that this recipe does "
                f"not tune ({_few(lost)}); tune at least as much of it under encoders:"
            )
        if not self.how.train and moved.own:
            raise ConfigError(
                f"{KEY}: {name} cannot rank without training here: {_few(moved.own)} belong to "
                "this dataset, or are not among the weights; leave train: false out"
            )
        model.start_from({key: tensors[key] for key in moved.taken}, given)
        return moved


def find_start(recipe: RunRecipe) -> Start | None:
    """The run that a recipe starts from, None where it starts by itself.

    Raises:
        ConfigError: it is of another model, or the model is not trained step by step.
        DataError: it is missing, unfinished or without weights.
    """
    how = recipe.training.start_from
    if how is None:
        return None
    if MODELS.get(recipe.model).obj.fitting != "gradient":
        raise ConfigError(
            f"{KEY}: {recipe.model} is not trained by gradient, so no weights can be its start; "
            "remove the key"
        )
    path = Path(how.run).expanduser()
    try:
        run = open_run(path)
    except DataError as problem:
        raise DataError(f"{KEY}, seed {recipe.seed}: {problem}") from None
    other = run.manifest["model"]["name"]
    if other != recipe.model:
        raise ConfigError(f"{KEY}: {path} is a run of {other}, this recipe trains {recipe.model}")
    if not (path / WEIGHTS).is_file():
        raise DataError(f"{KEY}: {path} holds no {WEIGHTS}; train it again")
    return Start(run, how, _hash(path / WEIGHTS))


def what_moves(
    model: Recommender,
    tensors: Mapping[str, torch.Tensor],
    there: Sequence[int],
    here: Sequence[int],
) -> Moved:
    """Which stored tensors of a model come from another run.

    Args:
        model: fresh.
        tensors: what the other run stores, by name.
        there: users, items and training rows of its dataset.
        here: those of the model's.
    """
    taken = []
    for name, own in model.state_dict().items():
        other = tensors.get(name)
        if other is None or belongs_to_dataset(model, name, own.shape, there, here):
            continue
        if other.shape == own.shape or name.startswith(model.fitted_tensors):
            taken.append(name)
    every = {name for name, _ in model.named_parameters()}
    return Moved(tuple(taken), tuple(sorted(every - set(taken))))


def belongs_to_dataset(
    model: Recommender, name: str, shape: Sequence[int], there: Sequence[int], here: Sequence[int]
) -> bool:
    """Whether a stored tensor has a place for each user, item or row of the dataset.

    A model says so, or its sizes do. Where a number of users, items or rows is another one in the
    other dataset, so is the shape, and nothing is left to ask; so a size alone decides only where
    both datasets have equally many. Then a weight that happens to be as wide stays behind too.
    """
    if model.of_dataset is not None:
        return any(name == own or name.startswith(f"{own}.") for own in model.of_dataset)
    pairs = zip(_sizes(*here), _sizes(*there), strict=True)
    equal = {size for size, other in pairs if size == other}
    return any(size in equal for size in shape)


def sizes_of(run: Run) -> tuple[int, int, int]:
    """Users, items and training rows of a run's dataset."""
    facts = run.manifest["dataset"]
    return int(facts["users"]), int(facts["items"]), int(facts["train_interactions"])


def sizes_of_inputs(inputs: Inputs) -> tuple[int, int, int]:
    """Users, items and training rows of a run that is to be trained."""
    return inputs.dataset.n_users, inputs.dataset.n_items, len(inputs.train.users)


def read_weights(run: Run) -> dict[str, torch.Tensor]:
    """The stored tensors of a run.

    Raises:
        DataError: they cannot be read.
    """
    file = run.path / WEIGHTS
    try:
        weights: dict[str, torch.Tensor] = load(file.read_bytes())
    except (OSError, SafetensorError) as problem:
        raise DataError(f"{file} cannot be read ({problem}); train the run again") from None
    return weights


def _sizes(users: int, items: int, rows: int) -> tuple[int, ...]:
    return users, items, users + items, users + 1, items + 1, rows, 2 * rows


def _hash(file: Path) -> str:
    facts = file.stat()
    return _hash_of(file.resolve(), facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _hash_of(file: Path, modified_ns: int, size: int) -> str:
    """The hash of a file as it is now; a study asks again for each run that starts from it."""
    return sha256_file(file)


def _few(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
