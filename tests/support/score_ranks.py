"""Scores of a best/ folder over all images of a data set, on any number of ranks."""

import json
from pathlib import Path

import numpy as np

from distrib.config import Config
from distrib.data.decoders import make_decoder
from distrib.data.table import read_table
from distrib.model.weights import make_model
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.scoring.evaluation import predict_logits
from distrib.scoring.metrics import score


def score_here(best: Path, root: Path) -> dict[str, float]:
    """On this rank: the mean scores, and of how many images and ranks they are."""
    about = json.loads((best / "model.json").read_text())
    config = Config().replace("run", device="cpu").replace("train", precision="no")
    config = resolve(config.replace("data", root=root, image_size=about["image_size"]))
    accelerator = start_ranks(config)
    table = read_table(root).select(about["attributes"])
    net, _ = make_model(config.model.model_copy(update={"weights": str(best)}), table.attributes, True, seed=0)
    model = accelerator.prepare(net)
    rows = np.arange(len(table))
    # 7 divides neither 200 nor 100: the last batch is short.
    decoder = make_decoder(config.data, table, accelerator.device, 7)
    logits = predict_logits(accelerator, model, decoder, rows, len(table.attributes), 7, zoom=1.0)
    scores = score(table.attributes, logits, table.targets).mean()
    ranks = accelerator.num_processes
    accelerator.end_training()
    return {**scores, "images": len(logits), "ranks": ranks}
