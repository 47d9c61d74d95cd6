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
from distrib.studies.search import TrialFile, TrialJudge, rehearse, storage_url
from distrib.studies.worker import Worker, best_yaml

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
    # pytest's own folders, of its workers too, are nobody else's to enter.
    for each in (folder, *(parent for parent in folder.parents if parent.name.startswith(("pytest-", "popen-")))):
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


@pytest.mark.parametrize(
    "kind", ["journal", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sqlite", "postgres"))]
)
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
    judge = TrialJudge(tmp_path / "run/trial.json")
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
    # And what it advises can be done.
    Worker(a_study(tmp_path, "journal"), tmp_path / "study", print)


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
    refusal(lambda: rehearse(study), *parts)


@pytest.mark.parametrize(
    ("sampler", "objective", "parts"),
    [
        ("{name: tpe, n_startup_trials: ten}", "val_loss", ["tpe", "change its options"]),
        ("{name: tpe, startup: 3}", "val_loss", ["tpe", "startup"]),
        ("{name: cmaes}", "[val_loss, seconds]", ["cmaes"]),
    ],
)
def test_a_sampler_is_rehearsed(tmp_path: Path, sampler: str, objective: str, parts: list[str]) -> None:
    file = tmp_path / "sampled.yaml"
    file.write_text(
        "space: {optim.lr: {low: 0.1, high: 0.2}, optim.momentum: {low: 0.1, high: 0.9}}\n"
        f"sampler: {sampler}\nobjective: {objective}\nbudget: {{trials: 3}}\n"
    )
    refusal(lambda: rehearse(read_study(file)), *parts)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "qmc", "nsgaii", "nsgaiii"])
def test_every_sampler_does_with_every_kind_of_setting(tmp_path: Path, sampler: str) -> None:
    file = tmp_path / "sampled.yaml"
    file.write_text(
        "space: {optim.lr: {low: 1.0e-4, high: 0.1, log: true}, train.epochs: {low: 2, high: 9},\n"
        "  data.flip: [true, false],\n"
        "  optim.name: [adam, sgd], optim.momentum: {low: 0.1, high: 0.9, when: {optim.name: sgd}}}\n"
        f"sampler: {sampler}\nbudget: {{trials: 3}}\n"
    )
    rehearse(read_study(file))


def test_a_grid_whose_lines_changed_places_goes_on_with_the_points_that_are_left(tmp_path: Path) -> None:
    file = tmp_path / "turned.yaml"

    def take(lines: str, count: int) -> list[tuple[object, object]]:
        file.write_text(f"space:\n{lines}sampler: grid\n")
        worker, found = Worker(read_study(file), tmp_path / "study", print), []
        while len(found) < count and (taken := worker.take()) is not None:
            found.append((taken.point["optim.lr"], taken.point["train.batch_size"]))
            worker.optuna.tell(taken.trial, 0.5)
            taken.lock.release()
        return found

    rates, sizes = "  optim.lr: [0.1, 0.2, 0.3]\n", "  train.batch_size: [16, 32]\n"
    found = take(rates + sizes, 3) + take(sizes + rates, 9)
    assert sorted(found) == [(rate, size) for rate in (0.1, 0.2, 0.3) for size in (16, 32)]


def test_a_journal_whose_last_line_was_cut_off_is_mended(tmp_path: Path) -> None:
    study = a_study(tmp_path, "journal")
    worker = Worker(study, tmp_path / "study", print)
    taken = worker.take()
    assert taken is not None
    worker.optuna.tell(taken.trial, 0.5)
    taken.lock.release()
    journal = tmp_path / "study/journal.log"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "trial')
    again = Worker(study, tmp_path / "study", print)
    following = again.take()
    assert following is not None
    assert following.trial.number == 1
    assert len(Worker(study, tmp_path / "study", print).optuna.trials) == 2


def test_empty_lines_in_a_journal_are_skipped(tmp_path: Path) -> None:
    study, journal = a_study(tmp_path, "journal"), tmp_path / "study/journal.log"
    worker = Worker(study, tmp_path / "study", print)
    numbers = []
    for _ in range(3):
        taken = worker.take()
        assert taken is not None
        worker.optuna.tell(taken.trial, 0.5)
        taken.lock.release()
        numbers.append(taken.trial.number)
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join([*lines[:-1], b"\n", lines[-1], b"  \r\n\n"]))
        worker = Worker(study, tmp_path / "study", print)  # and the next one reads what this one has left
    assert numbers == [0, 1, 2]
    again = Worker(study, tmp_path / "study", print)
    with journal.open("ab") as file:  # what it has read is not read anew
        file.write(b"\n\n")
    taken = worker.take()
    assert taken is not None
    assert taken.trial.number == 3
    assert [trial.number for trial in again.optuna.get_trials()] == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", [b'{"op_code": 4, "tri', b"\0" * 40, b"[1]", b"{}", b"\xff\xfe"], ids=repr)
@pytest.mark.parametrize("place", ["middle", "end"])
def test_damage_in_a_journal_is_named_by_file_and_line(tmp_path: Path, damage: bytes, place: str) -> None:
    study, journal = a_study(tmp_path, "journal"), tmp_path / "study/journal.log"
    worker = Worker(study, tmp_path / "study", print)
    taken = worker.take()
    assert taken is not None
    worker.optuna.tell(taken.trial, 0.5)
    taken.lock.release()
    lines = journal.read_bytes().splitlines(keepends=True)
    number = 3 if place == "middle" else len(lines)
    lines[number - 1] = damage + b"\n"
    content = b"".join([lines[0], b"\n", *lines[1:]])
    journal.write_bytes(content)
    refusal(lambda: Worker(study, tmp_path / "study", print), f"{journal}, line {number + 1} is damaged", "restore")
    assert journal.read_bytes() == content
    assert not journal.with_name("journal.log.lock").exists()


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


def test_several_objectives_make_a_front_and_the_best_is_of_it(tmp_path: Path) -> None:
    file = tmp_path / "front.yaml"
    file.write_text("space: {optim.lr: [0.1, 0.2, 0.3]}\nsampler: grid\nobjective: [val_roc_auc, seconds]\n")
    study = read_study(file)
    worker = Worker(study, tmp_path / "study", print)
    for values in ([0.8, 10.0], [0.9, 30.0], [0.7, 20.0]):
        taken = worker.take()
        assert taken is not None
        worker.optuna.tell(taken.trial, values)
        taken.lock.release()
    assert worker.take() is None
    record = worker.publish()
    assert sorted(record.front) == [0, 1]
    assert "optim.lr 0.2" in best_yaml(study, record)
    assert "Pareto" in (tmp_path / "study/study/index.html").read_text()


def test_no_trial_begins_after_the_hours_of_the_budget(tmp_path: Path) -> None:
    study = a_study(tmp_path, "journal", "budget: {hours: 1.0e-9}\n")
    worker = Worker(study, tmp_path / "study", print)
    first = worker.take()
    assert first is not None
    assert worker.take() is None
    first.lock.release()
    again = worker.take()
    assert again is not None, "what has begun is resumed"
    assert (again.trial.number, again.again) == (0, True)
