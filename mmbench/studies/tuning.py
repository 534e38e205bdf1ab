"""Tuning: settings searched on validation alone, with an equal budget for every system.

Every system of a study gets the same number of trials, from the same sampler with the same seed,
over the same space, without the keys that it does not have. A trial is an ordinary run with the
first of the recipe's seeds; the setting with the best validation value is then trained with all
of them. Trials of one round are proposed before any of them is told, so their sequence does not
depend on who trains them, how many at a time, or how often the search was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmbench.engine.folder import run_path
from mmbench.engine.inputs import Inputs, load_inputs
from mmbench.engine.start import find_start
from mmbench.errors import ConfigError, MMBenchError, TrainingError
from mmbench.recipe import Recipe, RunRecipe
from mmbench.runs import Run, open_run, read_manifest
from mmbench.search_space import Space, n_points
from mmbench.studies.crew import Alone, Crew, Processes, Site, Task, check_alone, check_runs_dir
from mmbench.studies.ledger import Ledger
from mmbench.studies.samplers import MOST_POINTS, Point, make_sampler, sampler_version
from mmbench.studies.training import Trained, Trial, Workplace, data_key, validation_value


@dataclass(frozen=True)
class Tuning:
    """How settings are searched.

    Attributes:
        method: "random", "grid", "optuna" or "optuna:NAME".
        trials: of every system; None for all points of a grid.
        processes: that train at the same time; they move no number.
        threads: of each run; they may move the last digits, so they do not depend on `processes`.
        ray: address of a Ray cluster that trains in place of processes; "auto" for the one that
            runs here, "local" to start one.
    """

    method: str = "random"
    trials: int | None = None
    processes: int = 1
    threads: int = 1
    ray: str | None = None


@dataclass(frozen=True)
class Tried:
    """One trial of a search: its settings and its value on validation.

    Attributes:
        number: from 1, in the order in which trials were proposed.
        point: the settings, by key.
        run: the run of the tuning seed; None where it failed.
        value: the selection metric on validation; None where it failed.
        error: why it failed.
    """

    number: int
    point: Point
    run: Run | None = None
    value: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Tuned:
    """A searched recipe: all its trials, and the runs of the chosen setting.

    Attributes:
        recipe: with its search space.
        method: how it was searched.
        seed: of the sampler and of every trial.
        space: what was searched over; without what the recipe does not have.
        tried: all trials, in the order in which they were proposed.
        trained: the chosen setting, trained with all seeds.
        ledger: the file of the search.
    """

    recipe: Recipe
    method: str
    seed: int
    space: Space
    tried: tuple[Tried, ...]
    trained: Trained
    ledger: Path

    @property
    def label(self) -> str:
        """What tables call the system."""
        return _label(self.recipe)

    @property
    def chosen(self) -> Tried:
        """The trial with the best validation value; the first of equal ones."""
        return choose(self.tried)


@dataclass(frozen=True)
class TuningEvents:
    """What a search tells while it works; a front end shows it."""

    planned: Callable[[int], None] = lambda n_runs: None
    retried: Callable[[str, str], None] = lambda what, error: None
    done: Callable[[str, float | None, str, bool], None] = lambda what, value, how, finished: None
    """What was trained, its value on validation, its folder or its error, and whether it was
    finished before."""


def choose(tried: Sequence[Tried]) -> Tried:
    """The trial with the best validation value, the first of equal ones; test plays no part."""
    return max(
        (trial for trial in tried if trial.value is not None), key=lambda trial: trial.value or 0.0
    )


def tune_recipes(
    recipes: Sequence[Recipe],
    tuning: Tuning,
    place: Workplace,
    events: TuningEvents | None = None,
    crew: Crew | None = None,
) -> list[Tuned]:
    """Search the settings of every recipe, and train the chosen ones with all seeds.

    Finished runs are taken as they are, so a search that was interrupted goes on where it stopped.

    Args:
        recipes: the systems, each with a search space.
        tuning: how, and how many trials for each.
        place: where data and runs lie.
        crew: who trains; by default as `tuning` says.

    Raises:
        ConfigError: there is nothing to search, or it cannot be searched like that.
        DataError: data are missing, or a folder cannot be written.
        TrainingError: every trial of a recipe failed, or the chosen setting with another seed.
    """
    check_alone(place.compute.ranks.size)
    for recipe in recipes:
        _check(recipe, tuning)
    books = _Books(place)
    for recipe in recipes:
        books.check_data(recipe)
    check_runs_dir(place.runs_dir)
    with ExitStack() as held:
        searches = []
        for recipe in recipes:
            searches.append(search := _Search(recipe, tuning, books))
            held.enter_context(closing(search.ledger))
        if crew is None:
            crew = held.enter_context(closing(_crew(tuning, place)))
        work = _Work(books, crew, events or TuningEvents())
        while jobs := [job for search in searches for job in search.next_round()]:
            work.do(jobs)
            for search in searches:
                search.end_round()
        for search in searches:
            search.check_any_complete()
        finals = [search.finals() for search in searches]
        work.do([job for jobs in finals for job in jobs])
        return [search.tuned(jobs) for search, jobs in zip(searches, finals, strict=True)]


@dataclass
class _Job:
    """A run that is wanted, and what became of it."""

    what: str
    recipe: Recipe
    point: Point
    seed: int
    record: Callable[[_Job], None] = lambda job: None
    run: Run | None = None
    error: str | None = None
    is_done: bool = False

    def end(self, run: Run | None, error: str | None) -> None:
        """Note how it ended, once."""
        self.run, self.error, self.is_done = run, error, True
        self.record(self)

    @property
    def value(self) -> float | None:
        """The selection metric on validation."""
        metric = self.recipe.shape.training.select_by
        return None if self.run is None else validation_value([self.run], metric)


class _Books:
    """Which folder a run has; data are opened once."""

    def __init__(self, place: Workplace) -> None:
        self.place = place
        self._inputs: dict[str, Inputs] = {}

    def inputs(self, plan: RunRecipe) -> Inputs:
        """What a run reads."""
        if (key := data_key(plan)) not in self._inputs:
            self._inputs[key] = load_inputs(plan, self.place.data_dir)
        return self._inputs[key]

    def check_data(self, recipe: Recipe) -> None:
        """Open what any trial may read, before the first of them."""
        seed = recipe.shape.seeds[0]
        self.inputs(recipe.at({}, seed))
        for key, dimension in recipe.space.items():
            if key.partition(".")[0] != "training":
                for value in dimension.edges():
                    self.inputs(recipe.at({key: value}, seed))

    def path(self, plan: RunRecipe) -> Path:
        """The folder of a run."""
        return run_path(plan, self.inputs(plan), self.place.runs_dir)[0]


class _Search:
    """The search of one recipe."""

    def __init__(self, recipe: Recipe, tuning: Tuning, books: _Books) -> None:
        self.recipe, self.method = recipe, tuning.method
        self.space, self.seed = recipe.space, recipe.shape.seeds[0]
        self.budget = tuning.trials or MOST_POINTS
        self.tried: list[Tried] = []
        self._sampler = make_sampler(tuning.method, self.space, self.seed)
        self._jobs: list[_Job] = []
        self._n_asked, self._is_exhausted = 0, False
        base = recipe.at({}, self.seed)
        self._made_by = sampler_version(tuning.method)
        identity = {
            "method": tuning.method,
            "seed": self.seed,
            "select_by": recipe.shape.training.select_by,
            "round": self._sampler.round_size,
            "space": {key: d.model_dump(mode="json") for key, d in self.space.items()},
            "recipe": base.identity(),
            "data": books.inputs(base).facts(),
        }
        if (start := find_start(base)) is not None:
            identity["start"] = {**start.identity(self.seed), "weights": start.weights_sha256}
        name = f"{base.dataset}-{_label(recipe)}-{tuning.method}"
        self.ledger = Ledger(
            books.place.runs_dir, name, identity, {"source": recipe.source, "by": self._made_by}
        )

    def next_round(self) -> list[_Job]:
        """The next trials; none at the end of the budget or of the space."""
        wanted = self.budget - len(self.tried)
        if wanted <= 0 or self._is_exhausted:
            return []
        # A whole round is asked for even where the budget ends within it: with a larger budget
        # the same search goes on as if it had been larger from the start.
        size = self._sampler.round_size or wanted
        points = self._sampler.propose(size)
        self._n_asked, self._is_exhausted = size, len(points) < size
        first = len(self.tried) + 1
        self._jobs = []
        for number, point in enumerate(points[:wanted], start=first):
            self.ledger.check(number, point, self._made_by)
            job = _Job(f"{_label(self.recipe)} trial {number}", self.recipe, point, self.seed)
            known = self.ledger.entries.get(number)
            if known is not None and known["status"] == "failed":
                job.end(None, str(known["error"]))
            else:
                job.record = self._recorder(number)
            self._jobs.append(job)
        return self._jobs

    def _recorder(self, number: int) -> Callable[[_Job], None]:
        def record(job: _Job) -> None:
            entry: dict[str, Any] = {"point": job.point}
            if job.run is None:
                entry |= {"status": "failed", "error": job.error}
            else:
                entry |= {"status": "complete", "run": job.run.path.name, "value": job.value}
            self.ledger.add(number, entry)

        return record

    def end_round(self) -> None:
        """Tell the sampler what the trials of the round were worth."""
        values = [job.value for job in self._jobs]
        if self._jobs and len(values) == self._n_asked:
            self._sampler.tell(values)
        for job, value in zip(self._jobs, values, strict=True):
            number = len(self.tried) + 1
            self.tried.append(Tried(number, job.point, job.run, value, job.error))
        self._jobs = []

    def check_any_complete(self) -> None:
        """Refuse to choose among trials that all failed.

        Raises:
            TrainingError: none is complete.
        """
        if all(trial.value is None for trial in self.tried):
            raise TrainingError(
                f"{_label(self.recipe)}: all {len(self.tried)} trials failed, the first with: "
                f"{self.tried[0].error} (to try them again, remove {self.ledger.path})"
            )

    def finals(self) -> list[_Job]:
        """The chosen setting with all seeds."""
        point = choose(self.tried).point
        return [
            _Job(f"{_label(self.recipe)} chosen, seed {seed}", self.recipe, point, seed)
            for seed in self.recipe.shape.seeds
        ]

    def tuned(self, finals: Sequence[_Job]) -> Tuned:
        """The finished search.

        Raises:
            TrainingError: the chosen setting failed with another seed.
        """
        for job in finals:
            if job.error is not None:
                raise TrainingError(f"{job.what}: {job.error}")
        runs = [job.run for job in finals if job.run is not None]
        metric = self.recipe.shape.training.select_by
        trial = Trial(runs[0].label, runs, metric, validation_value(runs, metric))
        return Tuned(
            self.recipe,
            self.method,
            self.seed,
            self.space,
            tuple(self.tried),
            Trained(self.recipe, [trial]),
            self.ledger.path,
        )


@dataclass(frozen=True)
class _Work:
    """Has runs trained, each once, whoever wants them."""

    books: _Books
    crew: Crew
    events: TuningEvents
    _told: set[Path] = field(default_factory=set)

    def do(self, jobs: Sequence[_Job]) -> None:
        """Train what is not finished; every job ends with a run or an error."""
        by_path: dict[Path, list[_Job]] = {}
        for job in jobs:
            if job.is_done:
                continue
            try:
                path = self.books.path(job.recipe.at(job.point, job.seed))
            except MMBenchError as problem:  # settings that are sound alone, but not together
                job.end(None, str(problem))
                self.events.done(job.what, None, str(problem), False)
                continue
            by_path.setdefault(path, []).append(job)
        missing = [path for path in by_path if not _is_complete(path)]
        self.events.planned(len(by_path))
        for path in by_path:
            if path not in missing:
                self._end(by_path[path], path, None, was_finished=True)
        tasks = [
            Task(job.recipe.raw, job.recipe.source, job.point, job.seed)
            for job in (by_path[path][0] for path in missing)
        ]
        if not tasks:
            return
        for outcome in self.crew.work(tasks):
            path = missing[outcome.number]
            if outcome.final:
                self._end(by_path[path], path, outcome.error, was_finished=False)
            elif outcome.error is not None:
                self.events.retried(by_path[path][0].what, outcome.error)

    def _end(
        self, jobs: Sequence[_Job], path: Path, error: str | None, *, was_finished: bool
    ) -> None:
        run = open_run(path) if error is None else None
        for job in jobs:
            job.end(run, error)
        how = error if run is None else str(path)
        self.events.done(jobs[0].what, jobs[0].value, str(how), was_finished)


def _is_complete(path: Path) -> bool:
    begun = (path / "manifest.json").exists()
    return begun and read_manifest(path).get("status") == "complete"


def _check(recipe: Recipe, tuning: Tuning) -> None:
    """Refuse what cannot be searched, before anything is read."""
    if tuning.trials is not None and tuning.trials < 1:
        raise ConfigError(f"--trials {tuning.trials}: at least one trial is needed")
    if not (recipe.shape.search or recipe.shape.grid):
        raise ConfigError(
            f"{recipe.source}: there is nothing to tune; add to the recipe, for example, search: "
            "{training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}"
        )
    if tuning.trials is None and tuning.method != "grid":
        raise ConfigError(f"--tune {tuning.method} needs --trials N, the trials of each system")
    points = n_points(recipe.space)
    if tuning.method == "grid" and tuning.trials is not None and (points or 0) > tuning.trials:
        raise ConfigError(
            f"{recipe.source}: the grid has {points} points, more than --trials {tuning.trials}; "
            "leave --trials out, or tune at random"
        )


def _crew(tuning: Tuning, place: Workplace) -> Crew:
    site = Site(
        str(place.data_dir.resolve()),
        str(place.runs_dir.resolve()),
        str(place.compute.device),
        place.compute.deterministic,
        place.checkpoint_every_s,
        tuning.threads,
    )
    if tuning.ray is not None:
        from mmbench.studies.ray_crew import OnRay

        return OnRay(site, tuning.ray)
    return Alone(site) if tuning.processes == 1 else Processes(site, tuning.processes)


def _label(recipe: Recipe) -> str:
    return recipe.shape.label or str(recipe.shape.model["name"])
