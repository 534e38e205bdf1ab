"""Vision encoders of timm: a pooled vector per picture, and its grid or patches.

    f        features of the last layer: patches [B, P + N, E] behind P prefix tokens (class token,
             registers), or a grid [B, H, W, E], read row by row
    pooled   what the model's own head would be given
    cls      the class token
    mean     of all tokens, prefix included, or of all cells
    patches  of the tokens behind the prefix: their mean
    grid     of the cells: their mean
    patch-emb   of the patches as they enter the first block, positions added: their mean

With `tokens`, the patches or cells themselves come too, never the prefix. A share of the patches
can be hidden from a masked autoencoder (He et al., CVPR 2022, section 3: the hidden ones are left
out before the first block); which ones is drawn from the item's id, so that every extraction of a
dataset hides the same, whatever the batch.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mmbench.encoders import preprocessing
from mmbench.encoders.loading import Weights, find_weights, load_pickle, read_json
from mmbench.encoders.neural import Batch, Encoded, NeuralEncoder, Options
from mmbench.encoders.preprocessing import CHOICES, Preprocessing
from mmbench.errors import ConfigError, DataError, UnknownNameError, did_you_mean

VIT_VARIANTS = ("pooled", "cls", "mean", "patches", "patch-emb")
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_HEADS = ("head.", "head_dist.", "fc.", "classifier.")
# What constructors and converters raise when the numbers of a stranger's file make no model.
_TROUBLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_REFUSED = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "scriptable",
    "exportable",
    "no_jit",
)


class TimmVision(NeuralEncoder):
    """A vision encoder that is told by its data.

    `hub.id` is "timm/" and the model's name. Class attribute: `max_size`, side of pictures that a
    model published for larger ones is given.

    Attributes:
        weights: where the model came from; after `load`.
        preprocessing: how a picture becomes a tensor; after `load`.
    """

    modalities = ("visual",)
    variants: ClassVar[tuple[str, ...]] = VIT_VARIANTS
    takes = frozenset({"tokens", "preprocess"})
    max_size: ClassVar[int | None] = None
    weights: Weights
    preprocessing: Preprocessing
    _architecture: str
    _full_name: str
    _arguments: Mapping[str, Any]
    _published: Mapping[str, Any]

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        if self.options.preprocess not in CHOICES:
            raise UnknownNameError("preprocessing", self.options.preprocess, CHOICES)
        if not 0 <= self.options.mask_ratio < 1:
            raise ConfigError(
                f"mask-ratio {self.options.mask_ratio} is not a share of the patches; it is "
                "0 (all are seen) or more, and less than 1"
            )

    def load(self) -> None:
        """Read the weights and, where a config.json is beside them, what it says."""
        self.weights = find_weights(self.hub, self.options)
        config = _config(self.weights)
        name = self._name(config)
        self._architecture, self._full_name = name.partition(".")[0], name
        self._arguments = self._model_arguments(config)
        model, published = _create(name, self._arguments, self.weights.name)
        published = {**published, **config["pretrained_cfg"]}
        load_weights(model, self.weights, published.get("classifier"))
        self.module = model.eval()
        self._published = config["pretrained_cfg"]
        self.preprocessing = _preprocessing(model, published, self.weights).chosen(
            self.options.preprocess
        )

    def described(self) -> dict[str, Any]:
        """Content of a config.json, by which stored weights become the same encoder; after `load`.

        Without the classifier: it is stored no more than it is loaded.
        """
        published = {
            name: value
            for name, value in self._published.items()
            if name not in ("architecture", "model_args", "pretrained_cfg")
        }
        return {
            "architecture": self._full_name,
            "model_args": dict(self._arguments),
            "pretrained_cfg": published,
        }

    def _name(self, config: Mapping[str, Any]) -> str:
        """The model's name in timm, checked against that of a config.json."""
        name = self.hub.id.partition("/")[2]
        stated = config.get("architecture", name)
        if str(stated).partition(".")[0] != name.partition(".")[0]:
            raise DataError(
                f"E406 {self.weights.folder / 'config.json'} is of the architecture {stated!r}; "
                f"{type(self).__name__} needs {name.partition('.')[0]!r}. Name the folder of such "
                "a model with --weights, or take any other with --encoder timm:ID"
            )
        return name

    def _model_arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        arguments = _model_arguments(config, self.weights)
        if self.max_size is not None:
            stated = arguments.get("img_size", self.max_size)
            sides = [side for side in np.ravel(stated).tolist() if isinstance(side, int)]
            arguments["img_size"] = min([*sides, self.max_size])
        return arguments

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        masking = {"mask_ratio": self.options.mask_ratio}
        if self.options.mask_ratio:
            masking["mask_drawn_by"] = "shake-256 of the item id"  # type: ignore[assignment]
        return {
            "version": 1,
            **self.weights.facts,
            "architecture": self._architecture,
            "model_args": dict(self._arguments),
            "variant": self.variant,
            "l2_normalised": False,
            "preprocess": self.options.preprocess,
            "image": dict(self.preprocessing.settings),
            **masking,
        }

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """An upright RGB picture [3, H, W]; under a mask ratio [4, H, W].

        The fourth channel is 1 where the patches are that the model sees.
        """
        pixels = self.preprocessing.apply(picture)
        if not self.options.mask_ratio:
            return pixels
        seen = torch.zeros(self._n_patches)
        seen[torch.from_numpy(visible_patches(item, self._n_patches, self._n_visible))] = 1
        rows, columns = self._grid
        side = self.preprocessing.size
        seen = seen.view(rows, 1, columns, 1).expand(-1, side // rows, -1, side // columns)
        return torch.cat([pixels, seen.reshape(1, side, side)])

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """Pictures as "pixel_values" [B, 3, H, W] and, if masked, "visible" patches [B, n]."""
        pixels = torch.stack(list(pictures))
        if not self.options.mask_ratio:
            return {"pixel_values": pixels}
        rows, columns = self._grid
        side = self.preprocessing.size
        seen = pixels[:, 3, :: side // rows, :: side // columns].flatten(1) > 0
        visible = seen.nonzero()[:, 1].view(len(pixels), self._n_visible)
        return {"pixel_values": pixels[:, :3].contiguous(), "visible": visible}

    def encode_picture(self, pictures: Batch) -> Encoded:
        """Pooled vectors [B, D] and, where asked for, patches or cells [B, N, E]."""
        features = self._features(pictures)
        model: Any = self.module
        if features.ndim == 4:
            cells = self._cells(features)
            whole = cells
        else:
            whole, cells = features, features[:, self._n_prefix :]
        if self.variant == "pooled":
            pooled = model.forward_head(features, pre_logits=True).flatten(1)
        elif self.variant == "cls":
            pooled = whole[:, 0]
        else:
            pooled = (whole if self.variant == "mean" else cells).float().mean(dim=1)
        return Encoded(pooled.float(), cells.float() if self.options.tokens else None)

    def read(self, texts: Batch, pictures: Batch, modality: str) -> Encoded:
        """Vectors of pictures; the prefix tokens, which `encode_picture` leaves out, are states."""
        features = self._features(pictures)
        model: Any = self.module
        states = self._cells(features) if features.ndim == 4 else features
        if self.variant == "pooled":
            pooled = model.forward_head(features, pre_logits=True).flatten(1)
        elif self.variant == "cls":
            pooled = states[:, 0]
        else:
            whole = self.variant == "mean" or features.ndim == 4
            pooled = (states if whole else states[:, self._n_prefix :]).float().mean(dim=1)
        return Encoded(pooled.float(), states)

    def _features(self, pictures: Batch) -> Tensor:
        """States of the last layer, [B, P + N, E] or a grid; what enters the first one."""
        model: Any = self.module
        pixels, visible = pictures["pixel_values"], pictures.get("visible")
        if visible is None and self.variant != "patch-emb":
            features: Tensor = model.forward_features(pixels)
            return features
        seen = _seen(self._embedded(pixels), visible, self._n_prefix)
        if self.variant == "patch-emb":
            return seen
        states: Tensor = model.norm(model.blocks(seen))
        return states

    @property
    def framing(self) -> Preprocessing:
        """How pictures are prepared."""
        return self.preprocessing

    @property
    def masking(self) -> tuple[int, int] | None:
        """Patches of a picture and how many of them are seen, where some are hidden."""
        return (self._n_patches, self._n_visible) if self.options.mask_ratio else None

    def _embedded(self, pixels: Tensor) -> Tensor:
        """What enters the first block: [B, P + N, E], or a grid [B, H, W, E]."""
        model: Any = self.module
        embedded = model.patch_embed(pixels)
        if hasattr(model, "_pos_embed"):
            embedded = model._pos_embed(embedded)
            if isinstance(embedded, tuple):  # with rotary positions, which come in later
                embedded = embedded[0]
        before: Any = getattr(model, "norm_pre", nn.Identity())
        embedded = before(embedded)
        assert isinstance(embedded, Tensor)
        return embedded

    def _cells(self, grid: Tensor) -> Tensor:
        """The cells of a grid, row by row [B, H * W, E]."""
        if not _is_channels_last(self.module, grid):
            grid = grid.permute(0, 2, 3, 1)
        return grid.flatten(1, 2)

    @property
    def _n_prefix(self) -> int:
        return int(getattr(self.module, "num_prefix_tokens", 0))

    @property
    def _grid(self) -> tuple[int, int]:
        model: Any = self.module
        rows, columns = model.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def _n_patches(self) -> int:
        return self._grid[0] * self._grid[1]

    @property
    def _n_visible(self) -> int:
        return max(1, int(self._n_patches * (1 - self.options.mask_ratio)))


def visible_patches(item: str, n_patches: int, n_visible: int) -> NDArray[np.int64]:
    """The patches of an item that a masked autoencoder sees, ascending [n_visible].

    Drawn uniformly by a hash of the item's id, without a random generator: the same on every
    machine and with every version of numpy.
    """
    drawn = hashlib.shake_256(item.encode("utf-8", "surrogatepass")).digest(8 * n_patches)
    noise = np.frombuffer(drawn, dtype="<u8")
    return np.sort(np.argsort(noise, kind="stable")[:n_visible])


def _seen(tokens: Tensor, visible: Tensor | None, n_prefix: int) -> Tensor:
    if visible is None:
        return tokens
    index = visible.unsqueeze(2).expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens[:, :n_prefix], tokens[:, n_prefix:].gather(1, index)], dim=1)


def _is_channels_last(model: nn.Module, grid: Tensor) -> bool:
    stated = getattr(model, "output_fmt", None)
    if stated is not None:
        return str(getattr(stated, "value", stated)).upper() == "NHWC"
    width = getattr(model, "num_features", None)
    return grid.shape[1] != width and grid.shape[3] == width


def read_weights(weights: Weights) -> dict[str, Tensor]:
    """All weights in safetensors files or pickles, by name.

    Raises:
        DataError: E404 a file is broken; E405 a pickle holds more than tensors; E406 it holds
            something else than weights by name.
    """
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for file in weights.files:
        if file.suffix == ".safetensors":
            found.update(load_file(file))
            continue
        content = load_pickle(file)
        for wrapper in _WRAPPERS:
            if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
        if not isinstance(content, Mapping) or not content:
            raise DataError(f"E406 {file} holds a {type(content).__name__}, not weights by name")
        # Checkpoints hold the odd number beside the weights.
        found.update(
            {
                str(name).removeprefix("module."): value
                for name, value in content.items()
                if isinstance(value, Tensor)
            }
        )
    return found


def load_weights(model: nn.Module, weights: Weights, classifier: Any = None) -> None:
    """Fill a model of timm; every weight must be there, and none may be left over but a head's.

    Args:
        classifier: names of the modules of the head, as timm's configurations state them.

    Raises:
        DataError: E404 or E405 as `read_weights`; E406 they are of another architecture, or
            incomplete.
    """
    names = [classifier] if isinstance(classifier, str) else list(classifier or [])
    heads = (*_HEADS, *(f"{name}." for name in names))
    state = read_weights(weights)
    wanted = model.state_dict()
    fits = all(name in state and state[name].shape == wanted[name].shape for name in wanted)
    fits = fits and not any(name not in wanted and not name.startswith(heads) for name in state)
    try:
        if not fits:
            # What timm does with other layouts of the same model, and with other picture sizes.
            state = _converted(state, model)
        missing, left = model.load_state_dict(state, strict=False)
    except _TROUBLE as problem:
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        raise DataError(
            f"E406 {weights.files[0]} does not fit {type(model).__name__} as it is described: "
            f"{lines[min(1, len(lines) - 1)] if lines else type(problem).__name__}"
        ) from problem
    left = [name for name in left if not name.startswith(heads)]
    for kind, unfit in (("lacks", missing), ("has weights that have no place:", left)):
        if unfit:
            more = f" and {len(unfit) - 3} more" if len(unfit) > 3 else ""
            raise DataError(
                f"E406 {weights.files[0]} {kind} {', '.join(sorted(unfit)[:3])}{more}; it is not a "
                f"{type(model).__name__} as described, or incomplete"
            )


def _converted(state: dict[str, Tensor], model: nn.Module) -> Any:
    home = sys.modules[type(model).__module__]
    convert = getattr(home, "checkpoint_filter_fn", None) or getattr(home, "_filter_fn", None)
    if convert is None:
        return state
    takes_model = len(inspect.signature(convert).parameters) > 1
    return convert(state, model) if takes_model else convert(state)


def _config(weights: Weights) -> dict[str, Any]:
    """The content of a config.json as timm writes it; nothing where there is none."""
    path = weights.folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if config and "architecture" not in config:
        raise DataError(
            f"E406 {path} names no timm architecture; a folder of transformers "
            f"({config.get('model_type', 'unknown model type')}) is another layout. Take the "
            "repository timm/... of the model"
        )
    if "pretrained_cfg" not in config:  # the older, flat form
        config = {**config, "pretrained_cfg": config}
    if not isinstance(config["pretrained_cfg"], dict):
        raise DataError(f"E406 {path}: pretrained_cfg is no JSON object")
    return config


def _model_arguments(config: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """Arguments of the constructor that a config.json states, fit to be passed on."""
    given = config.get("model_args") or {}
    refused = sorted(set(given) & set(_REFUSED)) if isinstance(given, Mapping) else ["model_args"]
    if refused or given.get("in_chans", 3) != 3:
        raise DataError(
            f"E405 {weights.folder / 'config.json'}: model_args must not hold "
            f"{', '.join(refused) or 'in_chans other than 3'}"
        )
    return {
        str(name): tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name != "num_classes"
    }


def _create(name: str, arguments: Mapping[str, Any], source: str) -> tuple[Any, dict[str, Any]]:
    """A model of timm without its classifier, and what timm knows of its weights."""
    import timm
    from timm.models import get_pretrained_cfg, is_model

    architecture = name.partition(".")[0]
    if not is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise ConfigError(f"timm {timm.__version__} has no model {architecture!r}.{hint}")
    try:
        known = get_pretrained_cfg(name)
        model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except _TROUBLE as problem:
        raise DataError(
            f"E406 {source}: timm cannot make a {name} with {dict(arguments)} ({problem})"
        ) from problem
    return model, known.to_dict() if known is not None else {}  # type: ignore[no-untyped-call]


def _preprocessing(
    model: nn.Module, published: Mapping[str, Any], weights: Weights
) -> Preprocessing:
    from timm.data.config import resolve_data_config

    try:
        described = dict(published)
        settings = resolve_data_config(pretrained_cfg=described)  # type: ignore[no-untyped-call]
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if size is not None:
            settings["input_size"] = (3, *(size if isinstance(size, tuple) else (size, size)))
        return preprocessing.from_timm(settings)
    except _TROUBLE as problem:
        raise DataError(
            f"E406 {weights.folder / 'config.json'} describes no preprocessing ({problem})"
        ) from problem
