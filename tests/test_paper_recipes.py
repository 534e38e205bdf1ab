"""The recipes of the tables of arXiv 2403.17372."""

from __future__ import annotations

import re

import pytest

from mmbench.data.finding import known_names
from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import NeuralEncoder
from mmbench.engine.inputs import check_modalities
from mmbench.engine.live_sources import _options
from mmbench.models.base import MODELS
from mmbench.recipe import load_recipe
from mmbench.recipe_files import SHIPPED, shipped_recipes

NAMES = [name for name in shipped_recipes() if name.startswith("mmsr-paper/")]
TABLES = {2: 11, 3: 12, 4: 12, 5: 15, 6: 5, 7: 4, 11: 7, 12: 5, 13: 6, 14: 6}
"""Cells, or trials of a search, that the recipes of a table expand to for one dataset."""


def runs_of(table: int):
    names = [name for name in NAMES if name.startswith(f"mmsr-paper/table-{table:02d}-")]
    return [run for name in names for run in load_recipe(name).expand()]


def test_every_table_of_trained_models_is_covered():
    assert NAMES
    assert {int(re.search(r"table-(\d+)-", name)[1]) for name in NAMES} == set(TABLES)
    assert {table: len(runs_of(table)) for table in TABLES} == TABLES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_has_the_papers_training(name):
    for run in load_recipe(name).expand():
        check_modalities(run)
        assert MODELS.get(run.model).obj.family == "sequential"
        assert run.protocol.name == "mmsr"
        assert run.settings.embedding_size == 768
        assert (run.settings.max_length, run.settings.loss) == (20, "bce")
        training = run.training
        assert (training.optimizer, training.weight_decay) == ("adamw", 0.1)
        assert (training.epochs, training.evaluate_every, training.patience) == (150, 5, None)
        schedule = training.schedule
        assert (schedule.name, schedule.gamma, schedule.period) == ("step", 0.1, 120)
        assert training.select_by == "hr@10"
        assert training.encoder_weight_decay == 0
        # The name of a sampled dataset is that of the source and the size.
        assert run.dataset.rpartition("-")[0] in known_names()


@pytest.mark.parametrize("name", NAMES)
def test_its_encoders_take_their_options_and_can_learn(name):
    for run in load_recipe(name).expand():
        for modality, how in run.encoders.items():
            kind = ENCODERS.get(how.name).obj
            assert issubclass(kind, NeuralEncoder)
            assert kind.learns
            encoder = kind(_options(kind, modality, how, ""))  # reads no file
            assert modality in encoder.modalities
            assert encoder.is_joint == (modality == "joint")
        for encoder_name in run.features.values():
            assert encoder_name in ENCODERS.names()


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_to_expect_and_how_it_is_run(name):
    head = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    number = int(re.search(r"table-(\d+)-", name)[1])
    assert re.match(rf"# Table {number}[,:] ", head[0])
    for word in ("Settings:", "Expect:", "Data:"):
        assert any(line.startswith(f"# {word}") for line in head), word
    assert f"# Run:      mmbench train {name}" in head
    assert max(map(len, head)) <= 100
