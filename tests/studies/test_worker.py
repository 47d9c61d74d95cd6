"""What becomes of a trial: pruned, failed, tried again. None is trained here: runs that have ended are put in place."""

import csv
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sentences import refusal

from distrib.runs.metrics import METRICS
from distrib.studies.definition import Study, read_study
from distrib.studies.folder import Lock
from distrib.studies.results import read_record
from distrib.studies.search import TrialFile, TrialJudge, storage_url
from distrib.studies.trial import SIGNALS, Stop
from distrib.studies.worker import Taken, Worker

RATES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
RUNGS = "fidelity: [{train.epochs: 1}, {train.epochs: 2}, {train.epochs: 3}]\n"


@pytest.fixture
def stop() -> Iterator[Stop]:
    """What a worker listens with; this process hears signals as before afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield Stop()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_runs_of_a_study_inherit_neither_id_nor_name(
    stop: Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)  # which importing wandb sets
    for name in ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_SWEEP_ID", "WANDB_PROJECT", "WANDB_NAMESPACE"):
        monkeypatch.setenv(name, "mine")
    command = [sys.executable, "-c", "import os; print(sorted(n for n in os.environ if n.startswith('WANDB_')))"]
    descriptor = os.open(tmp_path, os.O_RDONLY)
    assert stop.run(command, tmp_path / "log", Lock(descriptor), lambda: None) == 0
    os.close(descriptor)
    assert (tmp_path / "log").read_text() == "['WANDB_NAMESPACE', 'WANDB_PROJECT']\n"


def a_study(folder: Path, more: str = "") -> Study:
    file = folder / "judged.yaml"
    settings = "set: {explain.after_training: false, data.root: nowhere}\n"
    file.write_text(f"space: {{optim.lr: {RATES}}}\nsampler: grid\nobjective: val_loss\n{settings}{more}")
    return read_study(file)


def a_run(folder: Path, losses: Sequence[float]) -> None:
    """The folder of a run that has ended, with a validation loss for each epoch."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("explain: {after_training: false}\n")
    (folder / "events.jsonl").write_text(json.dumps({"event": "end", "best_epoch": len(losses)}) + "\n")
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, METRICS)
        writer.writeheader()
        for epoch, loss in enumerate(losses, 1):
            writer.writerow({**dict.fromkeys(METRICS, 0.5), "epoch": epoch, "step": 10 * epoch, "val_loss": loss})


def take(worker: Worker) -> Taken:
    taken = worker.take()
    assert taken is not None
    return taken


def judged(folder: Path, study: Study, curves: Sequence[Callable[[int], float]], epochs: int) -> list[int]:
    """Let trials learn one after the other, as their curves say; after which epoch each was given up, 0: not at all."""
    worker, ends = Worker(study, folder / "study", print), []
    for curve in curves:
        taken = take(worker)
        url, pruner = storage_url(study, folder / "study"), study.fields.pruner.model_dump()
        run = folder / f"run-{taken.trial.number}"
        TrialFile(url, study.name, taken.trial._trial_id, "val_loss", pruner).write(run)
        judge = TrialJudge(run / "trial.json")
        end = next((epoch for epoch in range(1, epochs + 1) if judge({"epoch": epoch, "val_loss": curve(epoch)})), 0)
        ends.append(end)
        worker.optuna.tell(taken.trial, None if end else curve(epochs), TrialState.PRUNED if end else None)
        taken.lock.release()
    return ends


def constant(loss: float) -> Callable[[int], float]:
    return lambda epoch: loss


@pytest.mark.parametrize(
    ("pruner", "ends"),
    [
        ("{name: median, n_startup_trials: 2, n_warmup_steps: 2}", [0, 0, 2, 0]),
        ("{name: percentile, percentile: 50.0, n_startup_trials: 2}", [0, 0, 1, 0]),
        ("halving", [0, 0, 1, 0]),  # Optuna looks from the second trial on
        ("{name: hyperband, max_resource: 4, reduction_factor: 4}", [0, 1, 1, 0]),
        ("{name: threshold, upper: 0.85}", [0, 0, 1, 0]),
        ("none", [0, 0, 0, 0]),
    ],
)
def test_each_pruner_gives_up_the_trials_it_is_for(pruner: str, ends: list[int], tmp_path: Path) -> None:
    study = a_study(tmp_path, f"pruner: {pruner}\n")
    assert judged(tmp_path, study, [constant(loss) for loss in (0.5, 0.6, 0.9, 0.4)], epochs=4) == ends


@pytest.mark.slow
def test_halving_lets_the_best_of_a_rung_go_on(tmp_path: Path, stop: Stop) -> None:
    study = a_study(tmp_path, "pruner: {name: halving, reduction_factor: 2}\n" + RUNGS)
    worker = Worker(study, tmp_path / "study", print)
    for loss in (0.5, 0.6, 0.4):
        taken = take(worker)
        a_run(worker.folder.run(taken.trial.number, 0, None), [loss])
        worker.finish(taken, stop)
        taken.lock.release()
    record = worker.publish()
    # Those that continue fail, as there is no data set; that they continued is what counts.
    assert [trial.state for trial in record.trials] == ["failed", "pruned", "failed"]
    assert [len(trial.runs) for trial in record.trials] == [2, 1, 2]
    assert record.trials[1].reason == "given up after rung 0"
    assert [trial.curve for trial in record.trials] == [((0, 0.5),), ((0, 0.6),), ((0, 0.4),)]
    assert "nowhere" in record.trials[0].reason


@pytest.mark.parametrize(
    ("pruner", "steps"), [("halving", (1, 4, 16)), ("hyperband", (1, 3, 9)), ("median", (1, 2, 3))]
)
def test_rungs_are_counted_one_by_one_whatever_their_pruner_calls_them(
    pruner: str, steps: Sequence[int], tmp_path: Path
) -> None:
    study = a_study(tmp_path, f"pruner: {pruner}\n" + RUNGS)
    worker = Worker(study, tmp_path / "study", print)
    taken = take(worker)
    for step, loss in zip(steps, (0.6, 0.5, 0.4), strict=True):
        taken.trial.report(loss, step)
    [trial] = read_record(study, worker.optuna, worker.folder.path).trials
    assert trial.curve == ((0, 0.6), (1, 0.5), (2, 0.4))


def test_a_run_that_is_damaged_costs_its_trial_and_not_the_study(tmp_path: Path, stop: Stop) -> None:
    worker = Worker(a_study(tmp_path), tmp_path / "study", print)
    taken = take(worker)
    run = worker.folder.run(0, None, None)
    a_run(run, [0.5, 0.4])
    (run / "metrics.csv").write_text("epoch,val_loss\n1,0.5\n")
    worker.finish(taken, stop)
    taken.lock.release()
    [trial] = worker.publish().trials
    assert (trial.state, trial.epochs) == ("failed", 1)
    assert "is not a complete run" in trial.reason
    assert take(worker).trial.number == 1


def test_failed_trials_are_tried_again_when_asked_and_beside_the_budget(tmp_path: Path, stop: Stop) -> None:
    worker = Worker(a_study(tmp_path, "budget: {trials: 2}\n"), tmp_path / "study", print)
    for loss in (None, 0.5):
        taken = take(worker)
        worker.optuna.tell(taken.trial, loss, TrialState.FAIL if loss is None else None)
        taken.lock.release()
    assert worker.take() is None
    assert worker.retry_failed() == 1
    assert worker.retry_failed() == 0, "it is in the queue already"
    taken = take(worker)
    assert (taken.trial.number, taken.point) == (2, {"optim.lr": RATES[0]})
    a_run(worker.folder.run(2, None, None), [0.3])
    worker.finish(taken, stop)
    taken.lock.release()
    assert worker.take() is None
    record = worker.publish()
    assert [trial.state for trial in record.trials] == ["failed", "finished", "finished"]
    assert "tried again as trial 2" in record.trials[0].reason
    assert (record.planned, record.front) == (3, (2,))


def test_what_ran_out_of_memory_is_tried_again_too_and_what_was_pruned_is_not(tmp_path: Path) -> None:
    worker = Worker(a_study(tmp_path), tmp_path / "study", print)
    for outcome in ("out of memory", "pruned"):
        taken = take(worker)
        taken.trial.set_user_attr("outcome", outcome)
        taken.trial.report(0.5, 1)
        worker.optuna.tell(taken.trial, state=TrialState.PRUNED)
        taken.lock.release()
    assert worker.retry_failed() == 1
    again = take(worker)
    assert again.point == {"optim.lr": RATES[0]}
    other = take(worker)
    worker.optuna.tell(again.trial, state=TrialState.FAIL)
    assert worker.retry_failed() == 0, "another worker may have just been asked the same"
    worker.optuna.tell(other.trial, 0.5)
    assert worker.retry_failed() == 1


def test_what_a_trial_ends_as_is_what_it_is_shown_as(tmp_path: Path, stop: Stop) -> None:
    """A worker that was lost between keeping "out of memory" and telling it; the trial then came to an end."""
    worker = Worker(a_study(tmp_path), tmp_path / "study", print)
    lost = take(worker)
    lost.trial.set_user_attr("outcome", "out of memory")
    lost.lock.release()
    taken = take(worker)
    assert taken.again
    a_run(worker.folder.run(0, None, None), [0.5])
    worker.finish(taken, stop)
    taken.lock.release()
    assert [trial.state for trial in worker.publish().trials] == ["finished"]


def test_a_study_goes_on_with_the_images_it_began_with(tmp_path: Path) -> None:
    study = a_study(tmp_path)
    Worker(replace(study, data="a" * 64), tmp_path / "study", print)
    Worker(replace(study, data="a" * 64), tmp_path / "study", print)
    other = replace(study, data="b" * 64)
    refusal(lambda: Worker(other, tmp_path / "study", print), "other images or labels", "data.root", "--folder")
    # What makes them others is said, where it is a setting.
    base = study.base.replace("data", subset=100)
    refusal(lambda: Worker(replace(other, base=base), tmp_path / "study", print), "data.subset None", "100")


def test_runs_are_not_taken_for_those_of_trials_that_a_storage_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study was begun in another directory, where its database is."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    study = a_study(tmp_path, "storage: sqlite:///trials.db\n")
    worker = Worker(study, tmp_path / "study", print)
    taken = take(worker)
    a_run(worker.folder.run(taken.trial.number, None, None), [0.5])
    taken.lock.release()
    monkeypatch.chdir(tmp_path / "other")
    refusal(lambda: Worker(study, tmp_path / "study", print), "has runs of a study", "does not know it", "--folder")
    monkeypatch.chdir(tmp_path)
    Worker(study, tmp_path / "study", print)


def test_a_start_that_was_cut_off_does_not_lock_the_study_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power went between the study's two files."""
    study = a_study(tmp_path, "storage: sqlite\n")
    with monkeypatch.context() as patched:
        patched.setattr("distrib.studies.worker.make_pruner", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Worker(study, tmp_path / "study", print)
    assert take(Worker(study, tmp_path / "study", print)).trial.number == 0
