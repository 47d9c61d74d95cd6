"""`distrib export`: a trained model as a file for other programs.

distrib export runs/celeba --to onnx --out celeba.onnx
"""

from collections.abc import Sequence
from typing import Literal

import tyro

from distrib.base.collection import no_collection
from distrib.base.paths import OptionPath
from distrib.base.program import program


def export(
    model: tyro.conf.Positional[OptionPath],
    to: Literal["onnx"],
    out: OptionPath | None = None,
) -> None:
    """Write a trained model as one file for other programs, checked against torch before it gets its name.

    It takes uint8 RGB images [B, height, width, 3] of the model's input size, any number at once, and gives their
    calibrated probabilities [B, attributes], and the logits.

    Args:
        model: A run folder (its best epoch), a model folder, or a checkpoint.
        to: Format.
        out: File to write; None: model.onnx in the model's folder (in best/ of a run).
    """
    with no_collection():  # takes seconds, for which no --help waits
        from distrib.model.export import export_onnx
        from distrib.model.trained import load

    trained, best = load(model), model / "best"
    file = out or (best if best.is_dir() else model) / "model.onnx"
    made = export_onnx(trained, file)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {len(trained.attributes)} attributes")
    print(f"largest difference from torch: {made.difference:.1e} in a probability")
    print(f"one image: {made.torch_ms:.1f} ms by torch, {made.onnxruntime_ms:.1f} ms by onnxruntime, on this CPU")


@program
def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status, 0."""
    tyro.cli(export, prog="distrib export", args=argv)
    return 0
