"""Models and tokenizers of transformers, made of files that `loading.py` found."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmbench.encoders.hub import SAFE, first_line
from mmbench.encoders.loading import (
    STANDARD,
    Weights,
    read_config,
    tokenizer_files,
    unsafe_is_refused,
)
from mmbench.errors import DataError


def load_transformer(
    architecture: Any, weights: Weights, *, may_miss: Sequence[str] = (), **settings: Any
) -> Any:
    """A model of transformers in float32 and in evaluation mode.

    Args:
        architecture: class of the model, for example `transformers.BertModel`, or an Auto class.
        may_miss: beginnings of names of weights that need not be in the file, because they are
            not used; a class may have random ones there.
        settings: further arguments of `from_pretrained`.

    Raises:
        DataError: E403 a file is missing, E404 broken, E405 unsafe, E406 of another architecture
            or incomplete.
    """
    config = read_config(weights)
    expected = getattr(getattr(architecture, "config_class", None), "model_type", None)
    if expected is not None and config.get("model_type") != expected:
        raise DataError(
            f"E406 {weights.folder / 'config.json'} is of a model of type "
            f"{config.get('model_type')!r}; {architecture.__name__} needs {expected!r}. Name the "
            "folder of such a model with --weights, or take it by its id with the encoder hf"
        )
    for file, key in (("adapter_config.json", None), ("config.json", "transformers_weights")):
        if (weights.folder / file).is_file() and (key is None or config.get(key)):
            raise DataError(
                f"E406 {weights.folder / file}: this names weights elsewhere (an adapter); merge "
                "them into one model.safetensors first"
            )
    safe = weights.files[0].suffix == SAFE
    if len(weights.files) == 1 and weights.files[0].name != STANDARD[0 if safe else 1]:
        raise DataError(
            f"E403 {weights.files[0]} must be called {STANDARD[0 if safe else 1]} for "
            "transformers; rename it, or put a link of that name beside it"
        )
    if "attn_implementation" not in settings:
        # Always stated: a config.json could name a kernel that is fetched and run.
        sdpa = getattr(architecture, "_supports_sdpa", None)
        settings["attn_implementation"] = "eager" if sdpa is False else "sdpa"
    with quiet(), unsafe_is_refused(weights.files[0]):
        try:
            model, info = _from_pretrained(architecture, weights.folder, safe, settings)
        except DataError:
            raise
        except pickle.UnpicklingError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as problem:
            raise DataError(
                f"E406 the model in {weights.folder} does not load as "
                f"{architecture.__name__}: {first_line(problem)}"
            ) from problem
        except ImportError as problem:
            raise DataError(
                f"E406 {weights.name} needs a package that is not here: {first_line(problem)}"
            ) from problem
    lacking = [
        name for name in sorted(info["missing_keys"]) if not name.startswith(tuple(may_miss))
    ]
    unfit = sorted(str(name) for name in info["mismatched_keys"])
    if lacking or unfit:
        kind, names = ("lacks", lacking) if lacking else ("has in another shape", unfit)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DataError(
            f"E406 {weights.files[0]} {kind} weights of {type(model).__name__}: "
            f"{', '.join(names[:3])}{more}; it is of another model or incomplete"
        )
    return model.eval()


def _from_pretrained(
    architecture: Any, folder: Path, safe: bool, settings: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Any]]:
    arguments = {
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": safe,
        "dtype": torch.float32,
        "output_loading_info": True,
        **settings,
    }
    try:
        loaded = architecture.from_pretrained(folder, **arguments)
    except ValueError as problem:
        # Some architectures have no fused attention.
        if arguments["attn_implementation"] != "sdpa" or "scaled_dot_product" not in str(problem):
            raise
        loaded = architecture.from_pretrained(
            folder, **{**arguments, "attn_implementation": "eager"}
        )
    model, info = loaded
    return model, info


def load_tokenizer(weights: Weights, **settings: Any) -> Any:
    """The fast tokenizer of a model.

    Raises:
        DataError: E403 it has no files, E404 they are broken.
    """
    from transformers import AutoTokenizer

    tokenizer_files(weights.folder)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                weights.folder, local_files_only=True, trust_remote_code=False, **settings
            )
        except Exception as problem:  # the tokenizers library raises bare Exceptions
            raise DataError(
                f"E404 the tokenizer in {weights.folder} does not load: {first_line(problem)}"
            ) from problem
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"E404 the tokenizer in {weights.folder} has no tokenizer.json")
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines, progress bars and notices of transformers inside."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            with warnings.catch_warnings():
                # It warns where HF_HUB_DISABLE_PROGRESS_BARS keeps the bars of the hub away.
                warnings.simplefilter("ignore", UserWarning)
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]
