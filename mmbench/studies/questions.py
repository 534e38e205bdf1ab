"""What an ablation asks: which of its systems stand in one table, each against what.

Every question is one comparison with one family of tests. Systems of another dataset, split or
protocol cannot be compared, so each of these has tables of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmbench.report.breakdown import CUTOFFS, By
from mmbench.report.comparison import Comparison, compare
from mmbench.report.pairing import References
from mmbench.runs import Run
from mmbench.studies.ablation import FORM, SIZE, Condition, Design, Variant
from mmbench.studies.training import Trained

Name = Literal["conditions", "ladder", "integration", "size", "between", "between-ladder"]
TITLES: dict[Name, str] = {
    "conditions": "What each condition costs",
    "ladder": "Corruption ladder",
    "integration": "Forms of integration",
    "size": "Model size against quality",
    "between": "Models under equal conditions",
    "between-ladder": "Models on the same corruption ladder",
}


@dataclass(frozen=True)
class Answered:
    """A variant with its finished runs."""

    variant: Variant
    runs: tuple[Run, ...]

    @property
    def system(self) -> str:
        """The hash of the system; equal for all its seeds."""
        return self.runs[0].system


@dataclass(frozen=True)
class Question:
    """Systems that stand in one table, with the reference of each.

    Attributes:
        name: which kind of question it is.
        members: the systems, references included.
        references: who is tested against whom.
        metrics: what is measured.
    """

    name: Name
    members: tuple[Answered, ...]
    references: References
    metrics: tuple[str, ...]

    @property
    def title(self) -> str:
        """One line."""
        return TITLES[self.name]

    def compare(
        self,
        metrics: Sequence[str] = (),
        *,
        by: By | None = None,
        cutoffs: Sequence[int] = CUTOFFS,
    ) -> Comparison:
        """Test all of it within one family.

        Raises:
            ConfigError: the runs are not comparable.
            DataError: a run folder is damaged.
        """
        runs = {run.path: run for member in self.members for run in member.runs}
        return compare(
            list(runs.values()),
            metrics=metrics or self.metrics,
            references=self.references,
            family="table",
            by=by,
            cutoffs=cutoffs,
        )


def questions(plan: Design, trained: Sequence[Trained], *, between: bool = False) -> list[Question]:
    """The questions that a design answers, dataset by dataset.

    Args:
        plan: the design.
        trained: the runs of its recipes, in their order; of a search the chosen trial counts.
        between: also compare each model with the first one under the same condition.
    """
    answered = [
        Answered(variant, tuple(trained[place].chosen.runs))
        for variant, place in zip(plan.variants, plan.places, strict=True)
    ]
    groups: dict[str, list[Answered]] = {}
    for each in answered:
        facts = each.runs[0].manifest
        key = repr((facts["dataset"], facts["split"], facts["protocol"]))
        groups.setdefault(key, []).append(each)
    return [question for group in groups.values() for question in _of_one_dataset(group, between)]


def _of_one_dataset(every: Sequence[Answered], between: bool) -> list[Question]:
    full = [each for each in every if each.variant.condition.kind == "full"]
    by_shape = {_shape(each.variant): each for each in full}
    one = f"the full {full[0].variant.label}" if len(full) == 1 else "the same model in full"
    found: list[Question] = []

    def ask(name: Name, members: Sequence[Answered], of: dict[str, str], named: str) -> None:
        of = {system: reference for system, reference in of.items() if system != reference}
        if of:
            metrics = dict.fromkeys(
                m for each in members for m in each.variant.recipe.shape.evaluation.metrics
            )
            found.append(Question(name, tuple(members), References(of, named), tuple(metrics)))

    for name, in_ladder in (("conditions", False), ("ladder", True)):
        members = [
            each for each in every if each in full or each.variant.condition.in_ladder == in_ladder
        ]
        of = {each.system: by_shape[_shape(each.variant)].system for each in members}
        ask(name, members, of, one)  # type: ignore[arg-type]
        if between and any(each.variant.condition.in_ladder == in_ladder for each in members):
            first = full[0].variant
            anchors = {
                _cell(each.variant): each.system
                for each in members
                if each.variant.model == first.model
            }
            of = {
                each.system: anchors[_cell(each.variant)]
                for each in members
                if _cell(each.variant) in anchors
            }
            name = "between-ladder" if in_ladder else "between"
            if not in_ladder or len(members) > len(full):
                ask(name, members, of, f"{first.label} under the same condition")  # type: ignore[arg-type]

    def first_of(key: Callable[[Variant], Any]) -> dict[str, str]:
        first: dict[Any, str] = {}
        return {each.system: first.setdefault(key(each.variant), each.system) for each in full}

    forms = list(dict.fromkeys(each.variant.form for each in full))
    if len(forms) > 1:
        named = f"the same model with {FORM}={forms[0]}"
        ask("integration", full, first_of(lambda v: (v.model, v.size)), named)
    sizes = list(dict.fromkeys(each.variant.size for each in full))
    if len(sizes) > 1:
        named = f"the same model with {SIZE}={sizes[0]}"
        ask("size", full, first_of(lambda v: (v.model, v.form)), named)
    return found


def _cell(variant: Variant) -> tuple[str | None, int | None, Condition]:
    return variant.form, variant.size, variant.condition


def _shape(variant: Variant) -> tuple[int, str | None, int | None]:
    return variant.model, variant.form, variant.size
