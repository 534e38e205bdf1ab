"""Ablation: a model with its feature sets, and under other conditions, trained alike.

    full       all feature sets of the recipe
    drop       without some: the model without that branch, never one that is fed with zeros
    keep       with some alone
    id-only    without any
    shuffle    vectors exchanged among items: the same numbers, told of other items
    noise      Gaussian vectors of the same mean and deviation by column
    missing    items that count as having none of it

The last three befall a share of the items, the same ones for every model and training seed. Each
condition is trained anew by the same engine with the same settings and seeds. A design crosses
conditions with forms of integration and with model sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.modality import MODALITIES
from mmbench.models.base import MODELS
from mmbench.recipe import Recipe, system_hash

Kind = Literal["full", "drop", "keep", "id-only", "shuffle", "noise", "missing"]
LADDERS = ("missing", "noise", "shuffle")
EACH = "each"
"""In place of a modality: each one of the recipe, in turn."""
SPOILT = {"shuffle": "shuffled", "noise": "noise", "missing": "missing"}
SIZE, FORM = "embedding_size", "integration"


@dataclass(frozen=True)
class Asked:
    """A condition as it is asked for, before it is known what a recipe uses.

    Attributes:
        kind: what is done.
        modalities: to what, joined by commas; or `each`; empty for "full" and "id-only".
        share: of the items, where features are spoilt.
        in_ladder: whether it is a rung of a ladder, which has a table and a picture of its own.
    """

    kind: Kind
    modalities: str = ""
    share: float = 1.0
    in_ladder: bool = False


@dataclass(frozen=True)
class Condition:
    """What is done to which modalities of a recipe."""

    kind: Kind = "full"
    modalities: tuple[str, ...] = ()
    share: float = 1.0
    in_ladder: bool = False

    @property
    def name(self) -> str:
        """What tables add to the model's label; nothing for the full model."""
        if self.kind == "full":
            return ""
        if self.kind == "id-only":
            return "IDs only"
        if self.kind == "drop":
            return " ".join(f"-{modality}" for modality in self.modalities)
        joined = "+".join(self.modalities)
        if self.kind == "keep":
            return f"{joined} only"
        percent = f" {self.share:.0%}" if self.in_ladder or self.share < 1 else ""
        return f"{joined} {SPOILT[self.kind]}{percent}"


FULL = Condition()


@dataclass(frozen=True)
class Variant:
    """One cell of a design: a recipe that is trained, and what it stands for.

    Attributes:
        recipe: what is trained.
        model: place of its recipe among those given.
        form: of integration; None where the recipe's own is left.
        size: of the vectors; None where the recipe's own is left.
        condition: what is done to its feature sets.
    """

    recipe: Recipe
    model: int
    form: str | None
    size: int | None
    condition: Condition

    @property
    def label(self) -> str:
        """What tables call it."""
        return str(self.recipe.shape.label)


@dataclass(frozen=True)
class Design:
    """All cells, the full model of each form and size first, and what is trained for them.

    Attributes:
        variants: the cells.
        recipes: what is trained; cells that are one and the same system share a recipe, the
            first one's.
        places: of each cell, the place of its recipe.
        notes: which cells share one, in sentences.
    """

    variants: tuple[Variant, ...]
    recipes: tuple[Recipe, ...]
    places: tuple[int, ...]
    notes: tuple[str, ...] = ()


def design(
    recipes: Sequence[Recipe],
    conditions: Sequence[Asked],
    *,
    forms: Sequence[str] = (),
    sizes: Sequence[int] = (),
    depth: int | None = None,
) -> Design:
    """Cross recipes, forms, sizes and conditions.

    Args:
        recipes: one or several; each keeps its own settings and seeds.
        conditions: beside the full model, which is always there.
        forms: of integration; the recipe's own unless given.
        sizes: of the vectors; the recipe's own unless given.
        depth: length of the stored lists; the recipe's own unless given.

    Raises:
        UnknownNameError: a name is no modality.
        ConfigError: a recipe has a grid, does not use a modality that is named, or its model has
            no such form, no size, or is undefined without features.
    """
    variants: list[Variant] = []
    trained: dict[tuple[str, tuple[int, ...]], tuple[int, Recipe]] = {}
    places: list[int] = []
    notes: dict[str, None] = {}
    for place, recipe in enumerate(recipes):
        if recipe.shape.grid:
            raise ConfigError(f"{recipe.source}: an ablation compares fixed settings; remove grid:")
        resolved = _resolve(recipe, conditions)
        base = recipe
        if depth is not None:
            base = _with(base, "evaluation", {"depth": depth})
        for form in forms or (None,):
            for size in sizes or (None,):
                shaped = _shaped(base, form, size)
                for condition in (FULL, *resolved):
                    cell = _under(shaped, condition)
                    number, first = trained.setdefault(_identity(cell), (len(trained), cell))
                    if (other := first.shape.label) != cell.shape.label:
                        notes[f"{cell.shape.label} and {other} are one system: trained once"] = None
                    variants.append(Variant(cell, place, form, size, condition))
                    places.append(number)
    distinct = tuple(recipe for _, recipe in trained.values())
    return Design(tuple(variants), distinct, tuple(places), tuple(notes))


def _identity(recipe: Recipe) -> tuple[str, tuple[int, ...]]:
    plan = recipe.expand()[0]
    start = recipe.shape.training.start_from
    known = {**plan.identity(), "dataset": plan.dataset, "start": start and start.run}
    return system_hash(known), tuple(recipe.shape.seeds)


def _resolve(recipe: Recipe, conditions: Sequence[Asked]) -> list[Condition]:
    """The conditions of one recipe, each once, in the order in which they were asked for."""
    label = _label(recipe)
    used = [m for m in MODALITIES if m in recipe.shape.features or m in recipe.shape.encoders]
    found: dict[Condition, None] = {}
    if conditions and not used:
        usable = sorted(MODELS.get(str(recipe.shape.model["name"])).obj.modalities)
        hint = (
            f"give it feature sets ({', '.join(usable)}), for example with "
            f"--set features.{usable[-1]}=NAME"
            if usable
            else "it uses IDs alone"
        )
        raise ConfigError(f"{recipe.source}: {label} has no modality to drop; {hint}")
    for asked in conditions:
        if asked.kind == "id-only":
            found[Condition("id-only")] = None
            continue
        for group in _groups(recipe, asked, used):
            found[Condition(asked.kind, group, asked.share, asked.in_ladder)] = None
    model = MODELS.get(str(recipe.shape.model["name"]))
    for condition in found:
        if model.obj.requires_modality and not _kept(used, condition):
            raise ConfigError(
                f"{recipe.source}: {label} is undefined without any feature set, so "
                f"{condition.name!r} cannot be trained; leave that condition out for it"
            )
    return list(found)


def _groups(recipe: Recipe, asked: Asked, used: Sequence[str]) -> list[tuple[str, ...]]:
    """The modalities that one request names, in their order; one group unless it says "each"."""
    label, verb = _label(recipe), {"drop": "dropped", "keep": "kept"}.get(asked.kind, "spoilt")
    if asked.modalities.strip() == EACH:
        if asked.kind not in ("drop", "keep"):  # what learns or is no vector has nothing to spoil
            return [(m,) for m in used if m in recipe.shape.features]
        return [(m,) for m in used]
    names = [part.strip() for part in asked.modalities.split(",")]
    for name in names:
        if name not in MODALITIES:
            raise UnknownNameError(
                "modality", name, MODALITIES, hint=f'Or "{EACH}": each one in turn.'
            )
        if name not in used:
            raise ConfigError(
                f"{recipe.source}: {label} does not use {name!r}, so it cannot be {verb}; "
                f"it uses {', '.join(used)}"
            )
        if asked.kind in SPOILT and name not in recipe.shape.features:
            raise ConfigError(
                f"{recipe.source}: the {name} encoder learns with {label}, so there are no stored "
                "vectors to spoil; name a feature set under features: in place of it"
            )
    return [tuple(sorted(set(names), key=MODALITIES.index))]


def _kept(used: Sequence[str], condition: Condition) -> list[str]:
    """The modalities that a condition leaves to the model."""
    if condition.kind == "id-only":
        return []
    if condition.kind == "keep":
        return [m for m in used if m in condition.modalities]
    if condition.kind == "drop":
        return [m for m in used if m not in condition.modalities]
    return list(used)


def _under(recipe: Recipe, condition: Condition) -> Recipe:
    """A recipe under a condition, with the label that tells it apart."""
    shape, label = recipe.shape, _label(recipe)
    if condition.kind == "full":
        return recipe.replace(label=label)
    label = f"{label} {condition.name}"
    if condition.kind in SPOILT:
        before: Mapping[str, Any] = recipe.raw.get("corruptions") or {}
        spoilt = {
            m: {"kind": condition.kind, "share": condition.share} for m in condition.modalities
        }
        return recipe.replace(corruptions={**before, **spoilt}, label=label)
    kept = _kept([*shape.features, *shape.encoders], condition)
    return recipe.replace(
        label=label,
        **{
            section: {m: given for m, given in (recipe.raw.get(section) or {}).items() if m in kept}
            for section in ("features", "encoders", "corruptions")
            if section == "features" or section in recipe.raw
        },
        **_without_encoder(recipe, kept),
    )


def _without_encoder(recipe: Recipe, kept: Sequence[str]) -> dict[str, Any]:
    """The training section without `encoder`, where nothing is left that it could train."""
    shape = recipe.shape
    if (how := shape.training.encoder) is None:
        return {}
    learning = kept
    if how.trains_encoder:
        learning = [m for m in kept if m in shape.encoders and shape.encoders[m].tune != "none"]
    if learning:
        return {}
    training = recipe.raw["training"].items()
    return {"training": {key: value for key, value in training if key != "encoder"}}


def _shaped(recipe: Recipe, form: str | None, size: int | None) -> Recipe:
    """A recipe with another form of integration and another size, said in its label."""
    model = MODELS.get(str(recipe.shape.model["name"]))
    changes: dict[str, Any] = {}
    words = [_label(recipe)]
    for key, value, what in ((FORM, form, "form of integration"), (SIZE, size, "size of vectors")):
        if value is None:
            continue
        if key not in model.info["config"].model_fields:
            having = [
                name
                for name in MODELS.names()
                if key in MODELS.get(name).info["config"].model_fields
            ]
            raise ConfigError(
                f"{recipe.source}: {model.name} has no choice of a {what} (model.{key}); models "
                f"that have: {', '.join(having)}"
            )
        changes[key] = value
        words.append(str(value) if key == FORM else f"d={value}")
    if not changes:
        return recipe
    return _with(recipe, "model", changes).replace(label=" ".join(words))


def _with(recipe: Recipe, section: str, changes: Mapping[str, Any]) -> Recipe:
    return recipe.replace(**{section: {**(recipe.raw.get(section) or {}), **changes}})


def _label(recipe: Recipe) -> str:
    return recipe.shape.label or str(recipe.shape.model["name"])
