"""Hyper-parameter search: random runs with pruning, by Optuna."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.artifacts.run_dir import RunDir
from vit.config.search import Search
from vit.errors import ConfigError, PrunedRun

if TYPE_CHECKING:
    import optuna

    from vit.training.components import ShouldPrune


def run_search(
    search: Search, run: Callable[[str, dict[str, Any], ShouldPrune], float | None], folder: Path
) -> None:
    """Run the trials of a search, or those that are left of it.

    The study is kept in `folder/study.journal`. A trial that was killed goes on where it was; a
    run that was pruned keeps its checkpoint and can be gone on with by hand.

    Args:
        run: trains run `name` with the given settings (dotted keys) and gives its best validation
            score, or None if it failed.
    """
    study = _open(search, folder)
    from optuna.trial import TrialState

    while (trial := _next(study, search, folder)) is not None:
        name = trial_name(trial.number)
        settings = {key: _suggest(trial, key, search) for key in search.space}
        should_prune = _judge(trial, search)
        try:
            score = run(name, settings, should_prune)
        except PrunedRun:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, score, state=None if score is not None else TrialState.FAIL)


def trial_name(number: int) -> str:
    """The run folder of a trial."""
    return f"trial-{number:04d}"


def _open(search: Search, folder: Path) -> optuna.Study:
    try:
        import optuna
    except ImportError:
        raise ConfigError("a search needs Optuna; pip install 'vit-train[sweep]'") from None
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal")))
        return optuna.create_study(
            storage=storage, study_name="search", direction="maximize", load_if_exists=True
        )


def _next(study: optuna.Study, search: Search, folder: Path) -> optuna.Trial | None:
    """A trial that was left behind, else a new one; None when there are enough."""
    import optuna

    trials = study.get_trials(deepcopy=False)
    for left in trials:
        is_running = left.state == optuna.trial.TrialState.RUNNING
        if is_running and not RunDir(folder / trial_name(left.number)).is_locked():
            return optuna.Trial(study, left._trial_id)
    if len(trials) >= search.trials:
        return None
    return study.ask()


def _suggest(trial: optuna.Trial, key: str, search: Search) -> Any:
    """A value for a setting: the one that was drawn before a kill, or would have been."""
    import optuna

    seed = zlib.crc32(f"{search.seed}:{trial.number}:{key}".encode())
    trial.study.sampler = (
        optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if search.sampler == "tpe"
        else optuna.samplers.RandomSampler(seed=seed)
    )
    what = search.space[key]
    if isinstance(what, list):
        return trial.suggest_categorical(key, what)
    ends = float(what["low"]), float(what["high"])
    return float(f"{trial.suggest_float(key, *ends, log=bool(what.get('log'))):.4g}")


def _judge(trial: optuna.Trial, search: Search) -> ShouldPrune:
    """Tell the study, unless it was told before the run was killed, and decide.

    At each rung the best 1 / reduction of the trials that came so far go on (Li et al. 2020,
    algorithm 2, where a trial that does not go on has ended). Optuna's own pruner answers another
    question when it is asked again, as after a kill.
    """
    rungs = {search.min_epochs * search.reduction**k for k in range(32)}
    known = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def should_prune(epoch: float, score: float) -> bool:
        step = int(epoch)
        if step < 1:
            return False
        if step not in known:
            known.add(step)
            trial.report(score, step)
        if step not in rungs:
            return False
        told = (t.intermediate_values for t in trial.study.get_trials(deepcopy=False))
        scores = sorted((values[step] for values in told if step in values), reverse=True)
        return score < scores[max(len(scores) // search.reduction, 1) - 1]

    return should_prune
