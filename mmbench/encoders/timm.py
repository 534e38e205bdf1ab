"""Any vision model of timm, by its name, its id on the hub, or its folder.

    timm:convnext_base.fb_in22k_ft_in1k   a name of timm and the tag of its weights
    timm:resnet50                         a name alone, for the weights that timm takes first
    timm:user/model                       a repository with a config.json as timm writes it

Wightman, 2019. https://doi.org/10.5281/zenodo.4414861

The pooled vector is what the model's own head would be given. Which other vectors there are
depends on the model; that is tried out when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmbench.encoders.base import register_encoder
from mmbench.encoders.neural import Hub, Options
from mmbench.encoders.timm_vision import VIT_VARIANTS, TimmVision
from mmbench.errors import ConfigError, DataError, did_you_mean


@register_encoder("timm")
class AnyTimm(TimmVision):
    """What the head of any vision model would be given [D]."""

    hub = Hub("")
    variants = (*VIT_VARIANTS, "grid")
    takes = frozenset({"tokens", "preprocess", "model"})
    citation = "Wightman, PyTorch Image Models, 2019"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        model, place = self.options.model, self.options.weights
        if not model and place is None:
            raise ConfigError(
                "timm needs a model: --encoder timm:NAME, as in timm:resnet50.a1_in1k, or --weights"
            )
        if model and place is None and Path(model).is_dir():
            place = Path(model)
            self.options = replace(self.options, weights=place)
        if model and place is not None and model == str(place):
            model = None
        self._model = model
        hub = _hub(model) if model else Hub(place.resolve().name if place else "")
        self.hub = hub  # type: ignore[misc]  # of this one, not of the class

    def load(self) -> None:
        """Read the weights and what the config.json beside them says.

        Raises:
            DataError: beside what all encoders raise, E407: the model has no such vectors.
        """
        super().load()
        self._try_out()

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        # A folder's name says nothing about its content; the hash does.
        is_published = self.options.weights is None
        return {**super().settings, "model": self.hub.id if is_published else ""}

    def _name(self, config: Mapping[str, Any]) -> str:
        stated = config.get("architecture")
        if self._model is None or "/" in self._model:
            if not stated:
                raise DataError(
                    f"E403 {self.weights.folder} holds no config.json that names a timm "
                    "architecture; name it, as in --encoder timm:resnet50"
                )
            return str(stated)
        named = self._model.partition(".")[0]
        if stated and str(stated).partition(".")[0] != named:
            raise DataError(
                f"E406 {self.weights.folder / 'config.json'} is of the architecture {stated!r}, "
                f"not {named!r}"
            )
        return self._model

    def _try_out(self) -> None:
        """Check that the model has the vectors that were asked for."""
        has_grid = False
        has_class = getattr(self.module, "cls_token", None) is not None
        try:
            side = self.preprocessing.size
            with torch.inference_mode():
                pixels = torch.zeros(1, 3, side, side)
                if self.variant == "patch-emb":
                    features = self._embedded(pixels)
                else:
                    features = self.module.forward_features(pixels)  # type: ignore[operator]
                has_grid = features.ndim == 4
                encoded = self.encode_picture({"pixel_values": pixels})
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as problem:
            raise self._none(str(problem)) from problem
        if features.ndim not in (3, 4):
            raise self._none("it has neither patches nor a grid")
        for variant, is_there in (
            ("cls", has_class and not has_grid),
            ("patches", not has_grid),
            ("grid", has_grid),
        ):
            if self.variant == variant and not is_there:
                raise self._none(f"its features are a {'grid' if has_grid else 'list of patches'}")
        if encoded.pooled.ndim != 2 or not torch.isfinite(encoded.pooled).all():
            raise self._none("they are no finite numbers")

    def _none(self, why: str) -> DataError:
        return DataError(
            f"E407 {self.weights.name} ({self._architecture}) gives no {self.variant!r} vectors: "
            f"{why}. Another variant may be there: {', '.join(self.variants)}"
        )


def _hub(model: str) -> Hub:
    """Where the weights of a name of timm, or of an id of the hub, are published."""
    if "/" in model:
        return Hub(model.removeprefix("hf-hub:").removeprefix("hf_hub:"))
    import timm
    from timm.models import get_pretrained_cfg, is_model, list_pretrained

    architecture, _, tag = model.partition(".")
    if not is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise ConfigError(f"timm {timm.__version__} has no model {architecture!r}.{hint}")
    tags = [name for name in list_pretrained(f"{architecture}.*") if name != architecture]
    if tag and model not in tags:
        raise ConfigError(
            f"timm {timm.__version__} knows no weights {model!r}.{did_you_mean(model, tags)} "
            f"Known: {', '.join(tags) or 'none'}."
        )
    known = get_pretrained_cfg(model)
    published = (known.hf_hub_id if known is not None else None) or f"timm/{model}"
    name = f"{architecture}.{known.tag}" if known is not None and known.tag else model
    return Hub(
        f"{published}{name}" if published.endswith("/") else published,
        licence=(known.license or "") if known is not None else "",
    )
