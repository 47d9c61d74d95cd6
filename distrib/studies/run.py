"""A study at work: its trials shared out over the workers of this machine."""

import functools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import get_args

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from distrib.base.cores import cores
from distrib.base.errors import UserError, first_line
from distrib.base.streams import standard_streams
from distrib.base.words import plural
from distrib.config import parse
from distrib.data.splits import digest
from distrib.ranks.environment import TRIALS_ON_GPU
from distrib.ranks.machine import resolve
from distrib.ranks.printing import say
from distrib.ranks.stopping import STOPPED
from distrib.studies.definition import Study, read_study
from distrib.studies.folder import StudyFolder
from distrib.studies.precision import with_kept_precision, with_precision
from distrib.studies.record import State, StudyRecord
from distrib.studies.results import read_record
from distrib.studies.search import open_study, rehearse
from distrib.studies.trial import Stop
from distrib.studies.worker import Worker, best_yaml
from distrib.training.check import check_start

# How many workers that have died are replaced.
REPLACED = 5


def read_with_options(file: Path, arguments: Sequence[str]) -> Study:
    """The study in a file, with options of the configuration put over it.

    Raises:
        UserError: as `read_study` does, or if an option is none.
    """
    study = read_study(file)
    if not arguments:
        return study
    config = parse(arguments, study.base, "distrib sweep", "Trains every trial of a study.")
    named = [each[2:].partition("=")[0].replace("-", "_") for each in arguments if each.startswith("--")]
    return read_study(file, {key: functools.reduce(getattr, key.split("."), config) for key in named})


@standard_streams(goes_on=True)
def run_study(
    study: Study,
    folder: Path,
    workers: int | None,
    stop: Stop,
    retry_failed: bool = False,
    per_gpu: int | None = None,
) -> int:
    """Train a study's trials until its budget is used up; returns the exit status.

    Args:
        study: its definition.
        folder: of the study.
        workers: trials at a time; None: see `share`.
        stop: of this process.
        retry_failed: whether settings of failed trials are trained again.
        per_gpu: trials at a time on one GPU; None: one.

    Raises:
        UserError: if the study, its folder or the number of workers is refused, or its storage fails.
    """
    shares = share(study, workers, per_gpu)
    study = replace(study, data=check(study))
    with failures(study, folder):
        worker = Worker(study, folder, say)
        introduce(study, folder)
        study = worker.study = with_precision(study, worker.folder, len(shares))
        if retry_failed:
            print(f"again:   {plural(worker.retry_failed(), 'failed trial')}", flush=True)
        if len(shares) > 1:
            worker.publish()  # the page is there from the beginning
            status = supervise(study, folder, shares, stop)
        else:
            status = worker.work(stop)
        summarise(worker.publish())
    if stop.reason is not None:
        print(f"stopped by {stop.reason}; the same command resumes the study", flush=True)
    return status


def check(study: Study) -> str:
    """Refuse a study whose trials would all fail: no data, nothing to train, a sampler that cannot do with it.

    Returns:
        The digest of what the base configuration trains on.

    Raises:
        UserError: as `distrib check` does.
    """
    rehearse(study)
    base = study.base.replace("run", folder=None)
    if "model.weights" in study.varied:  # those of the base may be no trial's
        base = base.replace("model", weights="none")
    table, splits = check_start(resolve(base), base.run.ranks or 1)
    return digest(table, splits.train, splits.valid)


def introduce(study: Study, folder: Path) -> None:
    """Say what is about to be searched."""
    planned = "as many trials as there is time for" if study.planned is None else plural(study.planned, "trial")
    runs = len(study.rungs) * len(study.seeds)
    of = f" of {runs} runs each" if runs > 1 else ""
    print(f"study:   {study.name}, {planned}{of}, by {study.fields.sampler.name}, in {folder}")
    print(f"over:    {', '.join(parameter.name for parameter in study.parameters)}")
    print(f"for:     {', '.join(f'{o.direction} {o.score}' for o in study.objectives)}", flush=True)


def summarise(record: StudyRecord) -> None:
    """Say what the study came to, and where it is."""
    counts = ", ".join(f"{len(found)} {state}" for state in get_args(State) if (found := record.of_state(state)))
    print(f"\n{plural(len(record.trials), 'trial')}: {counts}")
    if record.front:
        print(f"best:   {', '.join(f'trial {number}' for number in record.front)}, as {record.folder / 'best.yaml'}")
    print(f"trials: {record.folder / 'study.csv'}")
    print(f"page:   {record.folder / 'study/index.html'}", flush=True)


def best(study: Study, folder: Path) -> str:
    """The best trial's configuration as YAML.

    Raises:
        UserError: if the study has not begun, is not the one in the folder, or no trial of it has finished.
    """
    if not (folder / "study.yaml").is_file():
        raise UserError(f"{folder} holds no study: start it with distrib sweep, or name its folder with --folder")
    StudyFolder(folder, study.name).check(study)
    study = with_kept_precision(study, StudyFolder(folder, study.name))
    with failures(study, folder):
        record = read_record(study, open_study(study, folder), folder, importance=False)
    if not record.front:
        raise UserError(f"no trial of the study in {folder} has finished yet, so there is no best one")
    return best_yaml(study, record)


def supervise(study: Study, folder: Path, shares: Sequence[tuple[dict[str, str], set[int]]], stop: Stop) -> int:
    """Start workers as processes of their own, and others in the place of those that die; returns the exit status.

    Args:
        study: its definition.
        folder: of the study.
        shares: environment and cores of each worker.
        stop: of this process.
    """
    processes = multiprocessing.get_context("spawn")
    statuses, deaths = [0], 0
    with ExitStack() as working:

        def start(number: int) -> SpawnProcess:
            process = processes.Process(target=be_worker, args=(study, folder, number, *shares[number]))
            process.start()
            assert process.pid is not None
            working.enter_context(stop.working(process.pid, process.is_alive))
            return process

        running = {number: start(number) for number in range(len(shares))}
        while running:
            time.sleep(0.2)
            for number, process in list(running.items()):
                status = process.exitcode
                if status is None:
                    continue
                del running[number]
                if status in (0, 2, STOPPED) or stop.reason is not None or deaths == REPLACED:
                    statuses.append(status if status >= 0 else 1)
                    continue
                deaths += 1
                how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
                print(f"worker {number} has died ({how}): another takes its place", file=sys.stderr, flush=True)
                running[number] = start(number)
    return STOPPED if stop.reason is not None else max(statuses)


@standard_streams(goes_on=True)
def be_worker(study: Study, folder: Path, number: int, environment: dict[str, str], affinity: set[int]) -> None:
    """The work of a process that `supervise` has started; leaves with its exit status."""
    stop = Stop()
    os.environ.update(environment)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, affinity)
    try:
        with failures(study, folder):
            status = Worker(study, folder, lambda line: say(f"worker {number}: {line}")).work(stop)
    except UserError as error:
        print(f"distrib: error: worker {number}: {error}", file=sys.stderr, flush=True)
        status = error.exit_status
    sys.exit(status)


@contextmanager
def failures(study: Study, folder: Path) -> Iterator[None]:
    """What a database, a journal or the disk says while this is on becomes one sentence.

    Raises:
        UserError: for what Optuna's storage raises, and for files that cannot be read or written.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, json.JSONDecodeError) as error:
        raise UserError(
            f"storage {study.fields.storage} fails ({first_line(error)}): check it; the same command resumes the study"
        ) from None
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} fails ({error.strerror}): check the disk; the same command resumes the study"
        ) from None


def share(study: Study, workers: int | None, per_gpu: int | None = None) -> list[tuple[dict[str, str], set[int]]]:
    """For each worker the environment and the cores of its share of this machine.

    Args:
        study: its definition.
        workers: how many there are to be; None: one, or `per_gpu` for each GPU.
        per_gpu: how many may have a GPU in common, of which each has that one alone; None: they have none in common.

    Raises:
        UserError: if there are fewer GPUs, or cores, than workers, or too few for the ranks of their trials.
    """
    on_gpus = resolve(study.base).run.device == "cuda"
    if per_gpu is not None and per_gpu < 1:
        raise UserError(f"--workers-per-gpu is {per_gpu}: ask for at least one")
    if per_gpu is not None and not on_gpus:
        raise UserError(
            f"--workers-per-gpu is {per_gpu}, and this study trains on the CPU: say --workers, whose trials share the "
            "cores, or choose run.device cuda"
        )
    gpus = _visible_gpus() if on_gpus else []
    if workers is None:
        workers = 1 if per_gpu is None else per_gpu * len(gpus)
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores()))
    if workers < 1:
        raise UserError(f"--workers is {workers}: ask for at least one")
    if workers > len(mine):
        asked = (
            f"--workers is {workers}" if per_gpu is None else f"--workers-per-gpu {per_gpu} asks for {workers} workers"
        )
        raise UserError(f"{asked}, and there are {len(mine)} cores here: ask for at most {len(mine)} workers")
    if on_gpus:
        _refuse_gpus(study, workers, len(gpus), per_gpu)
    # A Slurm that binds no process to its job's cores only says how many they are.
    job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    of_job = {"SLURM_CPUS_ON_NODE": str(max(1, int(job) // workers))} if job.isdecimal() else {}
    shares = []
    for number in range(workers):
        environment = dict(of_job)
        if on_gpus:
            own = gpus[number::workers] or [gpus[number % len(gpus)]]
            sharing = len(range(number % len(gpus), workers, len(gpus)))
            environment |= {"CUDA_VISIBLE_DEVICES": ",".join(own), TRIALS_ON_GPU: str(sharing)}
        shares.append((environment, set(mine[number::workers])))
    return shares


def _visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    return (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))).split(",")


def _refuse_gpus(study: Study, workers: int, gpus: int, per_gpu: int | None) -> None:
    """Refuse workers that do not have the GPUs that they need.

    Raises:
        UserError: if more of them than may would have one in common, or one has fewer than its trials have ranks.
    """
    most = gpus * (per_gpu or 1)
    if workers > most:
        more = ", or set --workers-per-gpu" if per_gpu is None else f" with --workers-per-gpu {per_gpu}"
        raise UserError(f"--workers is {workers}, and there are {gpus} GPUs here: ask for at most {most}{more}")
    each, ranks = max(1, gpus // workers), study.base.run.ranks or 1
    if ranks > each:
        fit = gpus // ranks
        remedy = f"ask for at most {plural(fit, 'worker')}" if fit else "lower run.ranks"
        if per_gpu is not None:
            remedy = "leave out --workers-per-gpu, or set run.ranks to 1"
        raise UserError(
            f"run.ranks is {ranks}, and each of {workers} workers has {each} of the {gpus} GPUs here: {remedy}"
        )
