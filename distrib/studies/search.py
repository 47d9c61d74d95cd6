"""Optuna's side of a study: where its trials are kept, and which of them is not worth continuing.

A trial that has been begun is one that Optuna calls RUNNING; its worker holds a lock on it, so that a trial whose lock
is free has lost its worker, and the next worker takes it up. All choosing is done under one lock of the study: there
are never more trials than the budget has, and none is begun twice.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage

from distrib.base.errors import UserError, first_line
from distrib.runs.folder import RunFolder
from distrib.studies.definition import Study
from distrib.studies.journal import open_journal
from distrib.studies.methods import Method
from distrib.studies.samplers import make_pruner, make_sampler

# So many proposals, and every sampler has gone over from its random beginning to what it is for.
REHEARSALS = 14


def storage_url(study: Study, folder: Path) -> str:
    """Where the trials of a study are kept: `journal:PATH`, or a URL of SQLAlchemy's."""
    if study.fields.storage == "journal":
        return f"journal:{folder.resolve() / 'journal.log'}"
    if study.fields.storage == "sqlite":
        return f"sqlite:///{folder.resolve() / 'study.db'}"
    return study.fields.storage


def open_storage(url: str) -> BaseStorage:
    """Optuna's storage.

    A journal is the choice for file systems that several machines share, where SQLite's locks do not hold.

    Raises:
        UserError: if it cannot be opened, or is damaged.
    """
    try:
        if url.startswith("journal:"):
            return open_journal(Path(url.removeprefix("journal:")))
        # psycopg 3 is what the extra `postgres` installs. A connection may have been cut while a trial was trained.
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"storage {url} needs {error.name}: pip install '.[postgres]' for PostgreSQL") from None
    except Exception as error:  # SQLAlchemy, its drivers and the file system each have their own
        raise UserError(
            f"storage {url} cannot be opened ({first_line(error)}): check it, or say storage: journal"
        ) from None


def open_study(study: Study, folder: Path) -> optuna.Study:
    """The trials of a study that has begun, to be read.

    Raises:
        UserError: if it has not, or its storage cannot be opened.
    """
    try:
        return optuna.load_study(study_name=study.name, storage=open_storage(storage_url(study, folder)))
    except KeyError:
        raise UserError(f"{folder} holds no trials of the study {study.name}: start it with distrib sweep") from None


def rehearse(study: Study) -> None:
    """Let the sampler propose some trials of a study in memory, where all it cannot do comes out.

    Raises:
        UserError: if it cannot be made, or cannot do with this space and these objectives.
    """
    method = study.fields.sampler
    make_pruner(study.fields.pruner, len(study.rungs))
    trial_run = optuna.create_study(directions=[objective.direction for objective in study.objectives])
    for number in range(REHEARSALS if method.name != "grid" else 1):
        trial_run.sampler = make_sampler(method, number)
        try:
            trial = trial_run.ask()
            study.suggest(trial)
            trial_run.tell(trial, [float(number)] * len(study.objectives))
        except Exception as error:  # samplers, and the packages they need, each have their own
            raise UserError(
                f"sampler {method.name} cannot handle this study ({first_line(error)}): change its options, or choose "
                f"another"
            ) from None


@dataclass(frozen=True)
class TrialFile:
    """What lies in a run's folder as trial.json, so that the run can ask whether it is worth continuing.

    Attributes:
        storage: as `storage_url` gives it.
        study: its name there.
        trial: Optuna's id of the trial.
        score: column of metrics.csv.
        pruner: name and options.
    """

    storage: str
    study: str
    trial: int
    score: str
    pruner: dict[str, Any]

    def write(self, run: Path) -> None:
        """Write it into a run's folder."""
        run.mkdir(parents=True, exist_ok=True)
        RunFolder(run).trial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


class TrialJudge:
    """Tells Optuna how a run does after each epoch, and the run whether to continue; on rank 0.

    Args:
        file: trial.json of the run.

    Raises:
        UserError: if the file or the study cannot be read.
    """

    def __init__(self, file: Path) -> None:
        try:
            trial = TrialFile(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file} cannot be read ({error}): start its study again, which writes it") from None
        self._score = trial.score
        pruner = make_pruner(Method.model_validate(trial.pruner))
        study = optuna.load_study(
            study_name=trial.study,
            storage=open_storage(trial.storage),
            sampler=optuna.samplers.RandomSampler(),  # its settings have long been chosen
            pruner=pruner,
        )
        self._trial = optuna.Trial(study, trial.trial)

    def __call__(self, row: Mapping[str, float]) -> bool:
        """Whether to stop after an epoch.

        Args:
            row: the epoch's row of metrics.csv.
        """
        self._trial.report(row[self._score], int(row["epoch"]))
        return bool(self._trial.should_prune())  # some pruners answer in numpy
