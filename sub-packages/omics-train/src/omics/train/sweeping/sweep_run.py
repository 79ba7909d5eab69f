"""A sweep: trials one after the other, each a run folder; kept in a file of optuna, so that it goes on.

- `study.sqlite3` holds every value of every trial. A sweep that is killed and started again goes on
  with the trial it was in, from that trial's newest checkpoint.
- The sampler of each trial (TPE) is seeded by the seed and the number of the trial, so a sweep that
  was stopped proposes what it would have proposed without the break.
- A trial that was never better than the median of earlier trials at the same validation is ended
  early, as early stopping ends a run.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from omics.data.atomic_files import remove_path, write_bytes, writer_lock
from omics.data.cell_source import open_cells
from omics.data.command_line import Verbosity, progress, say
from omics.data.errors import (
    ConfigError,
    MissingExtraError,
    OmicsError,
    ResourceError,
    StoppedError,
    UsageError,
    nearest,
)
from omics.train.cell_selection import data_path
from omics.train.checkpointing.checkpoint_folder import FOLDER
from omics.train.history import HISTORY
from omics.train.hydra_entry import typed_configuration
from omics.train.metric_table import lower_is_better, reported
from omics.train.run_files import BUNDLE, BUNDLE_BEST, plain
from omics.train.train_run import prepare_training, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import optuna

    from omics.train.history import History
    from omics.train.run_config import RunConfig
    from omics.train.sweeping.search_space import Parameter

STUDY, FACTS, TABLE, BEST = "study.sqlite3", "sweep.json", "trials.csv", "best.yaml"
_PHASE = "validation"
# Of the sweep, not of its parts.
_OURS = ("working_dir", "resume", "overwrite", "task", "hand_on", "trainer.checkpoint.best")
_PLACE, _PRUNED, _SECONDS, _ERROR = "folder", "pruned", "seconds", "error"
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is searched, and how.

    Attributes:
        recipe: of every trial, such as `finetune`.
        overrides: of every trial, as on the command line.
        parameters: that differ between trials.
        metric: of validation.
        folder: of the sweep.
        seed: of the proposals.
        prunes: whether trials that look bad are ended early.
        config_folder: where `recipe` is looked for besides; None for the packaged ones alone.
    """

    recipe: str
    overrides: Sequence[str]
    parameters: Sequence[Parameter]
    metric: str
    folder: Path
    seed: int = 0
    prunes: bool = True
    config_folder: Path | None = None

    @property
    def sign(self) -> float:
        """1 where a higher value is better, else -1."""
        return -1.0 if lower_is_better(self.metric) else 1.0

    def configuration(self, values: Sequence[str], place: Path) -> RunConfig:
        """Return the configuration of a trial.

        Args:
            values: of the parameters, as `KEY=` takes them.
            place: its run folder.
        """
        pairs = zip(self.parameters, values, strict=True)
        # A path may hold what has a meaning in overrides.
        own = ["working_dir=.", *(f"{parameter.key}={value}" for parameter, value in pairs)]
        config = typed_configuration(
            self.recipe, [*self.overrides, *own], config_folder=self.config_folder
        )
        config.working_dir = str(place)
        config.trainer.checkpoint.best = self.metric
        config.resume = "auto"
        return config

    def facts(self) -> dict[str, Any]:
        """Return what must stay when a sweep goes on, as plain JSON."""
        return {
            "recipe": self.recipe,
            "overrides": sorted(self.overrides),
            "parameters": [json.loads(json.dumps(asdict(each))) for each in self.parameters],
            "metric": self.metric,
            "seed": self.seed,
            "prunes": self.prunes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a trial.

    Attributes:
        number: of the trial, from 0.
        state: `complete`, `pruned` or `failed`.
        value: the best of its validations; None where it failed before one.
        seconds: that it took, without those before a break.
        values: `{key: value}`.
        error: why it failed; empty for the others.
    """

    number: int
    state: str
    value: float | None
    seconds: float
    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def run_sweep(sweep: Sweep, *, trials: int) -> list[Outcome]:
    """Run trials until there are so many, and write their table and the best configuration.

    Args:
        sweep: what is searched.
        trials: in all, with those of earlier calls.

    Returns:
        All trials, in order.

    Raises:
        UsageError: several processes, keys that the sweep sets itself, or numbers out of range.
        ConfigError: a key or value that no run takes, a metric that validation does not report, no
            validation cells, or a folder that holds another sweep.
        MissingExtraError: optuna is not installed.
        OmicsError: no trial came to an end; the last one's reason.
        StoppedError: a signal asked to stop; the same call goes on.
    """
    optuna = _optuna()
    _check(sweep, trials)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with writer_lock(sweep.folder):
        _refuse_other(sweep)
        # Raises what is wrong with the configuration before the first trial.
        config = sweep.configuration(_first_values(sweep), sweep.folder)
        _check_metric(sweep, config)
        write_bytes(sweep.folder / FACTS, (json.dumps(sweep.facts(), indent=1) + "\n").encode())
        prunes = sweep.prunes and config.trainer.devices == 1
        if sweep.prunes and not prunes:
            say("Trials of several processes run to their end: none is ended early.")
        study = optuna.create_study(
            storage=f"sqlite:///{(sweep.folder / STUDY).resolve()}",
            study_name="sweep",
            direction="maximize" if sweep.sign > 0 else "minimize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if prunes else optuna.pruners.NopPruner(),
        )
        _put_back(study)
        with progress("sweep", trials, unit="trials") as advance:
            advance(len(_ended(study)))
            while (number := len(_ended(study))) < trials:
                seed = (sweep.seed * _SEED_STRIDE + number) % 2**32
                study.sampler = optuna.samplers.TPESampler(seed=seed)
                _take(sweep, study, number)
                outcomes = _outcomes(sweep, study)
                _write_table(sweep, outcomes)
                advance(1)
        outcomes = _outcomes(sweep, study)
        _finish(sweep, outcomes)
    return outcomes


def best_of(sweep: Sweep, outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the best trial that came to its end; None where none did.

    Args:
        sweep: whose metric counts.
        outcomes: of its trials.
    """
    whole = [each for each in outcomes if each.state == "complete" and each.value is not None]
    return max(whole, key=lambda each: sweep.sign * (each.value or 0.0), default=None)


def trial_folder(sweep: Sweep, number: int) -> Path:
    """Return the run folder of a trial.

    Args:
        sweep: that it belongs to.
        number: of the trial.
    """
    return sweep.folder / f"trial-{number:04d}"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError(
            f"A sweep needs optuna, which cannot be imported ({error}). Run: "
            "pip install 'omics-train[sweep]'"
        ) from error
    return optuna


def _check(sweep: Sweep, trials: int) -> None:
    if trials < 1:
        raise UsageError(f"--trials is {trials}; it must be at least 1.")
    if "RANK" in os.environ:
        raise UsageError(
            "A sweep starts the processes of its trials by itself (trainer.devices): start it "
            "without a launcher."
        )
    given = {each.partition("=")[0].lstrip("+~") for each in sweep.overrides}
    swept = {each.key for each in sweep.parameters}
    for key in sorted(given & swept):
        raise UsageError(f"{key} is given and swept: leave one out.")
    for key in _OURS:
        if key in given | swept:
            raise UsageError(f"A sweep sets {key} itself (--out and --metric): leave it out.")


def _first_values(sweep: Sweep) -> list[str]:
    """Compose every value at the ends of the space once, and return the first of each."""
    first = [each.tried_first[0] for each in sweep.parameters]
    for place, parameter in enumerate(sweep.parameters):
        for value in parameter.tried_first[1:]:
            sweep.configuration([*first[:place], value, *first[place + 1 :]], sweep.folder)
    return first


def _check_metric(sweep: Sweep, config: RunConfig) -> None:
    if config.task != ["train"]:
        raise ConfigError(
            f"A sweep is made of trainings, and task of {sweep.recipe} is {config.task}: give a "
            "recipe that trains alone, such as pretrain or finetune."
        )
    config.trainer.checkpoint.best = None
    with _silence(), open_cells(data_path(config)) as store:
        training = prepare_training(config, store)
    if training.validation is None:
        raise ConfigError(
            "A sweep compares what validation finds, and there are no validation cells: give "
            "data_module.split."
        )
    known = reported(training.objective.terms)
    if sweep.metric not in known:
        raise ConfigError(
            f"--metric is {sweep.metric!r}, which validation does not report."
            f"{nearest(sweep.metric, sorted(known))}"
        )


def _refuse_other(sweep: Sweep) -> None:
    path = sweep.folder / FACTS
    if not path.exists():
        if (sweep.folder / STUDY).exists() or (sweep.folder / BUNDLE).exists():
            raise ConfigError(f"{sweep.folder} holds something else: choose another --out.")
        return
    before, now = json.loads(path.read_bytes()), sweep.facts()
    differ = [key for key, value in now.items() if before.get(key) != value]
    if differ:
        raise ConfigError(
            f"{sweep.folder} holds a sweep with other {', '.join(differ)}: say the same to go on "
            "with it, or choose another --out."
        )


def _put_back(study: optuna.Study) -> None:
    """Queue the trial that a sweep was in when it ended, to go on in the same folder."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    queued = [each.user_attrs.get(_PLACE) for each in trials if each.state == TrialState.WAITING]
    for trial in (each for each in trials if each.state == TrialState.RUNNING):
        place = trial.user_attrs.get(_PLACE)
        if place is not None and place not in queued:
            study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
        study.tell(trial.number, state=TrialState.FAIL)


def _ended(study: optuna.Study) -> dict[int, optuna.trial.FrozenTrial]:
    """Return `{number: trial}`; of the trials in one folder the last one counts."""
    trials = study.get_trials(deepcopy=False)
    newest = {each.user_attrs[_PLACE]: each for each in trials if _PLACE in each.user_attrs}
    return {number: each for number, each in sorted(newest.items()) if each.state.is_finished()}


def _take(sweep: Sweep, study: optuna.Study, number: int) -> None:
    """Run one trial to its end, and keep what it found."""
    from optuna.trial import TrialState

    trial = study.ask()
    values = [parameter.propose(trial) for parameter in sweep.parameters]
    trial.set_user_attr(_PLACE, number)
    place = trial_folder(sweep, number)
    config = sweep.configuration(values, place)
    watch = _Watch(trial, sweep.metric)
    started = time.monotonic()
    error = ""
    try:
        with _silence():
            train(config, place, watch=watch)
    except StoppedError:
        raise
    except ResourceError as caught:
        # A model that is too large is an answer; a full disk is not.
        if "Out of memory" not in str(caught):
            raise
        error = str(caught)
    except OmicsError as caught:
        error = str(caught)
    gc.collect()
    found = _validated(place, sweep.metric)
    if not error and not found:
        error = f"Validation never found a value of {sweep.metric}."
    trial.set_user_attr(_SECONDS, round(time.monotonic() - started, 3))
    if error:
        trial.set_user_attr(_ERROR, error)
        study.tell(trial, state=TrialState.FAIL)
        say(f"Trial {number} failed: {error}")
        return
    best = max(found, key=lambda value: sweep.sign * value)
    if trial.user_attrs.get(_PRUNED):
        # optuna keeps the last reported value of what it pruned; the table has the best one.
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, best)
    # It will not go on; its bundles stay.
    remove_path(place / FOLDER)
    pairs = zip(sweep.parameters, values, strict=True)
    told = ", ".join(f"{parameter.key}={value}" for parameter, value in pairs)
    ended = " (ended early)" if trial.user_attrs.get(_PRUNED) else ""
    say(f"Trial {number}: {sweep.metric} {best:.4g}{ended} with {told}")


class _Watch:
    """Reports each validation of a trial to optuna, and asks whether it should end."""

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self._trial = trial
        self._metric = metric
        self._reported = 0

    def __call__(self, history: History) -> bool:
        """Return whether the run ends here.

        Args:
            history: of the run, with that of the newest validation.
        """
        found = [
            value
            for _, _, phase, term, value in history.rows
            if (phase, term) == (_PHASE, self._metric)
        ]
        for number in range(self._reported, len(found)):
            self._trial.report(found[number], number)
        self._reported = len(found)
        if not self._trial.should_prune():
            return False
        self._trial.set_user_attr(_PRUNED, True)
        return True


def _validated(place: Path, metric: str) -> list[float]:
    """Return the values of a metric over the validations of a run."""
    path = place / HISTORY
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    rows = [line.split(",") for line in lines]
    return [float(row[4]) for row in rows if (row[2], row[3]) == (_PHASE, metric)]


def _outcomes(sweep: Sweep, study: optuna.Study) -> list[Outcome]:
    outcomes = []
    for number, trial in _ended(study).items():
        found = _validated(trial_folder(sweep, number), sweep.metric)
        error = str(trial.user_attrs.get(_ERROR, ""))
        is_pruned = bool(trial.user_attrs.get(_PRUNED))
        outcomes.append(
            Outcome(
                number=number,
                state="failed" if error else "pruned" if is_pruned else "complete",
                value=max(found, key=lambda value: sweep.sign * value, default=None),
                seconds=float(trial.user_attrs.get(_SECONDS, 0.0)),
                values=dict(trial.params),
                error=error,
            )
        )
    return outcomes


def _write_table(sweep: Sweep, outcomes: Sequence[Outcome]) -> None:
    import pyarrow as pa

    from omics.eval.table_files import open_table

    columns: dict[str, Any] = {
        "trial": [each.number for each in outcomes],
        "folder": [trial_folder(sweep, each.number).name for each in outcomes],
        "state": [each.state for each in outcomes],
        sweep.metric: pa.array([each.value for each in outcomes], pa.float64()),
        "seconds": [each.seconds for each in outcomes],
        **{
            parameter.key: [each.values.get(parameter.key) for each in outcomes]
            for parameter in sweep.parameters
        },
        "error": [each.error for each in outcomes],
    }
    table = pa.table(columns)
    with open_table(sweep.folder / TABLE, table.schema) as file:
        file.write_table(table)


def _finish(sweep: Sweep, outcomes: Sequence[Outcome]) -> None:
    best = best_of(sweep, outcomes)
    if best is None:
        raise ConfigError(
            f"None of {len(outcomes)} trials came to its end. The last one said: "
            f"{outcomes[-1].error}"
        )
    values = [str(best.values[each.key]) for each in sweep.parameters]
    _write_best(sweep, sweep.configuration(values, trial_folder(sweep, best.number)))
    place = trial_folder(sweep, best.number)
    bundle = next(place / name for name in (BUNDLE_BEST, BUNDLE) if (place / name).exists())
    told = ", ".join(f"{key}={value}" for key, value in best.values.items())
    say(f"Best of {len(outcomes)}: {sweep.metric} {best.value:.4g} with {told}")
    say(f"Its bundle is {bundle}, and its configuration {sweep.folder / BEST}")


def _write_best(sweep: Sweep, config: RunConfig) -> None:
    """Write a configuration that `-cn best` takes; the run folder is left to say."""
    from omegaconf import OmegaConf

    settings = plain(config)
    for key in ("working_dir", "resume", "overwrite"):
        del settings[key]
    if settings["data_module"]["path"] == settings["input_file"]:
        del settings["data_module"]["path"]  # It follows `input_file`.
    text = OmegaConf.to_yaml(OmegaConf.create({"defaults": ["base", "_self_"], **settings}))
    write_bytes(sweep.folder / BEST, text.encode())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let trials say nothing; what they found is in their folders."""
    before = Verbosity.quiet
    Verbosity.quiet = True
    try:
        yield
    finally:
        Verbosity.quiet = before
