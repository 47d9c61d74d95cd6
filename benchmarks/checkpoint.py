"""What a checkpoint costs the step: written in the background, and by the loop itself.

    python benchmarks/checkpoint.py --json benchmarks/results/checkpoint.json

Peers, each so many steps of ResNet18 with AdamW on a batch in memory, in turns:
    none         no checkpoint
    background   one in the middle, by `CheckpointWriter`: the step waits for a copy of the state
    waiting      the same, and the loop waits until it is on the disk
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from measure import alternate, machine, report, spread

from distrib.config import Config
from distrib.data.batch import Batch
from distrib.model.network import AttributeClassifier
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.training.checkpoint import CheckpointWriter, Contents, Progress
from distrib.training.optimizer import make_optimizer
from distrib.training.step import TrainStep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, nargs=2, default=(178, 178))
    parser.add_argument("--steps", type=int, default=10, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; None: the temporary folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    config = resolve(Config(), like="no")
    accelerator = start_ranks(config)
    net = AttributeClassifier(40, config.train.channels_last)
    net.to(accelerator.device)
    model, optimizer = accelerator.prepare(net, make_optimizer(net, config.optim))
    agreement = Agreement(StopRequests(), accelerator)
    one_step = TrainStep(config, accelerator, model, optimizer, None, agreement)
    model.train()
    batch = Batch(
        torch.randint(0, 256, (options.batch_size, *options.image_size, 3), dtype=torch.uint8).to(accelerator.device),
        torch.randint(0, 2, (options.batch_size, 40)).float().to(accelerator.device),
        torch.arange(options.batch_size),
    )
    stalls: dict[str, list[float]] = {"background": [], "waiting": []}

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        writer = CheckpointWriter(Path(folder), "benchmark", config.to_yaml(), keep=2, failed=None)

        def save(step: int, waiting: bool) -> None:
            began = time.perf_counter()
            writer.save(Contents(net.net.state_dict(), optimizer.state_dict(), None, Progress(), "{}", step))
            if waiting:
                writer.wait()
            stalls["waiting" if waiting else "background"].append(time.perf_counter() - began)

        def steps(kind: str) -> None:
            for step in range(options.steps):
                one_step([batch], 0)
                agreement.answer()  # as the loop does after each step
                if kind != "none" and step == options.steps // 2:
                    one_step.read()  # as the loop does before it saves
                    save(step, kind == "waiting")
            one_step.read()

        seconds = alternate(
            {kind: lambda kind=kind: steps(kind) for kind in ("none", "background", "waiting")}, options.rounds
        )
        writer.wait()
        size = sum(file.stat().st_size for file in next(Path(folder).iterdir()).iterdir())
    extra = {
        kind: [a - b for a, b in zip(seconds[kind], seconds["none"], strict=True)] for kind in ("background", "waiting")
    }
    step_time = [value / options.steps for value in seconds["none"]]
    report(
        {
            "machine": machine("torch", "safetensors"),
            "setting": {
                "batch_size": options.batch_size,
                "image_size": list(options.image_size),
                "steps_per_round": options.steps,
                "precision": config.train.precision,
                "checkpoint_bytes": size,
            },
            "step_seconds": spread(step_time),
            "loop_waits_seconds": {kind: spread(values[1:]) for kind, values in stalls.items()},
            "round_longer_by_seconds": {kind: spread(values) for kind, values in extra.items()},
            "round_longer_by_steps": {
                kind: spread([a / b for a, b in zip(values, step_time, strict=True)]) for kind, values in extra.items()
            },
        },
        options.json,
    )


if __name__ == "__main__":
    main()
