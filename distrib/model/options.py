"""What `distrib predict` and `distrib evaluate` are asked for; read before anything that takes long is imported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from distrib.base.paths import OptionPath


@dataclass(frozen=True)
class PredictOptions:
    """Tell the attributes of the faces in photographs.

    Each face is found and aligned as CelebA's images are. Faces count from left to right. An attribute is present
    where its probability reaches its threshold, which was tuned on validation. The exit status is 0, 1 if a photograph
    failed, 2 for a wrong option or model.
    """

    model: Annotated[tyro.conf.Positional[OptionPath], tyro.conf.arg(metavar="MODEL")]
    """A run folder (its best epoch), a model folder, a checkpoint, or an .onnx file."""
    photographs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PHOTO …")]
    """Files, folders (the photographs directly inside), patterns such as '*.jpg', or - for standard input."""
    json: bool = False
    """Print JSON: an object for each face, or for each photograph that failed."""
    csv: bool = False
    """Print CSV: a row for each face."""
    align: bool = True
    """--no-align: give the whole photograph to the model, without looking for faces."""
    attributes: tuple[str, ...] = ()
    """The attributes to tell; none: all that the model knows."""
    thresholds: Literal["f1", "accuracy", "balanced_accuracy"] | None = None
    """Decide by the thresholds that were tuned for this score on validation; None: as the run chose
    (checkpoint.thresholds)."""
    occlusion: tuple[str, ...] = ()
    """Attributes whose occlusion heat map is drawn over the photograph, one image for each face."""
    out: OptionPath = Path("heat-maps")
    """Folder for the heat maps; it is made."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one, else the CPU."""


@dataclass(frozen=True)
class DataOptions:
    """Which images and labels; what is left out is as it was for the model's training."""

    root: OptionPath | None = None
    """Folder of the data set; None: the one that the model was trained on."""
    split: Literal["official", "identity", "image"] | None = None
    """official: the data set's own split; identity: random, no identity in two splits; image: random by image."""
    split_fractions: tuple[float, float, float] | None = None
    """Shares of training, validation and test for the random splits; they add up to 1."""
    split_seed: int | None = None
    """Seed of the random splits."""
    missing: Literal["stop", "skip"] | None = None
    """What to do about rows whose image is missing: stop, or skip them."""
    decoder: Literal["auto", "dali", "torch"] = "auto"
    """dali: NVIDIA DALI, on the GPU where there is one; torch: worker threads on the CPU; auto: dali on a GPU where it
    is installed, else torch."""
    threads: Literal["auto"] | int = "auto"
    """Threads of each rank that read and decode; auto: as many as cores of this machine are its own, at most 16."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Scores a trained model, every image exactly once, on any number of ranks."""

    model: tyro.conf.Positional[OptionPath]
    """A run folder (its best epoch), a model folder, a checkpoint, or an .onnx file."""
    data: DataOptions = field(default_factory=DataOptions)
    split: Literal["train", "valid", "test", "all"] = "test"
    """Which images: one of the three splits, or all of the data set."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one, else the CPU."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast type; no: float32; auto: on a GPU the fastest that it computes in, on a CPU that of the model's
    training, if it computes in it, and else no."""
    batch_size: int = 64
    """Images in a forward pass of each rank."""
    flip: bool = False
    """Average the logits of each image and its mirror image."""
    thresholds: Literal["f1", "accuracy", "balanced_accuracy"] | None = None
    """Decide by the thresholds that were tuned for this score on validation; None: as the run chose
    (checkpoint.thresholds). The scores at 1/2, and the means at each kind of thresholds, are told in any case."""
    predictions: OptionPath | None = None
    """File for what the model says of each image, by its ending .parquet or .csv."""
    json: OptionPath | None = None
    """File for the scores, and for the comparison, as JSON."""
    csv: OptionPath | None = None
    """File for the scores by attribute as CSV."""
    against: OptionPath | None = None
    """Another model to compare with on the same images, at thresholds of 1/2, by the paired bootstrap."""
