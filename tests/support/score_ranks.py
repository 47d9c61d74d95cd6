"""Scores of a best/ folder over all images of a data set, on any number of ranks: JSON on the last line."""

import json
import sys
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

best, root = map(Path, sys.argv[1:])
about = json.loads((best / "model.json").read_text())
config = Config().replace("run", device="cpu").replace("train", precision="no")
config = resolve(config.replace("data", root=root, image_size=about["image_size"]))
accelerator = start_ranks(config)
table = read_table(root).select(about["attributes"])
net, _ = make_model(config.model.model_copy(update={"weights": str(best)}), table.attributes, True, seed=0)
model = accelerator.prepare(net)
rows = np.arange(len(table))
# 7 divides neither 200 nor 100: the last batch is short.
logits = predict_logits(
    accelerator, model, make_decoder(config.data, table, accelerator.device, 7), rows, len(table.attributes), 7
)
scores = score(table.attributes, logits, table.targets).mean()
if accelerator.is_main_process:
    print(json.dumps({**scores, "images": len(logits), "ranks": accelerator.num_processes}), flush=True)
accelerator.end_training()
