"""The training step and the whole pipeline against a plain loop, in one run.

    python benchmarks/step.py --root data/celeba --json benchmarks/results/step.json

Peers, each on batches of the same size and the same ResNet18:
    plain       fp32, NCHW, torch.optim.Adam, a batch held in memory: the loop of a tutorial
    step        distrib's TrainStep (precision and memory format of this machine), a batch held in memory
    end_to_end  the same step fed by the plan and the decoder from the image files
    resident    the same from images that were decoded before, in the memory of a machine without GPUs, or of the GPU
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measure import alternate, in_memory, machine, report, spread
from torch import nn
from torchvision.models import resnet18

from distrib.config import Config
from distrib.data.batch import Batch
from distrib.data.decoders import make_decoder
from distrib.data.plan import Plan
from distrib.data.resident import make_resident_decoder
from distrib.data.splits import make_splits
from distrib.data.table import Table, read_table
from distrib.model.weights import make_model
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.training.optimizer import make_optimizer
from distrib.training.precision import choose_precision
from distrib.training.step import TrainStep


def plain_loop(batch: Batch, steps: int, device: torch.device):
    """Some steps of the tutorial loop."""
    model = resnet18(num_classes=batch.targets_BA.shape[1]).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.BCEWithLogitsLoss()
    images = (batch.images_BHWC.permute(0, 3, 1, 2).float() / 255 - 0.45).div(0.225).contiguous()

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = criterion(model(images), batch.targets_BA)
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def endless(plan: Plan, accumulation: int) -> Iterator:
    epoch = 0
    while True:
        yield from plan.rank_batches(epoch, 0, rank=0, ranks=1, accumulation=accumulation)
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a data set, as data.root")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, nargs=2, default=(178, 178))
    parser.add_argument("--decoder", choices=("auto", "dali", "torch"), default="auto")
    parser.add_argument("--images", type=int, default=4096, help="images that are trained on, at most")
    parser.add_argument("--steps", type=int, default=2, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    config = Config().replace("train", batch_size=options.batch_size)
    config = config.replace(
        "data",
        root=options.root,
        image_size=options.image_size,
        decoder=options.decoder,
        attributes=["Arched_Eyebrows"],
    )
    config = resolve(config)
    if config.train.precision == "auto":
        config = config.replace("train", precision=choose_precision(config, ranks=1).name)
    accelerator = start_ranks(config)
    table: Table = read_table(config.data.root).select(config.data.attributes)
    rows = make_splits(table, config.data, needs=("train",)).train[: options.images]
    plan = Plan(rows, seed=0, batch_size=options.batch_size)
    decoder = make_decoder(config.data, table, accelerator.device, options.batch_size)
    batches = decoder.batches(endless(plan, 1))
    held = next(batches)
    images = in_memory(config.data, table, plan.rows, accelerator.device)
    from_memory = make_resident_decoder(images, config.data, table, accelerator.device).batches(endless(plan, 1))

    net, _ = make_model(config.model, table.attributes, config.train.channels_last, seed=0)
    model, optimizer = accelerator.prepare(net, make_optimizer(net, config.optim))
    agreement = Agreement(StopRequests(), accelerator)
    one_step = TrainStep(config, accelerator, model, optimizer, None, agreement)
    model.train()

    def on_held() -> None:
        for _ in range(options.steps):
            one_step([held], 0)
            agreement.answer()  # as the loop does after each step
        one_step.read()

    def fed_by(batches: Iterator[Batch]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(options.steps):
                one_step([next(batches)], 0)
                agreement.answer()
            one_step.read()

        return run

    peers = {
        "plain": plain_loop(held, options.steps, accelerator.device),
        "step": on_held,
        "end_to_end": fed_by(batches),
        "resident": fed_by(from_memory),
    }
    seconds = alternate(peers, options.rounds, warmup=2)
    trained = options.steps * options.batch_size
    per_second = {name: spread([trained / value for value in values]) for name, values in seconds.items()}
    ratios = {
        "step / plain": [a / b for a, b in zip(seconds["plain"], seconds["step"], strict=True)],
        "end_to_end / step": [a / b for a, b in zip(seconds["step"], seconds["end_to_end"], strict=True)],
        "resident / end_to_end": [a / b for a, b in zip(seconds["end_to_end"], seconds["resident"], strict=True)],
    }
    report(
        {
            "machine": machine("torch", "torchvision", "accelerate", "simplejpeg"),
            "setting": {
                "batch_size": options.batch_size,
                "image_size": list(options.image_size),
                "precision": config.train.precision,
                "channels_last": config.train.channels_last,
                "decoder": config.data.decoder,
                "decoder_threads": config.data.threads,
                "steps_per_round": options.steps,
            },
            "images_per_second": per_second,
            "speed_ratios": {name: spread(values) for name, values in ratios.items()},
        },
        options.json,
    )


if __name__ == "__main__":
    main()
