"""Where trials are kept: many workers, in processes of their own, on each kind of storage."""

import json
import multiprocessing
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sentences import refusal

from distrib.studies.definition import Study, read_study
from distrib.studies.results import read_record
from distrib.studies.search import Judge, TrialFile, storage_url
from distrib.studies.worker import Worker

WORKERS, LEARNING_RATES = 3, 12


def a_study(folder: Path, storage: str, more: str = "") -> Study:
    file = folder / "storing.yaml"
    rates = [round(0.01 * (i + 1), 2) for i in range(LEARNING_RATES)]
    file.write_text(f"space: {{optim.lr: {rates}}}\nsampler: grid\nobjective: val_loss\nstorage: {storage}\n{more}")
    return read_study(file)


def take_all(study: Study, folder: Path, file: Path) -> None:
    """Take trials until there are none, and write down which."""
    worker, numbers = Worker(study, folder, print), []
    while (taken := worker.take()) is not None:
        assert not taken.again
        numbers.append(taken.trial.number)
        worker.optuna.tell(taken.trial, float(taken.point["optim.lr"] or 0))
        taken.lock.release()
    file.write_text(json.dumps(numbers))


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of its own."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs or os.geteuid() != 0 or not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        pytest.skip("needs PostgreSQL (Debian's postgresql), and root to start it as another user")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("postgres")
    for each in (folder, *folder.parents[:2]):
        each.chmod(0o755)
    shutil.chown(folder, "postgres")
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
    here = programs[-1].parent

    def run(*command: object) -> None:
        subprocess.run([*as_postgres, *map(str, command)], cwd=folder, check=True, capture_output=True)

    run(here / "initdb", "--pgdata", folder / "data", "--auth=trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run(here / "pg_ctl", "start", "-w", "-D", folder / "data", "-l", folder / "log", "-o", options)
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        run(here / "pg_ctl", "stop", "-m", "immediate", "-D", folder / "data")


@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgres"])
def test_many_workers_take_each_trial_once(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    study = a_study(tmp_path, request.getfixturevalue("postgres") if kind == "postgres" else kind)
    folder = tmp_path / "study"
    spawn = multiprocessing.get_context("spawn")
    files = [tmp_path / f"{number}.json" for number in range(WORKERS)]
    processes = [spawn.Process(target=take_all, args=(study, folder, file)) for file in files]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode == 0
    numbers = [number for file in files for number in json.loads(file.read_text())]
    assert sorted(numbers) == list(range(LEARNING_RATES))
    record = read_record(study, Worker(study, folder, print).optuna, folder)
    assert [trial.settings["optim.lr"] for trial in record.trials] == [point["optim.lr"] for point in study.points()]
    assert record.front == (0,)


@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgres"])
def test_a_run_asks_its_study_wherever_that_is_kept(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    storage = request.getfixturevalue("postgres") if kind == "postgres" else kind
    pruner = "pruner: {name: threshold, upper: 1.0}\n"
    (tmp_path / "one").mkdir()
    file = tmp_path / "one" / f"asking-{kind}.yaml"
    file.write_text(f"space: {{optim.lr: [0.1]}}\nsampler: grid\nobjective: val_loss\nstorage: {storage}\n{pruner}")
    study = read_study(file)
    worker = Worker(study, tmp_path / "study", print)
    taken = worker.take()
    assert taken is not None
    url = storage_url(study, tmp_path / "study")
    trial = TrialFile(url, study.name, taken.trial._trial_id, "val_loss", study.fields.pruner.model_dump())
    trial.write(tmp_path / "run")
    judge = Judge(tmp_path / "run/trial.json")
    assert judge({"epoch": 1, "val_loss": 0.5}) is False
    assert judge({"epoch": 2, "val_loss": 1.5}) is True
    assert taken.trial.study.trials[0].intermediate_values == {1: 0.5, 2: 1.5}


def test_a_lost_worker_is_not_one_that_is_at_work(tmp_path: Path) -> None:
    study = a_study(tmp_path, "journal")
    first, second = (Worker(study, tmp_path / "study", print) for _ in range(2))
    held = first.take()
    assert held is not None
    beside = second.take()
    assert beside is not None
    assert (held.trial.number, beside.trial.number) == (0, 1)
    held.lock.release()  # as the end of a process does
    again = second.take()
    assert again is not None
    assert (again.trial.number, again.again, again.point) == (0, True, held.point)


def test_a_database_that_has_the_study_of_another_folder_is_refused(postgres: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/theirs.yaml").write_text(f"space: {{optim.lr: [0.1]}}\nsampler: grid\nstorage: {postgres}\n")
    study = read_study(tmp_path / "a/theirs.yaml")
    Worker(study, tmp_path / "one", print)
    refusal(lambda: Worker(study, tmp_path / "other", print), "theirs", "another name", str(tmp_path / "other"))
    Worker(study, tmp_path / "one", print)


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    study = a_study(tmp_path, "postgresql://nobody@127.0.0.1:1/none")
    refusal(lambda: Worker(study, tmp_path / "study", print), "127.0.0.1:1", "cannot be opened", "journal")


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ("pruner: {name: median, n_startup: 3}", ["median", "n_startup", "did you mean n_startup_trials"]),
        ("pruner: percentile", ["percentile", "refuses its options"]),
        ("pruner: {name: median, n_startup_trials: -1}", ["median", "-1"]),
    ],
)
def test_options_that_optuna_refuses_are_refused_at_the_start(tmp_path: Path, more: str, parts: list[str]) -> None:
    study = a_study(tmp_path, "journal", more)
    refusal(lambda: Worker(study, tmp_path / "study", print), *parts)
    assert not (tmp_path / "study").exists()


def test_the_sampler_proposes_the_same_again(tmp_path: Path) -> None:
    def points(folder: str) -> list[dict[str, object]]:
        file = tmp_path / "search.yaml"
        file.write_text("space: {optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}\nbudget: {trials: 14}\n")
        study = read_study(file)
        worker, found = Worker(study, tmp_path / folder, print), []
        while (taken := worker.take()) is not None:
            found.append(dict(taken.point))
            worker.optuna.tell(taken.trial, float(taken.point["optim.lr"] or 0))
            taken.lock.release()
        return found

    first = points("one")
    assert len(first) == 14
    assert len({each["optim.lr"] for each in first}) == 14
    assert points("two") == first
