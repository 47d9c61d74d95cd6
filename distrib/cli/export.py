"""`distrib export`: a trained model as a file for other programs.

distrib export runs/celeba --to onnx --out celeba.onnx
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from distrib.base.collection import no_collection
from distrib.base.errors import UserError
from distrib.base.paths import OptionPath
from distrib.base.streams import standard_streams


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained model as one file for other programs, checked against torch before it gets its name.

    It takes uint8 RGB images [B, height, width, 3] of the model's input size, any number at once, and gives their
    calibrated probabilities [B, attributes], and the logits.
    """

    model: tyro.conf.Positional[OptionPath]
    """A run folder (its best epoch), a model folder, or a checkpoint."""
    to: Literal["onnx"]
    """Format."""
    out: OptionPath | None = None
    """File to write; None: model.onnx in the model's folder (in best/ of a run)."""


@standard_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0, or 2 for what the user can mend."""
    try:
        options = tyro.cli(ExportOptions, prog="distrib export", args=argv)
        with no_collection():  # takes seconds, for which no --help waits
            from distrib.model.export import export_onnx
            from distrib.model.trained import load

        model = load(options.model)
        best = options.model / "best"
        out = options.out or (best if best.is_dir() else options.model) / "model.onnx"
        made = export_onnx(model, out)
    except UserError as error:
        print(f"distrib: error: {error}", file=sys.stderr)
        return error.exit_status
    size_mb = made.file.stat().st_size / 1e6
    print(f"{made.file}: {size_mb:.1f} MB, {len(model.attributes)} attributes")
    print(f"largest difference from torch: {made.difference:.1e} in a probability")
    print(f"one image: {made.torch_ms:.1f} ms by torch, {made.onnxruntime_ms:.1f} ms by onnxruntime, on this CPU")
    return 0
