"""A worker of a study: takes one trial after the other, new ones and those that other workers have lost."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from distrib.base.errors import UserError, afterwards
from distrib.base.files import write_whole
from distrib.base.words import duration, plural
from distrib.config import Config
from distrib.ranks.stopping import STOPPED
from distrib.studies.definition import Study, to_yaml
from distrib.studies.folder import Lock, StudyFolder
from distrib.studies.page import render_study
from distrib.studies.record import StudyRecord, study_csv
from distrib.studies.results import RETRY_OF, has_no_memory, read_record
from distrib.studies.samplers import make_pruner, make_sampler
from distrib.studies.search import open_storage, storage_url
from distrib.studies.space import Point, describe_point, short
from distrib.studies.trial import Interrupted, Stop, TrialRun


@dataclass(frozen=True)
class Taken:
    """A trial that this worker holds."""

    trial: optuna.Trial
    point: Point
    lock: Lock
    again: bool


class Worker:
    """Works on a study until its budget is used up.

    Args:
        study: its definition.
        folder: of the study.
        say: takes a line for the terminal.

    Raises:
        UserError: if the folder is of another study, or the storage cannot be opened.
        OSError: if the folder cannot be written.
    """

    def __init__(self, study: Study, folder: Path, say: Callable[[str], None]) -> None:
        self.study, self.say = study, say
        self.folder = StudyFolder(folder, study.name)
        self.storage = storage_url(study, folder)
        with self.folder.lock():
            ours = self.folder.definition.exists()
            self.folder.check(study)
            storage = open_storage(self.storage)
            try:
                storage.get_study_id_from_name(study.name)
            except KeyError:
                if self.folder.has_runs():
                    raise UserError(
                        f"{folder} has runs of a study, and storage {self.storage} does not know it: name the storage "
                        "that it began with (sqlite:/// takes a path from where you are), or choose another --folder"
                    ) from None
            else:
                if not ours:
                    raise UserError(
                        f"storage {self.storage} has a study {study.name} already, and {folder} is not its folder: "
                        "name its folder, or give this study's file another name"
                    )
            # First, so that a study that is cut off here is known for this folder's.
            write_whole(self.folder.definition, to_yaml(study))
            self.optuna = optuna.create_study(
                storage=storage,
                study_name=study.name,
                directions=[objective.direction for objective in study.objectives],
                pruner=make_pruner(study.fields.pruner, len(study.rungs)),
                load_if_exists=True,
            )

    def retry_failed(self) -> int:
        """Put the settings of each trial that failed, or ran out of memory, in the queue once more; returns how many.

        They count as the trials that they try again, and not against the budget. What was tried again and has failed
        once more is left alone while trials are running: it may be another worker that was asked to.
        """
        with self.folder.lock():
            trials = self.optuna.get_trials(deepcopy=False)
            again = {trial.user_attrs.get(RETRY_OF) for trial in trials}
            running = any(trial.state == TrialState.RUNNING for trial in trials)
            failed = [
                trial
                for trial in trials
                if (trial.state == TrialState.FAIL or has_no_memory(trial))
                and trial.number not in again
                and not (running and RETRY_OF in trial.user_attrs)
            ]
            for trial in failed:
                self.optuna.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
        return len(failed)

    def work(self, stop: Stop) -> int:
        """Take trials until there is nothing left to begin; returns the exit status, 75 where it was asked to stop."""
        while stop.reason is None:
            taken = self.take()
            if taken is None:
                return 0
            try:
                with afterwards(taken.lock.release):
                    self.finish(taken, stop)
            except Interrupted as interruption:
                self.say(f"trial {taken.trial.number}: {interruption}")
                return STOPPED
            self.publish()
        return STOPPED

    def take(self) -> Taken | None:
        """The next trial: one whose worker is gone, or a new one; None where the budget is used up."""
        with self.folder.lock():
            trials = self.optuna.get_trials(deepcopy=False)
            begun = [trial for trial in trials if trial.state != TrialState.WAITING]
            for number in [trial.number for trial in begun if trial.state == TrialState.RUNNING]:
                lock = self.folder.lock_trial(number)
                if lock is None:
                    continue
                # Its worker may have told its end, and let go of it, after the trials were read.
                now = self.optuna.get_trials(deepcopy=False)[number]
                if now.state != TrialState.RUNNING:
                    lock.release()
                    continue
                self.optuna.sampler = make_sampler(self.study.fields.sampler, number)
                trial = optuna.Trial(self.optuna, now._trial_id)
                return Taken(trial, self.study.suggest(trial), lock, again=True)
            waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
            retry = bool(waiting) and RETRY_OF in waiting[0].user_attrs
            if not retry and (self._used_up(begun) or not (waiting or self._enqueue(trials))):
                return None
            lock = self.folder.lock_trial(len(begun))
            assert lock is not None, "trials are numbered in the order in which they begin"
            self.optuna.sampler = make_sampler(self.study.fields.sampler, len(begun))
            trial = self.optuna.ask()
            assert trial.number == len(begun)
            return Taken(trial, self.study.suggest(trial), lock, again=False)

    def _used_up(self, begun: Sequence[FrozenTrial]) -> bool:
        budget = self.study.fields.budget
        if budget.trials is not None and sum(RETRY_OF not in trial.user_attrs for trial in begun) >= budget.trials:
            return True
        starts = [trial.datetime_start for trial in begun if trial.datetime_start is not None]
        hours = (datetime.now() - min(starts)).total_seconds() / 3600 if starts else 0.0
        return budget.hours is not None and hours >= budget.hours

    def _enqueue(self, trials: Sequence[FrozenTrial]) -> bool:
        """Put a grid's next point in the queue; False where all have been there. Other samplers always have one."""
        if not self.study.is_grid:
            return True
        begun = [each.params for each in trials]
        point = next((point for point in self.study.points() if point not in begun), None)
        if point is None:
            return False
        self.optuna.enqueue_trial(point)
        return True

    def finish(self, taken: Taken, stop: Stop) -> None:
        """Train a trial and tell Optuna what came of it.

        Raises:
            Interrupted: if the worker, or the run, was asked to stop first.
        """
        trial, point = taken.trial, taken.point
        label = f"trial {trial.number}"
        self.say(f"{label}{' again' if taken.again else ''}: {describe_point(point)}")
        twin = self._twin(trial, point)
        if twin is not None:
            names = [name for name in ("outcome", "spread", "runs") if name in twin.user_attrs]
            shared: dict[str, object] = {name: twin.user_attrs[name] for name in names}
            self._keep(trial, {**shared, "reason": f"the settings of trial {twin.number}: not trained again"})
            self.optuna.tell(trial, twin.values)
            self.say(f"{label}: has the settings of trial {twin.number}, and so its result")
            return
        began, before = time.monotonic(), float(trial.user_attrs.get("seconds", 0))
        with afterwards(lambda: self._keep(trial, {"seconds": before + time.monotonic() - began})):
            ending = TrialRun(self.study, self.folder, trial, point, self.storage, stop, self.say).train()
        self._keep(trial, {"outcome": ending.state, "reason": ending.reason, "epochs": ending.epochs})
        if ending.spread is not None:
            self._keep(trial, {"spread": json.dumps(ending.spread)})
        # A sampler learns from what was pruned, and nothing from what has failed: too large is worth knowing. (With
        # several objectives Optuna's samplers cannot do with it.)
        too_large = TrialState.PRUNED if len(self.study.objectives) == 1 else TrialState.FAIL
        told = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "out of memory": too_large}
        self.optuna.tell(trial, ending.values, state=told.get(ending.state, TrialState.FAIL))
        self.say(f"{label}: {self._verdict(trial.number)}")

    def _twin(self, trial: optuna.Trial, point: Point) -> FrozenTrial | None:
        """A finished trial with the same settings: the same training would end the same way, bit for bit."""
        finished = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return next((each for each in finished if each.params == point and each.number != trial.number), None)

    def _keep(self, trial: optuna.Trial, values: dict[str, object]) -> None:
        for name, value in values.items():
            trial.set_user_attr(name, value)

    def _verdict(self, number: int) -> str:
        """A trial's end in a few words."""
        record = read_record(self.study, self.optuna, self.folder.path, importance=False)
        trial = next(each for each in record.trials if each.number == number)
        cost = f"{plural(trial.epochs, 'epoch')}, {duration(trial.seconds)}"
        if trial.values is None:
            return f"{trial.state}: {trial.reason} ({cost}){_to_go(record)}"
        scores = ", ".join(f"{o.score} {short(v)}" for o, v in zip(record.objectives, trial.values, strict=True))
        if len(record.objectives) > 1:
            place = "on the Pareto front" if number in record.front else "not on the Pareto front"
        else:
            place = "the best so far" if number in record.front else f"the best is trial {record.front[0]}"
        return f"{scores} ({place}; {cost}){_to_go(record)}"

    def publish(self) -> StudyRecord:
        """Write study.csv, best.yaml and the page as the study stands.

        Raises:
            UserError: if the folder cannot be locked.
            OSError: if study.csv or best.yaml cannot be written.
        """
        with self.folder.lock("publishing"):
            record = read_record(self.study, self.optuna, self.folder.path)
            write_whole(self.folder.csv, study_csv(record))
            if record.front:
                write_whole(self.folder.best, best_yaml(self.study, record))
            try:
                render_study(record, self.folder.page)
            except Exception as error:  # a page is never worth a study
                self.say(f"warning: the page could not be made ({type(error).__name__}: {error})")
        return record


def _to_go(record: StudyRecord) -> str:
    """How many trials are left, and how long that takes if they are as long as those before, on as many workers."""
    left = 0 if record.planned is None else record.planned - len(record.trials)
    running = len(record.of_state("running"))
    ended = [trial.seconds for trial in record.trials if trial.state != "running"]
    if left <= 0:
        return ""
    return f"; {left} to go, about {duration(left * statistics.fmean(ended) / (running + 1))}"


def best_yaml(study: Study, record: StudyRecord) -> str:
    """The configuration of the best trial as `--config` takes it, with what it scored as comments.

    Of several objectives' Pareto front it is the one that is best in the first objective.
    """
    objectives = record.objectives
    front = [trial for trial in record.trials if trial.number in record.front]
    best = min(front, key=lambda trial: objectives[0].rank(trial.values[0] if trial.values else None))
    scores = ", ".join(f"{o.score} {short(v)}" for o, v in zip(objectives, best.values or (), strict=True))
    lines = [f"# Trial {best.number} of the study {study.name}: {scores}.", f"# {describe_point(best.settings)}"]
    if len(objectives) > 1:
        others = ", ".join(map(str, record.front))
        lines.insert(1, f"# The best in {objectives[0].score} of the Pareto front, which is trials {others}.")
    if len(study.rungs) > 1 and study.fields.warm_start:
        lines.append("# It had started from its cheaper runs (warm_start), which model.weights here does not name.")
    config: Config = study.config(best.settings, study.rungs[-1], study.seeds[0])
    return "\n".join([*lines, config.replace("tracking", group=None).to_yaml()])
