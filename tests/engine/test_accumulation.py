"""Batches in parts: the gradient of the whole, also where memory or precision is short."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.engine.device import choose
from mmbench.engine.folder import CHECKPOINT, run_path
from mmbench.engine.inputs import load_inputs
from mmbench.engine.sampling import SequenceSampler
from mmbench.engine.step import SMALLEST_SCALE, Step, is_out_of_memory
from mmbench.engine.train import train_run
from mmbench.errors import TrainingError
from mmbench.models.base import Batch, Interactions, Recommender
from mmbench.models.bpr_mf import BPRMF
from mmbench.models.sequential.sasrec import SASRec, SASRecConfig
from mmbench.recipe import Recipe, RunRecipe
from mmbench.recipe_keys import Training
from mmbench.runs import Run

CPU = choose("cpu")
CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


class Model(Recommender):
    """Rows whose memory runs out above `fits`; every step draws, as dropout does."""

    def __init__(self, fits: int = 10**9, problem: BaseException | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.users = nn.Parameter(torch.randn(6, 4))
        self.items = nn.Parameter(torch.randn(6, 4))
        self.fits, self.problem = fits, problem or torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes: list[int] = []
        self.drops = False

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        users, items = self.users[batch.users], self.items[batch.positives]
        if self.drops:
            users = F.dropout(users, 0.5)
        self.sizes.append(len(batch))
        if len(batch) > self.fits:
            raise self.problem
        gap = (users * (items - self.items[batch.negatives])).sum(dim=1)
        penalty = 0.1 * self.items.square().sum()
        return {"bpr": F.softplus(-gap).mean(), "penalty": penalty}


def rows(n_rows: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(*(torch.randint(6, (n_rows,), generator=generator) for _ in range(3)))


def sequences() -> tuple[SASRec, Any]:
    """A model and a batch of 7 sequences of unequal lengths."""
    users = torch.tensor([u for u in range(7) for _ in range(2 + u)])
    items = torch.cat([(torch.arange(2 + u) * (u + 2)) % 11 for u in range(7)])
    train = Interactions(7, 11, users, items, items)
    torch.manual_seed(1)
    model = SASRec(SASRecConfig(max_length=5, embedding_size=8, dropout=0.0), train, [])
    drawn = SequenceSampler(train, 5).epoch(torch.Generator().manual_seed(2))
    return model, drawn.batch(slice(0, 7))


def gradients(model: Recommender, batch: Any, **settings: Any) -> tuple[list[Tensor], Tensor]:
    """What a step of plain descent with rate 1 takes away, and the loss terms."""
    model = copy.deepcopy(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    settings = {"optimizer": "sgd", "learning_rate": 1.0, **settings}
    losses = Step(model, Training(**settings), CPU)(batch)
    pairs = zip(before, model.parameters(), strict=True)
    return [old - new.detach() for old, new in pairs], losses


@pytest.mark.parametrize("parts", [2, 3, 7, 50])
def test_parts_add_up_to_the_gradient_of_the_mean_over_rows(parts: int) -> None:
    model, batch = Model().double(), rows(10)
    found, losses = gradients(model, batch, accumulate=parts)
    terms = model.training_step(batch)
    sum(terms.values()).backward()
    torch.testing.assert_close(losses, torch.stack(list(terms.values())).float())
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_of_sequences_count_by_their_real_slots(parts: int) -> None:
    model, batch = sequences()
    model = model.double()
    found, losses = gradients(model, batch, accumulate=parts)
    # Some part has more real slots in a row than another: equal weights would be wrong.
    terms = model.training_step(batch)
    terms["bce"].backward()
    torch.testing.assert_close(losses[0], terms["bce"].float())
    equal = torch.stack(
        [
            model.training_step(batch.batch(slice(s, s + -(-7 // parts))))["bce"]
            for s in range(0, 7, -(-7 // parts))
        ]
    ).mean()
    assert abs(float((equal - terms["bce"]).detach())) > 1e-4
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


def test_in_batch_negatives_are_those_of_the_part() -> None:
    model, batch = sequences()
    model.config = SASRecConfig(max_length=5, embedding_size=8, dropout=0.0, loss="in-batch")
    _, whole = gradients(model, batch)
    _, parts = gradients(model, batch, accumulate=7)
    assert float(parts[0]) < float(whole[0]) - 0.1  # fewer candidates, an easier choice


def test_the_whole_batch_is_stepped_on_as_it_is() -> None:
    model, batch = Model(), rows(10)
    found, _ = gradients(model, batch)
    losses = torch.stack(list(model.training_step(batch).values()))
    losses.sum().backward()
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        assert torch.equal(gradient, parameter.detach() - (parameter.detach() - parameter.grad))


def test_clipping_bounds_the_gradient_of_all_parts_together() -> None:
    found, _ = gradients(Model(), rows(10), accumulate=3, clip_norm=0.01)
    assert sum(float(g.square().sum()) for g in found) ** 0.5 == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError(CPU_ALLOCATOR),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
    ids=["cuda", "python", "cpu", "cublas"],
)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(problem: BaseException) -> None:
    short, enough = Model(fits=3, problem=problem), Model()
    short.drops = enough.drops = True
    step = Step(short, Training(), CPU)
    torch.manual_seed(9)
    losses = [step(rows(10, seed)) for seed in range(3)]
    after = torch.get_rng_state()
    # 10 rows, then the first half, then the first quarter: three rows.
    assert short.sizes == [10, 5, *[3, 3, 3, 1] * 3]
    assert step.parts == 4
    assert step.note == (
        "a batch of 10 rows does not fit in memory; from here on each is cut into 4 parts, "
        "whose gradients are added up (training.accumulate)"
    )
    # As if four parts had been asked for: nothing was learned or drawn by what did not fit.
    torch.manual_seed(9)
    asked = Step(enough, Training(accumulate=4), CPU)
    for seed, found in enumerate(losses):
        assert torch.equal(asked(rows(10, seed)), found)
    assert torch.equal(torch.get_rng_state(), after)
    for one, other in zip(short.parameters(), enough.parameters(), strict=True):
        assert torch.equal(one, other)


def test_memory_that_runs_out_between_two_parts_leaves_nothing_behind() -> None:
    model = Model()
    calls = iter([None, MemoryError(), *[None] * 9])
    plain = model.training_step

    def second_fails(batch: Batch) -> dict[str, Tensor]:
        if problem := next(calls):
            raise problem
        return plain(batch)

    model.training_step = second_fails  # type: ignore[method-assign]
    Step(model, Training(accumulate=2), CPU)(rows(10))
    asked = Model()
    Step(asked, Training(accumulate=4), CPU)(rows(10))
    assert torch.equal(model.users, asked.users)


def test_a_row_that_does_not_fit_is_told() -> None:
    model = Model(fits=0)
    before = model.users.detach().clone()
    with pytest.raises(TrainingError, match="not even one row of a batch fits in memory"):
        Step(model, Training(), CPU)(rows(10))
    assert torch.equal(model.users, before)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shapes"):
        Step(Model(fits=3, problem=RuntimeError("shapes")), Training(), CPU)(rows(10))


def test_an_optimizer_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(Model(), Training(), CPU)

    def fails() -> None:
        raise RuntimeError(CPU_ALLOCATOR)

    monkeypatch.setattr(step.optimizer, "step", fails)
    with pytest.raises(TrainingError, match="state of the optimizer does not fit"):
        step(rows(10))


# --- half precision


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_half_precision_has_nearly_the_gradient_of_single(
    precision: str, parts: int, clip: float | None
) -> None:
    model, batch = sequences()
    exact, _ = gradients(model, batch, clip_norm=clip)
    found, _ = gradients(model, batch, clip_norm=clip, accumulate=parts, precision=precision)
    size = sum(float(g.square().sum()) for g in exact) ** 0.5
    gap = sum(float((a - b).square().sum()) for a, b in zip(exact, found, strict=True)) ** 0.5
    assert 0 < gap < 0.05 * size  # a unit at the kink of its ReLU falls to the other side


def test_float16_keeps_gradients_that_it_cannot_hold_itself() -> None:
    class Faint(Recommender):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 1))

        def training_step(self, batch: Batch) -> dict[str, Tensor]:
            return {"loss": 2.0**-26 * (torch.ones(1, 1) @ self.weight).float().mean()}

    (gradient,), _ = gradients(Faint(), rows(1), precision="float16", learning_rate=2.0**20)
    assert float(gradient) == 2.0**-6  # float16's smallest number is 2^-24


def test_float16_passes_over_a_step_whose_gradient_is_infinite() -> None:
    class Loud(Model):
        factor = 1e38

        def training_step(self, batch: Batch) -> dict[str, Tensor]:
            return {k: v * self.factor for k, v in super().training_step(batch).items()}

    model = Loud()
    step = Step(model, Training(precision="float16"), CPU)
    before, scale = model.users.detach().clone(), step.scaler.get_scale()
    step(rows(10))
    assert torch.equal(model.users, before)
    assert step.scaler.get_scale() == scale / 2
    model.factor = 1.0
    step(rows(10))
    assert not torch.equal(model.users, before)
    step.check_scale()
    step.scaler.update(SMALLEST_SCALE / 2)
    with pytest.raises(TrainingError, match="no gradient is finite in float16"):
        step.check_scale()


# --- whole runs


def plan(**training: Any) -> RunRecipe:
    raw = {
        "dataset": "tiny",
        "model": {"name": "bpr-mf", "embedding_size": 8, "regularization": 0.0},
        "training": {"epochs": 6, "batch_size": 64, "learning_rate": 0.05, **training},
    }
    return Recipe(raw, "test").expand()[0]


def run(recipe: RunRecipe, data: Path, runs: Path, **options: Any) -> Run:
    return train_run(recipe, data_dir=data, runs_dir=runs, compute=CPU, **options)


def history(done: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (done.path / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have BPR-MF run out of memory above so many rows."""
    plain = BPRMF.training_step

    def limit(n_rows: int) -> None:
        def step(model: BPRMF, batch: Batch) -> dict[str, Tensor]:
            if len(batch) > n_rows:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return plain(model, batch)

        monkeypatch.setattr(BPRMF, "training_step", step)

    return limit


def test_a_run_short_of_memory_says_so_once_and_learns_the_same(
    tiny_data: Path, tmp_path: Path, short_memory: Callable[[int], None]
) -> None:
    whole = run(plan(), tiny_data, tmp_path / "whole")
    short_memory(20)
    done = run(plan(), tiny_data, tmp_path / "short")
    told = [record["memory"] for record in history(done) if "memory" in record]
    assert len(told) == 1
    assert "a batch of 64 rows does not fit in memory" in told[0]
    assert "memory" in history(done)[0]
    assert done.manifest["training"]["accumulate"] == 4
    assert whole.manifest["training"]["accumulate"] == 1
    for one, other in zip(history(whole), history(done), strict=True):
        assert one["losses"]["bpr"] == pytest.approx(other["losses"]["bpr"], rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_parts_and_scale_outlive_an_interruption(
    tiny_data: Path, tmp_path: Path, short_memory: Callable[[int], None], precision: str
) -> None:
    short_memory(20)
    recipe = plan(precision=precision)
    whole = run(recipe, tiny_data, tmp_path / "whole")

    def interrupt(recipe: RunRecipe, record: dict[str, Any], progress: Any) -> None:
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tiny_data, tmp_path / "cut", on_epoch=interrupt, checkpoint_every_s=0.0)
    folder, _ = run_path(recipe, load_inputs(recipe, tiny_data), tmp_path / "cut")
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    assert state["step"]["parts"] == 4
    assert ("scale" in state["step"]["scaler"]) == (precision == "float16")
    resumed = run(recipe, tiny_data, tmp_path / "cut")
    assert resumed.manifest["metrics"] == whole.manifest["metrics"]
    assert resumed.manifest["training"]["accumulate"] == 4
    for one, other in zip(history(whole), history(resumed), strict=True):
        assert one["losses"] == other["losses"]
    assert sum("memory" in record for record in history(resumed)) == 1


def test_a_row_that_does_not_fit_names_the_run(
    tiny_data: Path, tmp_path: Path, short_memory: Callable[[int], None]
) -> None:
    short_memory(0)
    with pytest.raises(TrainingError, match="bpr-mf, seed 0, epoch 1: not even one row"):
        run(plan(), tiny_data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_users_with_fewer_than_three_interactions_train_or_are_left_out(tmp_path: Path) -> None:
    lengths = [1, 2, 3, 4, 6, 6, 6, 6]
    rows = [f"u{u},i{(3 * u + t) % 9},{10**9 + t}" for u, n in enumerate(lengths) for t in range(n)]
    (tmp_path / "raw").mkdir()
    text = "\n".join(["user_id,item_id,timestamp", *rows])
    (tmp_path / "raw" / "interactions.csv").write_text(text + "\n")
    config = PrepareConfig(user_min=1, item_min=1)
    data = tmp_path / "data"
    prepare("few", source=tmp_path / "raw", data_dir=data, splits=["leave-one-out"], config=config)
    raw = {
        "dataset": "few",
        "protocol": "mmsr",
        "model": {"name": "sasrec", "max_length": 4, "embedding_size": 8},
        "training": {"epochs": 2},
    }
    done = run(Recipe(raw, "few").expand()[0], data, tmp_path / "runs")
    inputs = load_inputs(Recipe(raw, "few").expand()[0], data)
    # Three or more give one item each to validation and test; a user of two keeps both to learn
    # from, and so do those of four and more.
    assert inputs.dataset.n_users == 8
    assert done.manifest["users"] == {"valid": 6, "test": 6}
    sampled = SequenceSampler(inputs.train, 4).users.tolist()
    assert sampled == [u for u in range(8) if int(inputs.train.user_degrees[u]) >= 2]
    assert len(sampled) == 6
