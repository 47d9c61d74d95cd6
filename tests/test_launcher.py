"""`distrib train`: configurations of accelerate's, the ranks' own exit status, and signals to the launcher."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from launching import ROOT, clean_environment, read_events
from small_run import settings
from test_stopping import catches, leftovers, until
from torch.distributed import DistNetworkError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError

from distrib.__main__ import train
from distrib.base.errors import UserError
from distrib.ranks.launch import Launch, plan_launch, read_launch, start
from distrib.ranks.stopping import STOPPED, StopRequests
from distrib.training.check import check_start

ONE = "distributed_type: 'NO'\nnum_processes: 1\n"
TWO = "distributed_type: MULTI_GPU\nnum_processes: 2\n"
MACHINES = "distributed_type: MULTI_GPU\nnum_processes: 4\nnum_machines: 2\n"
OTHERS = "main_process_ip: 127.0.0.1\nmain_process_port: 29500\n"
# As an older accelerate wrote it.
OLDER = """\
command_file: null
compute_environment: LOCAL_MACHINE
deepspeed_config: {}
distributed_type: MULTI_GPU
downcast_bf16: 'no'
dynamo_backend: 'NO'
fsdp_config: {}
gpu_ids: all
machine_rank: 0
main_process_ip: null
main_process_port: null
main_training_function: main
megatron_lm_config: {}
mixed_precision: 'no'
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
use_cpu: false
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Where a test writes a configuration of accelerate's."""
    return tmp_path / "launch.yaml"


@pytest.mark.parametrize(
    ("text", "launch"),
    [
        (ONE, Launch(1)),
        ("distributed_type: NO\nmixed_precision: no\nuse_cpu: no\n", Launch(1)),  # false, for YAML
        (TWO, Launch(2)),
        (OLDER, Launch(2)),
        (TWO + "main_process_port: 29500\nmachine_rank: 0\n", Launch(2)),  # a free one is taken on one machine
        (ONE + "gpu_ids: 1\nmixed_precision: bf16\n", Launch(1, gpus="1", precision="bf16")),
        (TWO + "gpu_ids: 0, 3\nenable_cpu_affinity: true\n", Launch(2, gpus="0,3", affinity=True)),
        ("distributed_type: MULTI_CPU\nnum_processes: 2\n", Launch(2, gpus="-1")),
        (ONE + "use_cpu: true\n", Launch(1, gpus="-1")),
        (MACHINES + OTHERS + "machine_rank: 1\n", Launch(4, 2, 1, "127.0.0.1", 29500)),
        (MACHINES + OTHERS + "rdzv_backend: c10d\n", Launch(4, 2, 0, "127.0.0.1", 29500, "c10d")),
    ],
)
def test_what_a_configuration_of_accelerates_asks_for(text: str, launch: Launch, written: Path) -> None:
    written.write_text(text)
    read = read_launch(written)
    assert read.source == f"--launch {written}"
    assert {**vars(read), "source": None} == vars(launch)


@pytest.mark.parametrize("name", ["cpu", "one_gpu", "one_node", "many_nodes"])
def test_the_ready_made_ones_are_read(name: str) -> None:
    assert read_launch(ROOT / f"launch/{name}.yaml").ranks >= 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["says no distributed_type: expected NO or MULTI_GPU"]),
        ("num_processes: 2", ["says no distributed_type"]),
        ("num_processes: [", ["line 1 is not valid YAML"]),
        ("two ranks, please", ["holds a str: expected keys such as num_processes:"]),
        ("\udcff\udcfe", ["cannot be read"]),
        *[(f"distributed_type: {kind}\n", [f"says distributed_type: {kind}: expected NO or MULTI_GPU"])
          for kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TPU", "XLA", "MULTI_XPU")],
        ("compute_environment: AMAZON_SAGEMAKER\n", ["compute_environment: AMAZON_SAGEMAKER: expected LOCAL_MACHINE"]),
        (ONE + "num_proceses: 2\n", ["has the key num_proceses (did you mean num_processes?)", "accelerate 1."]),
        (OLDER + "ipex_config: {}\n", ["has the key ipex_config, which accelerate 1.", "remove it"]),
        (TWO + "deepspeed_config: {zero_stage: 2}\n", ["has deepspeed_config"]),
        (TWO + "dynamo_config: {dynamo_backend: INDUCTOR}\n", ["has dynamo_config"]),
        ("distributed_type: MULTI_GPU\n", ["says no num_processes: expected a whole number from 1 on"]),
        *[(f"distributed_type: MULTI_GPU\nnum_processes: {number}\n", [f"says num_processes: {number}: expected"])
          for number in ("0", "-1", "1.5", "two")],
        ("distributed_type: 'NO'\nnum_processes: 4\n", ["num_processes: 4", "is one process: say MULTI_GPU"]),
        ("distributed_type: 'NO'\nnum_machines: 2\n", ["num_machines: 2", "is one process: say MULTI_GPU"]),
        ("distributed_type: MULTI_GPU\nnum_processes: 3\nnum_machines: 2\n", ["expected a multiple of 2"]),
        (MACHINES + "main_process_port: 29500\nmachine_rank: 1\n", ["no main_process_ip"]),
        (MACHINES + OTHERS, ["says no machine_rank: expected a whole number from 0 to 1"]),
        (MACHINES + OTHERS + "machine_rank: 2\n", ["says machine_rank: 2: expected a whole number from 0 to 1"]),
        (MACHINES + "main_process_ip: 127.0.0.1\nmachine_rank: 1\n", ["says no main_process_port"]),
        (MACHINES + OTHERS + "machine_rank: 0\nrdzv_backend: mpi\n", ["rdzv_backend: mpi: expected static or c10d"]),
        (MACHINES + "main_process_ip: nobody.invalid\nmain_process_port: 1\nmachine_rank: 1\n",
         ["main_process_ip: nobody.invalid, which this machine does not know"]),
        (ONE + "mixed_precision: fp32\n", ["says mixed_precision: fp32: expected no or fp16 or bf16"]),
        (ONE + "gpu_ids: first\n", ["says gpu_ids: first: expected all, or numbers such as '0,1'"]),
        (ONE + "gpu_ids: [0, 1]\n", ["says gpu_ids: [0, 1]"]),
        (ONE + "use_cpu: 'maybe'\n", ["says use_cpu: maybe: expected true or false"]),
    ],
)  # fmt: skip
def test_what_cannot_be_launched_is_one_sentence(text: str, parts: list[str], written: Path) -> None:
    written.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError) as refused:
        read_launch(written)
    assert str(refused.value).startswith(f"--launch {written}")
    assert all(part in str(refused.value) for part in parts), refused.value


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [
        (TWO, ["--run.ranks", 3], ["run.ranks is 3, and --launch", "says num_processes: 2: make them equal"]),
        (TWO, ["--train.batch-size", 33], ["train.batch_size 33 cannot be shared out evenly over 2 ranks"]),
        (ONE + "use_cpu: true\n", ["--run.device", "cuda"], ["run.device is cuda, and --launch", "hides the GPUs"]),
        (ONE + "gpu_ids: 97\n", ["--run.device", "auto"], ["says gpu_ids: 97, and torch finds 0 of these GPUs"]),
        (None, ["--launch", "."], ["--launch . is a folder: name a configuration"]),
        (None, ["--launch", "nowhere.yaml"], ["--launch nowhere.yaml is not a file: name a configuration"]),
        (None, ["--launch"], ["--launch names no file"]),
        (TWO, ["--launch=other.yaml"], ["--launch is given 2 times"]),
    ],
)
def test_what_is_in_the_way_of_a_launch_is_said_before_it(
    text: str | None,
    options: list[object],
    parts: list[str],
    written: Path,
    faces: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # and taken back afterwards
    file = []
    if text is not None:
        written.write_text(text)
        file = ["--launch", written]
    run = written.parent / "run"
    assert train([str(each) for each in [*settings(faces, run), *file, *options]]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert all(part in sentence for part in parts), sentence
    assert not run.exists()


def test_ranks_without_the_gpus_that_they_were_to_have_are_said(
    faces: Path, tmp_path: Path, written: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks themselves cannot say it: on the CPU they are started with the GPUs hidden."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # as with a driver that is too old
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # so that what is set here is taken back afterwards
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    written.write_text(TWO)
    asked = [str(each) for each in settings(faces, tmp_path / "run", "--run.device", "auto")]
    assert not plan_launch(asked, written, check_start).on_gpus
    assert "run.device auto found no GPU" in capsys.readouterr().err
    written.write_text(TWO + "gpu_ids: '-1'\n")
    plan_launch(asked, written, check_start)
    assert "found no GPU" not in capsys.readouterr().err


def test_a_port_that_is_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match=f"machine 0 of 2 .*{port}.* is machine 0's and free") as refused:
            start(Launch(2, 2, 0, "127.0.0.1", port), [], StopRequests())
    assert "--main_process_port" not in str(refused.value)


def ending_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start ranks by a launcher that ends so."""

    def launch_command(_: object) -> None:
        raise error

    monkeypatch.setattr("accelerate.commands.launch.launch_command", launch_command)
    start(Launch(2), [], StopRequests())


@pytest.mark.parametrize(
    "error", [RendezvousTimeoutError("late"), RendezvousConnectionError("lost"), DistNetworkError("no")]
)
def test_ranks_that_do_not_meet_are_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=rf"no ranks could be started on this machine \({type(error).__name__}: {error}\)"
    ):
        ending_with(error, monkeypatch)


@pytest.mark.parametrize("error", [KeyError("ranks"), TypeError("a bug"), SystemExit(3)])
def test_an_error_in_the_launcher_itself_is_not_dressed_as_the_users(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(error)) as raised:
        ending_with(error, monkeypatch)
    assert raised.value is error


def distrib_train(*arguments: object, under: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*under, sys.executable, "-m", "distrib", "train", *map(str, arguments)],
        cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also under nohup
    )  # fmt: skip


def long_run(faces: Path, folder: Path, ranks: int) -> list[object]:
    """A run that does not end by itself, launched as a file says."""
    file = ROOT / "launch" / ("one_gpu.yaml" if ranks == 1 else "cpu.yaml")
    return [*settings(faces, folder, "--tracking.mode", "disabled", "--train.epochs", 999), "--launch", file]


def under_way(folder: Path) -> None:
    until(lambda: list((folder / "checkpoints").glob("step-*")))


def test_one_rank_of_a_launch_configuration_is_stopped_and_saves(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = distrib_train(*long_run(faces, folder, ranks=1))
    under_way(folder)
    running.send_signal(signal.SIGTERM)
    said, errors = running.communicate(timeout=60)
    assert running.returncode == STOPPED, errors
    assert "and saved; resume with --config" in said
    assert "Traceback" not in errors
    assert read_events(folder)[-1]["reason"] == "SIGTERM"
    assert leftovers(folder) == []


def test_a_signal_before_there_is_a_rank_is_a_stop_too(faces: Path, tmp_path: Path) -> None:
    running = distrib_train(*long_run(faces, tmp_path / "run", ranks=2))
    until(lambda: catches(running.pid, signal.SIGUSR1))  # its imports take seconds; it listens before them
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == STOPPED
    assert errors.startswith("distrib: stopped by SIGINT")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "slow"), [(signal.SIGTERM, 35), (signal.SIGINT, 0)])
def test_a_signal_to_the_launcher_waits_for_its_ranks_to_save(
    number: signal.Signals, slow: float, faces: Path, tmp_path: Path
) -> None:
    """However long that takes: torch's launcher would kill after 30 seconds what it has sent a signal to."""
    folder = tmp_path / "run"
    running = distrib_train(*long_run(faces, folder, ranks=2))
    under_way(folder)
    ranks = psutil.Process(running.pid).children()
    ranks[0].suspend()
    running.send_signal(number)
    time.sleep(slow)
    ranks[0].resume()
    said, errors = running.communicate(timeout=60)
    assert running.returncode == STOPPED, errors
    assert "and saved; resume with --config" in said
    assert "Traceback" not in errors
    assert read_events(folder)[-1]["event"] == "stop"
    assert not any(rank.is_running() for rank in ranks)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_a_closed_terminal_is_nothing_under_nohup(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = distrib_train(*long_run(faces, folder, ranks=2), under=("nohup",))
    under_way(folder)
    os.killpg(running.pid, signal.SIGHUP)  # as a shell that ends does it
    steps = max(path.name for path in folder.glob("checkpoints/step-*"))
    until(lambda: max(path.name for path in folder.glob("checkpoints/step-*")) > steps)
    running.send_signal(signal.SIGUSR1)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == STOPPED, errors
    assert read_events(folder)[-1]["event"] == "stop"


@pytest.mark.slow
def test_ranks_that_are_only_starting_are_stopped_too(faces: Path, tmp_path: Path) -> None:
    running = distrib_train(*long_run(faces, tmp_path / "run", ranks=2))
    until(lambda: any("train.py" in " ".join(each.cmdline()) for each in psutil.Process(running.pid).children()))
    ranks = psutil.Process(running.pid).children()
    running.send_signal(signal.SIGHUP)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == STOPPED, errors
    assert "Traceback" not in errors
    assert not any(rank.is_running() for rank in ranks)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_machine_that_waits_for_the_others_can_be_stopped(faces: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "launch.yaml"
    file.write_text(
        f"{MACHINES.replace('4', '2')}main_process_ip: 127.0.0.1\nmain_process_port: {port}\nmachine_rank: 0\n"
    )
    running = distrib_train(*settings(faces, tmp_path / "run", "--launch", file))
    until(lambda: any(each.laddr.port == port for each in psutil.Process(running.pid).net_connections("tcp")))
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == STOPPED, errors
    assert "there are no ranks yet" in errors
