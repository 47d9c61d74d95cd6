"""The job scripts on a real Slurm, with programs that only write down how they were called."""

from pathlib import Path

import pytest
from cluster import GPUS, Cluster, wait_until
from launching import ROOT

EXPLAIN, TRAIN = ROOT / "slurm/explain.sh", ROOT / "slurm/train.sh"
TWO_CPU_NODES = ("--nodes=2", "--gpus-per-node=0", "--mincpus=2", "--mem=2G")


def log_of(place: Path, job: str, name: str = "distrib-train") -> str:
    return (place / f"{name}-{job}.log").read_text()


def launches(place: Path, node: str) -> list[list[str]]:
    """OMP_NUM_THREADS, CUDA_VISIBLE_DEVICES and the arguments of each `accelerate` that was started on a node."""
    return [line.split("\t")[:-1] for line in (place / f"launched-{node}").read_text().splitlines()]


def option(words: list[str], name: str) -> str:
    """The value of an option; of several the last one, which is the one that counts."""
    return words[len(words) - words[::-1].index(name)]


def test_the_nodes_are_machines_of_their_own(cluster: Cluster) -> None:
    listen = "import socket; server = socket.create_server(('', 7000)); server.accept(); server.accept()"
    options = ("--nodelist=node1", "--output=none", "--wrap", f'python3 -c "{listen}"')
    job = cluster.submit(*options, cwd=cluster.folder)
    connect = "import socket; socket.create_connection(('{}', 7000), timeout=2)"

    def reaches(address: str, on: str) -> bool:
        return cluster.on(on, "python3", "-c", connect.format(address)).returncode == 0

    wait_until(lambda: reaches("localhost", on="node1"), 20, "node1 to listen")
    assert not reaches("localhost", on="node2")
    assert reaches("node1", on="node2")
    cluster.run("scancel", job)
    assert set(cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", "hostname").stdout.split()) == {"node1", "node2"}


# --- explain.sh


def test_explain_waits_for_a_training_and_comes_even_if_it_failed(cluster: Cluster, stubs: Path) -> None:
    small = ("--mincpus=2", "--mem=100M", "--gpus-per-node=0")
    training = cluster.submit(*small, "--wrap", "sleep 1; mkdir 'runs/new run'; exit 1", cwd=stubs)
    options = (f"--dependency=afterany:{training}", EXPLAIN, "runs/new run", "--only", "a b")
    job = cluster.submit(*small, *options, cwd=stubs)
    assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job, "distrib-explain")
    assert cluster.ended(training)["JobState"] == "FAILED"
    called = (stubs / "called").read_text().splitlines()
    assert called == [str(stubs), "2", "explain", "runs/new run", "--only", "a b"]


def test_explain_asks_for_a_gpu_and_its_log_says_what_is_wrong(cluster: Cluster, stubs: Path) -> None:
    job = cluster.submit(EXPLAIN, "runs/nothing", cwd=stubs)
    known = cluster.ended(job)
    assert known["ExitCode"] == "2:0"
    assert "gres:gpu:1" in known["TresPerNode"]
    assert "runs/nothing" in log_of(stubs, job, "distrib-explain")


# --- train.sh: what it starts


def test_one_gpu_is_what_a_training_gets_unless_it_says_otherwise(cluster: Cluster, stubs: Path) -> None:
    job = cluster.submit(TRAIN, "configs/celeba.yaml", "--data.attributes", "a b", "*", cwd=stubs)
    assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job)
    [[threads, gpus, *words]] = launches(stubs, "node1")
    assert (threads, gpus) == ("12", "0")
    assert words[:3] == ["launch", "--machine_rank", "0"]
    assert option(words, "--num_processes") == option(words, "--num_machines") == option(words, "--run.ranks") == "1"
    script = words.index("distrib/train.py")
    assert words[script + 1 :] == [
        "--run.device", "cuda", "--config", "configs/celeba.yaml", "--data.attributes", "a b", "*", "--run.ranks", "1",
    ]  # fmt: skip


def test_nodes_and_gpus_of_the_command_line_decide_the_shape(cluster: Cluster, stubs: Path) -> None:
    job = cluster.submit("--nodes=2", f"--gpus-per-node={GPUS}", TRAIN, "--config", "a.yaml", cwd=stubs)
    assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job)
    for number, node in enumerate(cluster.nodes):
        [[threads, gpus, *words]] = launches(stubs, node)
        assert (threads, gpus) == ("12", "0,1")  # threads: of 24 cores, for each of two ranks
        assert option(words, "--machine_rank") == str(number)
        assert option(words, "--num_machines") == "2"
        assert option(words, "--num_processes") == option(words, "--run.ranks") == "4"
        assert option(words, "--main_process_ip") == "node1"
        assert option(words, "--main_process_port") == str(10000 + 10 * int(job) % 20000)
        assert option(words, "--run.device") == "cuda"
        assert "--resume" not in words


def test_without_gpus_it_trains_on_cpus(cluster: Cluster, stubs: Path) -> None:
    arguments = (*TWO_CPU_NODES, TRAIN, "--config", "a.yaml", "--run.device", "auto")
    job = cluster.submit(*arguments, cwd=stubs, RANKS_PER_NODE="2")
    assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job)
    [[threads, gpus, *words]] = launches(stubs, "node2")
    assert (threads, gpus) == ("1", "")
    assert option(words, "--num_processes") == option(words, "--run.ranks") == "4"
    assert words.index("cpu") < words.index("auto"), "what the user says comes later, and wins"


@pytest.mark.parametrize("export", ["NONE", "MAX_RESTARTS"])
def test_what_sbatch_does_not_export_is_not_left_out_of_the_steps(cluster: Cluster, stubs: Path, export: str) -> None:
    options = (f"--export={export}", *TWO_CPU_NODES, TRAIN, "--config", "a.yaml")
    job = cluster.submit(*options, cwd=stubs, MAX_RESTARTS="0")
    assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job)
    assert [len(launches(stubs, node)) for node in cluster.nodes] == [1, 1]


@pytest.mark.parametrize("options", [["--exclusive"], ["--gres=gpu:2"]])
def test_every_gpu_that_a_node_gives_has_a_rank(cluster: Cluster, stubs: Path, options: list[str]) -> None:
    job = cluster.submit(*options, "--mem=2G", TRAIN, "--config", "a.yaml", cwd=stubs)
    assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job)
    [[_, gpus, *words]] = launches(stubs, "node1")
    assert (gpus, option(words, "--num_processes"), option(words, "--run.device")) == ("0,1", "2", "cuda")


def test_a_whole_node_without_gpus_trains_on_cpus(cluster: Cluster, stubs: Path) -> None:
    options = ("--exclusive", "--gpus-per-node=0", "--mem=2G")
    job = cluster.submit(*options, TRAIN, "--config", "a.yaml", cwd=stubs)
    assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job)
    [[_, _, *words]] = launches(stubs, "node1")
    assert (option(words, "--num_processes"), option(words, "--run.device")) == ("1", "cpu")


def test_cores_are_asked_for_by_gpu_and_else_by_node(cluster: Cluster, stubs: Path) -> None:
    """A step has all cores of its job, without GPUs too, where one that goes by GPUs could not start."""
    (stubs / "does").write_text('echo "$SLURM_CPUS_PER_TASK" >cores\n')
    for options, cores in (
        (["--gpus-per-node=1"], 12),
        (["--gpus-per-node=2"], 24),
        (["--gpus-per-node=2", "--cpus-per-gpu=6"], 12),
        (["--gpus-per-node=0"], 8),
        (["--gpus-per-node=0", "--mincpus=3"], 3),
    ):
        job = cluster.submit(*options, "--mem=2G", TRAIN, "--config", "a.yaml", cwd=stubs)
        assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job)
        assert (stubs / "cores").read_text() == f"{cores}\n", options


def test_a_node_where_no_step_can_start_is_one_sentence(cluster: Cluster, stubs: Path) -> None:
    """srun fails, as it does where its environment, the layout or a node does not suit it; nothing was trained."""
    srun = stubs / ".venv/bin/srun"
    srun.write_text("#!/bin/sh\necho 'srun: error: Unable to create step' >&2\nexit 1\n")
    srun.chmod(0o755)
    job = cluster.submit("--gpus-per-node=0", "--mem=2G", TRAIN, "--config", "a.yaml", cwd=stubs, STAGE="/dev/shm")
    known = cluster.ended(job)
    assert (known["ExitCode"], known["Restarts"]) == ("2:0", "0"), log_of(stubs, job)
    assert "crashed" not in log_of(stubs, job)
    errors = [line for line in log_of(stubs, job).splitlines() if line.startswith("distrib: error: ")]
    assert len(errors) == 1
    assert "no step can start as it should on node1 (see above)" in errors[0]
    assert not (stubs / "launched-node1").exists()


def test_a_node_that_does_not_see_the_repository_is_named(cluster: Cluster, stubs: Path) -> None:
    cluster.on("node2", "mount", "-t", "tmpfs", "tmpfs", stubs / "distrib")
    try:
        job = cluster.submit(*TWO_CPU_NODES, TRAIN, "--config", "a.yaml", cwd=stubs)
        assert cluster.ended(job)["ExitCode"] == "2:0", log_of(stubs, job)
    finally:
        cluster.on("node2", "umount", stubs / "distrib")
    assert f"distrib: node2 sees no distrib/train.py in {stubs}, or has no accelerate" in log_of(stubs, job)
    assert "no step can start as it should on node[1-2] (see above)" in log_of(stubs, job)
    assert not (stubs / "launched-node1").exists()


def test_submitted_elsewhere_it_says_where_to_submit(cluster: Cluster, stubs: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    small = ("--gpus-per-node=0", "--mem=2G")
    job = cluster.submit(*small, TRAIN, "--config", "a.yaml", cwd=elsewhere)
    assert cluster.ended(job)["ExitCode"] == "2:0"
    assert "has no distrib/train.py: submit in the repository, or say sbatch --chdir" in log_of(elsewhere, job)
    job = cluster.submit(*small, f"--chdir={stubs}", TRAIN, "--config", "a.yaml", cwd=elsewhere)
    assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job)


@pytest.mark.slow
def test_jobs_of_an_array_are_requeued_one_by_one(cluster: Cluster, stubs: Path) -> None:
    """The last job of an array has the number of the array itself, by which Slurm takes all of its jobs."""
    (stubs / "does").write_text(
        'touch "began-$SLURM_ARRAY_TASK_ID"\n'
        "while [ ! -e began-0 ] || [ ! -e began-1 ]; do sleep 0.2; done\n"
        '[ "$SLURM_JOB_ID" = "$SLURM_ARRAY_JOB_ID" ] || { sleep 10; exit 0; }\n'
        '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0\n'
        'mkdir -p "runs/a run/checkpoints/step-00000001"\n'
        'scancel --batch --signal=USR1 "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; sleep 1; exit 1\n'
    )
    few = ("--gpus-per-node=0", "--mincpus=1", "--mem=1G", "--array=0-1", "--output=log-%a")
    job = cluster.submit(*few, TRAIN, "--config", "a.yaml", cwd=stubs)
    ends = [cluster.ended(f"{job}_{number}") for number in (0, 1)]
    logs = [(stubs / f"log-{number}").read_text() for number in (0, 1)]
    assert [end["JobState"] for end in ends] == ["COMPLETED", "COMPLETED"], logs
    assert sorted(end["Restarts"] for end in ends) == ["0", "1"], logs


# --- train.sh: what it does when training ends


def test_a_crash_restarts_in_place_up_to_a_limit(cluster: Cluster, stubs: Path) -> None:
    # It crashes when the other node has begun: Slurm 22.05 may tell a step too early to end, and then never again.
    (stubs / "does").write_text(
        '[ "$SLURM_NODEID" = 0 ] || sleep 300\n'
        'until [ "$(wc -l <launched-node2)" -eq "$(wc -l <launched-node1)" ]; do sleep 0.1; done\nsleep 0.5; exit 1\n'
    )
    job = cluster.submit(*TWO_CPU_NODES, TRAIN, "--config", "a.yaml", cwd=stubs, MAX_RESTARTS="2")
    assert cluster.ended(job)["ExitCode"] == "1:0"
    log = log_of(stubs, job)
    assert "restart 2 of 2" in log
    assert log.endswith("distrib: error: training crashed (see above), and MAX_RESTARTS is 2\n")
    first, *again = launches(stubs, "node1")
    assert "--resume" not in first
    assert [option(words, "--resume") for words in again] == ["auto", "auto"]
    ports = {option(words, "--main_process_port") for words in [first, *again]}
    assert len(ports) == 3, "what is left of a crashed start must not be in the way of the next"
    assert cluster.job(job)["Restarts"] == "0"


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_resume_of_the_command_line_counts_until_there_is_a_checkpoint(
    cluster: Cluster, stubs: Path, checkpoint: bool
) -> None:
    if checkpoint:
        (stubs / "runs/a run/checkpoints/step-00000002").mkdir(parents=True)
    (stubs / "does").write_text("[ -e once ] || { touch once; exit 1; }\n")
    job = cluster.submit(
        "--gpus-per-node=0", "--mem=2G", TRAIN, "--config", "a.yaml", "--resume", "runs/other", cwd=stubs
    )
    assert cluster.ended(job)["JobState"] == "COMPLETED", log_of(stubs, job)
    first, again = launches(stubs, "node1")
    assert option(first, "--resume") == "runs/other"
    assert option(again, "--resume") == ("auto" if checkpoint else "runs/other")


def test_a_training_that_somebody_stopped_is_not_started_again(cluster: Cluster, stubs: Path) -> None:
    (stubs / "runs/a run/preempt").touch()  # left behind by an earlier run
    (stubs / "runs/a run/events.jsonl").write_text('{"event": "stop"}\n')  # of an earlier run
    (stubs / "does").write_text(
        "[ ! -e 'runs/a run/preempt' ] || exit 3\n"
        "[ -e once ] || { touch once; exit 1; }\n"
        "echo '{\"event\": \"stop\"}' >>'runs/a run/events.jsonl'\nexit 1\n"
    )
    job = cluster.submit("--gpus-per-node=0", "--mem=2G", TRAIN, "--config", "a.yaml", cwd=stubs)
    assert cluster.ended(job)["ExitCode"] == "75:0", log_of(stubs, job)
    assert len(launches(stubs, "node1")) == 2
    assert "was stopped and has saved; to resume: sbatch slurm/train.sh … --run.folder runs/a run" in log_of(stubs, job)


@pytest.mark.slow
def test_starts_that_come_no_step_further_are_not_repeated_for_ever(cluster: Cluster, stubs: Path) -> None:
    (stubs / "does").write_text(
        'scancel --batch --signal=USR1 "$SLURM_JOB_ID"; sleep 1; touch now\n'
        "[ ! 'runs/a run/preempt' -nt now ] || touch dated-ahead\nexit 1\n"
    )
    job = cluster.submit("--gpus-per-node=0", "--mem=2G", TRAIN, "--config", "a.yaml", cwd=stubs)
    assert cluster.ended(job)["ExitCode"] == "75:0", log_of(stubs, job)
    assert cluster.job(job)["Restarts"] == "2"
    assert "ask for more --time" in log_of(stubs, job)
    assert (stubs / "dated-ahead").exists(), "ranks that are still to start would take it for a leftover"
    assert [("--resume" in words) for words in launches(stubs, "node1")] == [False, True, True]


@pytest.mark.slow
def test_starts_in_vain_count_only_in_a_row(cluster: Cluster, stubs: Path) -> None:
    """The first, third and fourth starts save something, the others do not."""
    (stubs / "does").write_text(
        "start=$((SLURM_RESTART_COUNT + 1))\n"
        'case $start in 1 | 3 | 4) mkdir -p "runs/a run/checkpoints/step-0000000$start" ;; esac\n'
        'scancel --batch --signal=USR1 "$SLURM_JOB_ID"; sleep 1; exit 1\n'
    )
    job = cluster.submit("--gpus-per-node=0", "--mem=2G", TRAIN, "--config", "a.yaml", cwd=stubs)
    assert cluster.ended(job)["ExitCode"] == "75:0", log_of(stubs, job)
    assert cluster.job(job)["Restarts"] == "6", "the fifth to the seventh start"
    assert not list((stubs / "runs/a run").glob(".*"))


def test_what_a_person_has_to_mend_in_the_course_of_a_training_ends_the_job(cluster: Cluster, stubs: Path) -> None:
    (stubs / "runs/a run/events.jsonl").write_text('{"event": "error"}\n')  # mended since
    (stubs / "does").write_text(
        "[ -e once ] || { touch once; exit 1; }\necho '{\"event\": \"error\"}' >>'runs/a run/events.jsonl'\nexit 1\n"
    )
    job = cluster.submit("--gpus-per-node=0", "--mem=2G", TRAIN, "--config", "a.yaml", cwd=stubs)
    assert cluster.ended(job)["ExitCode"] == "2:0", log_of(stubs, job)
    assert len(launches(stubs, "node1")) == 2
    assert log_of(stubs, job).endswith("distrib: error: training has met what a person has to mend (see above)\n")


def test_a_data_set_that_cannot_be_staged_is_one_sentence(cluster: Cluster, stubs: Path) -> None:
    job = cluster.submit("--gpus-per-node=0", "--mem=2G", TRAIN, "--config", "a.yaml", cwd=stubs, STAGE="/proc")
    assert cluster.ended(job)["ExitCode"] == "2:0"
    errors = [line for line in log_of(stubs, job).splitlines() if line.startswith("distrib: error: ")]
    assert len(errors) == 1
    assert "data set could not be copied to STAGE /proc" in errors[0]
    assert not (stubs / "launched-node1").exists()
