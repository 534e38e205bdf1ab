"""The other side: MMRec (https://github.com/enoche/MMRec), run from a local checkout as it is.

Its sources are copied to a temporary folder, because it reads `configs` from the working
directory and Python would write compiled files beside them. Its data loader, trainer and
evaluator do the work; nothing of them is changed, except for what current libraries no longer
have (see `shims`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from torch import Tensor
from workload import DEPTH, MODEL_OF, WIDTH, Run, Workload

from mmbench.engine.device import Compute
from mmbench.errors import ConfigError
from mmbench.models.base import Batch, Recommender

NAMES = {"bpr-mf": "BPR", "lightgcn": "LightGCN", "vbpr": "VBPR"}
SETTINGS: dict[str, dict[str, Any]] = {
    "bpr-mf": {"reg_weight": 0.1},
    "lightgcn": {"reg_weight": 1e-4, "n_layers": 2},
    "vbpr": {"reg_weight": 0.1},
}
NEED_USER_GRAPH = ("DualGNN", "DRAGON")
DATASET = "baby"
"""Its configuration for this name is used: field names and file names."""


class PublicToolbox:
    """MMRec on one workload.

    Args:
        checkout: the root of its repository; read, never written.
        folder: an empty folder of one's own.

    Raises:
        ConfigError: the folder holds no MMRec, or a package that it needs is missing.
    """

    def __init__(self, checkout: Path, folder: Path, workload: Workload, compute: Compute) -> None:
        self.compute, self.workload = compute, workload
        self.source = folder / "src"
        if not (checkout / "src" / "common" / "trainer.py").is_file():
            raise ConfigError(
                f"{checkout} is no checkout of MMRec: it has no src/common/trainer.py"
            )
        shutil.copytree(
            checkout / "src", self.source, ignore=shutil.ignore_patterns("__pycache__", "log")
        )
        data = folder / "data" / DATASET
        data.mkdir(parents=True)
        columns = {"userID": workload.users, "itemID": workload.items, "x_label": workload.labels}
        pl.DataFrame(columns).write_csv(data / f"{DATASET}.inter", separator="\t")
        for modality, name in (("visual", "image_feat.npy"), ("textual", "text_feat.npy")):
            (data / name).symlink_to(workload.features[modality].resolve())
        self.shims = shims(cuda=compute.is_cuda)
        sys.path.insert(0, str(self.source))
        # Its folder `models` has no __init__.py, so `models.py` here would be found before it.
        package = ModuleType("models")
        package.__path__ = [str(self.source / "models")]
        sys.modules["models"] = package
        loading = self._import("utils.dataloader")
        config = self._config(NAMES["bpr-mf"], SETTINGS["bpr-mf"])
        dataset = self._import("utils.dataset").RecDataset(config)
        parts = dataset.split()
        for part in (dataset, *parts):
            str(part)  # sets `inter_num`, which the loaders read
        self.parts, self.loaders = parts, {}
        self.valid = loading.EvalDataLoader(
            config, parts[1], additional_dataset=parts[0], batch_size=config["eval_batch_size"]
        )
        assert max(config["topk"]) == DEPTH

    def _import(self, name: str) -> ModuleType:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return importlib.import_module(name)
        except ModuleNotFoundError as problem:
            raise ConfigError(
                f"MMRec needs the package {problem.name}; install pandas, lmdb and torchvision "
                "beside this project, or leave out --mmrec"
            ) from None

    def _config(self, name: str, settings: Mapping[str, Any]) -> Any:
        """Its configuration, its defaults kept; a list of values to search becomes one value."""
        own: dict[str, Any] = {
            "data_path": f"{self.source.parent / 'data'}{os.sep}",
            "use_gpu": self.compute.is_cuda,
            "seed": 999,
            "embedding_size": WIDTH,
            **settings,
        }
        here = Path.cwd()
        os.chdir(self.source)
        try:
            return self._import("utils.configurator").Config(name, DATASET, own)
        finally:
            os.chdir(here)

    def _loader(self, config: Any) -> Any:
        """Its loader of training batches, with or without negative items as a model wants."""
        key = bool(config["use_neg_sampling"])
        if key not in self.loaders:
            self.loaders[key] = self._import("utils.dataloader").TrainDataLoader(
                config, self.parts[0], batch_size=config["train_batch_size"], shuffle=True
            )
        return self.loaders[key]

    def prepare(self, work: str) -> tuple[Run, Any]:
        """Build its model and trainer, and return what runs the work, and the model."""
        name = MODEL_OF[work]
        model, trainer, loader = self.build(NAMES[name], SETTINGS[name])
        if work == "evaluation":
            return lambda: dict(trainer.evaluate(self.valid)), model

        def epoch() -> dict[str, float]:
            total, batches = trainer._train_epoch(loader, 0)
            return {"loss": total / len(batches)}

        return epoch, model

    def has(self, name: str) -> bool:
        """Whether the checkout has a model of this name, as MMRec writes it."""
        return (self.source / "models" / f"{name.lower()}.py").is_file()

    def build(self, name: str, settings: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """A model of its own, freshly initialised, its trainer, and its training batches."""
        config, helpers = self._config(name, settings), self._import("utils.utils")
        helpers.init_seed(config["seed"])
        loader = self._loader(config)
        loader.pretrain_setup()
        if config["user_graph_dict_file"] and name in NEED_USER_GRAPH:
            self._write_user_graph(config["user_graph_dict_file"])
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                warnings.simplefilter("ignore")
                model = helpers.get_model(name)(config, loader).to(config["device"])
                self._demote(model)
                trainer = helpers.get_trainer()(config, model)
        except ModuleNotFoundError as problem:
            raise ConfigError(f"MMRec's {name} needs the package {problem.name}") from None
        return model, trainer, loader

    def _demote(self, model: Any) -> None:
        """Make a cache of results what it is on a GPU, a tensor; a parameter is not replaced."""
        if "result_embed" in model._parameters:
            model.result_embed = model._parameters.pop("result_embed").data
            shim = "result_embed of DualGNN and DRAGON, a tensor as it is on a GPU"
            if shim not in self.shims:
                self.shims.append(shim)

    def _write_user_graph(self, file_name: str) -> None:
        """The 200 users who share most items with each user, as its own script counts them.

        That script compares all pairs of users in Python, which takes hours at this size.
        """
        file = self.source.parent / "data" / DATASET / file_name
        if file.exists():
            return
        ties = self.workload.train.matrix
        shared = sp.csr_array(ties @ ties.T)
        shared.setdiag(0)
        shared.eliminate_zeros()
        lists: dict[int, list[list[Any]]] = {}
        for user in range(self.workload.n_users):
            row = slice(shared.indptr[user], shared.indptr[user + 1])
            order = np.argsort(-shared.data[row], kind="stable")[:200]
            lists[user] = [shared.indices[row][order].tolist(), shared.data[row][order].tolist()]
        np.save(file, np.array(lists, dtype=object), allow_pickle=True)


def copy_weights(theirs: Any, ours: Recommender) -> None:
    """Give our model the weights of theirs."""
    given = {name: tensor.detach() for name, tensor in theirs.named_parameters()}
    named = {
        "user_embedding.weight": "users",
        "item_embedding.weight": "items",
        "u_embedding": "users",
        "i_embedding": "items",
        "item_linear.weight": "project.weight",
        "item_linear.bias": "project.bias",
    }
    if "embedding_dict.user_emb" in given:
        both = (given["embedding_dict.user_emb"], given["embedding_dict.item_emb"])
        ours.load_state_dict({"nodes": torch.cat(both)})
    else:
        ours.load_state_dict({named[name]: tensor for name, tensor in given.items()})


def loss_difference(theirs: Any, ours: Recommender, batch: Batch) -> float:
    """Relative difference of the two losses of one batch, with equal weights."""
    rows = torch.stack([batch.users, batch.positives, batch.negatives])
    copy_weights(theirs, ours)
    with torch.no_grad():
        expected: Tensor = theirs.calculate_loss(rows)
        found = torch.stack(list(ours.training_step(batch).values())).sum()
    return float(abs(found - expected) / abs(expected))


def shims(*, cuda: bool) -> list[str]:
    """Put back what it calls and current libraries removed; says what was put back."""
    done = []
    if "float" not in vars(np):
        setattr(np, "float", float)  # noqa: B010 - a plain assignment reads like a use of it
        done.append("numpy.float = float")
    if not hasattr(sp.dok_matrix, "_update"):

        def update(self: Any, entries: dict[Any, Any]) -> None:
            self._dict.update(entries)

        sp.dok_matrix._update = update  # type: ignore[attr-defined]
        done.append("scipy.sparse.dok_matrix._update, as an update of its dictionary")
    if not hasattr(torch.sparse, "FloatTensor"):
        torch.sparse.FloatTensor = torch.sparse_coo_tensor  # type: ignore[attr-defined]
        done.append("torch.sparse.FloatTensor = torch.sparse_coo_tensor")
    if not cuda:
        # Some of its models move tensors with .cuda() whatever device they are asked for.
        Tensor.cuda = _stay  # type: ignore[method-assign, assignment]
        done.append("Tensor.cuda(), which stays where it is: there is no GPU in this run")
    if importlib.util.find_spec("torch_scatter") is None:
        absent = ModuleType("torch_scatter")
        absent.scatter = None  # type: ignore[attr-defined]  # imported by SLMRec, and not used
        absent.scatter_add = _scatter_add  # type: ignore[attr-defined]
        sys.modules["torch_scatter"] = absent
        done.append("torch_scatter.scatter_add of vectors (degrees of item graphs, once)")
    return done


def _scatter_add(source: Tensor, index: Tensor, dim: int, dim_size: int) -> Tensor:
    return source.new_zeros(dim_size).index_add(dim, index, source)


def _stay(self: Tensor, *_: Any, **__: Any) -> Tensor:
    return self
