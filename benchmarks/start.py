"""How long the programs take to start, each in a fresh process, in turns.

    python benchmarks/start.py --json benchmarks/results/start.json

Peers:
    torch     `import torch` alone, for scale
    help      distrib predict --help
    predict   distrib predict of one photograph, a drawn face, from start to end
    check     distrib check
    train     distrib train on two ranks on the CPU, until the first step is done and its checkpoint begun; then it is
              asked to stop, which is not timed

A first round, which brings the files into the machine's memory, does not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import machine, report, spread

from distrib.faces import write_faces

DISTRIB = (sys.executable, "-m", "distrib")


def seconds_of(*command: object) -> float:
    """From the start of a process to its end.

    Raises:
        SystemExit: if it fails; with what it said.
    """
    began = time.perf_counter()
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stderr}")
    return seconds


def seconds_until(there: Callable[[], bool], *command: object) -> float:
    """From the start of a process until something is there; it is then asked to stop.

    Raises:
        SystemExit: if it ends without that.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(each) for each in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not there() and process.poll() is None:
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    process.terminate()
    _, said = process.communicate()
    if not there():
        raise SystemExit(f"{command}: exit status {process.returncode} before its first step\n{said}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5, help="of each peer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        faces, model, runs = folder / "faces", folder / "model", folder / "runs"
        write_faces(faces, count=400, seed=0, workers=os.cpu_count() or 1)
        photograph = next((faces / "img_align_celeba").iterdir())
        training = [
            "--data.root", faces, "--data.attributes", "Smiling", "--data.image-size", 112, 112, "--run.device", "cpu",
            "--run.ranks", 2, "--train.batch-size", 16, "--checkpoint.every-steps", 1, "--tracking.mode", "disabled",
        ]  # fmt: skip
        small = ["--train.epochs", 1, "--explain.after-training", False]
        seconds_of(*DISTRIB, "train", *training, *small, "--run.folder", model)

        def train() -> float:
            run = runs / str(time.time_ns())
            first = run / "checkpoints"
            return seconds_until(
                lambda: first.is_dir() and any(first.iterdir()), *DISTRIB, "train", *training, "--run.folder", run
            )

        peers: dict[str, Callable[[], float]] = {
            "torch": lambda: seconds_of(sys.executable, "-c", "import torch"),
            "help": lambda: seconds_of(*DISTRIB, "predict", "--help"),
            "predict": lambda: seconds_of(*DISTRIB, "predict", model, photograph, "--device", "cpu"),
            "check": lambda: seconds_of(*DISTRIB, "check", *training),
            "train": train,
        }
        rounds = [{name: start() for name, start in peers.items()} for _ in range(1 + options.starts)]
    report(
        {
            "machine": machine("torch", "torchvision", "accelerate"),
            "setting": {"images": 400, "image_size": [112, 112], "batch_size": 16, "ranks": 2, "precision": "auto"},
            "load": os.getloadavg()[0],
            "seconds": {name: spread([each[name] for each in rounds[1:]]) for name in peers},
        },
        options.json,
    )


if __name__ == "__main__":
    main()
