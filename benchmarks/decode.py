"""Images a second from the image files to batches on the device, for each decoder, in one run.

    python benchmarks/decode.py --root data/celeba --json benchmarks/results/decode.json

On a GPU DALI decodes there ("mixed"); the torch decoder decodes on the CPU and copies.
"""

import argparse
from pathlib import Path

import torch
from measure import alternate, machine, report, spread

from distrib.config import Config
from distrib.data.decoders import dali_installed, make_decoder
from distrib.data.plan import Plan
from distrib.data.splits import make_splits
from distrib.data.table import read_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a data set, as data.root")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, nargs=2, default=(178, 178))
    parser.add_argument("--min-zoom", type=float, default=1.0, help="below 1: random crops, which are resized")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=16, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = Config().data.model_copy(
        update={"root": options.root, "image_size": tuple(options.image_size), "threads": options.threads}
    )
    table = read_table(config.root)
    plan = Plan(make_splits(table, config, needs=("train",)).train, 0, options.batch_size, min_zoom=options.min_zoom)
    requests = [plan.batch(0, step) for step in range(min(options.batches, plan.steps_per_epoch))]
    peers = {}
    for name in ("dali", "torch") if dali_installed() else ("torch",):
        decoder = make_decoder(config.model_copy(update={"decoder": name}), table, device, options.batch_size)

        def run(decoder=decoder) -> None:
            for batch in decoder.batches(requests):
                last = batch
            last.images_BHWC.sum().item()  # wait for the device

        peers[name] = run
    pictures = len(requests) * options.batch_size
    seconds = alternate(peers, options.rounds, warmup=2)
    report(
        {
            "machine": machine("torch", "simplejpeg", *(["nvidia-dali-cuda130"] if "dali" in peers else [])),
            "setting": {
                "batch_size": options.batch_size,
                "image_size": list(options.image_size),
                "min_zoom": options.min_zoom,
                "threads": options.threads,
                "device": device.type,
            },
            "images_per_second": {name: spread([pictures / each for each in s]) for name, s in seconds.items()},
        },
        options.json,
    )


if __name__ == "__main__":
    main()
