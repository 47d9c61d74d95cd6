"""The whole configuration: one typed, frozen tree, from YAML files and the command line.

Later wins: the defaults below, then `--config FILE`, then options such as `--optim.lr 3e-4`. An unknown key, a value of
the wrong type or out of its range, and two fields that do not fit each other are refused with one sentence.
"""

import contextlib
import difflib
import functools
import io
import itertools
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, get_args, get_origin

import pydantic
import tyro
import yaml
from pydantic import Field

from distrib.errors import UNPRINTABLE, UserError
from distrib.paths import MAX_NAME, MAX_PATH, ConfigPath, ConfigPathText, expanded_path

# The parts of ResNet18 in the order a picture meets them.
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")
# What `model.freeze` may freeze: so many of these parts, up to the last one named.
POLICIES = {"none": 0, "backbone": len(LAYERS), **{name: number for number, name in enumerate(LAYERS, start=1)}}
SCORES = ("loss", "accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "average_precision")

# Lists within lists that a value may be of; YAML has some without end (`&a [*a]`).
DEPTH = 2
# Keys in one group of a YAML file: by merges of merges (`<<`) a few lines would else fill the memory.
MAX_KEYS = 1000

# What pydantic says of these types of error is about Python.
EXPECTED = {
    "tuple_type": "a list of values, such as [178, 178]",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
    "bool_parsing": "true or false",
    "path_type": "a path",
}

# Bytes of a command line that are no text in the locale, as Python has them.
UNDECODED = re.compile("[\udc80-\udcff]")
# YAML 1.1's words for true and false.
SWITCHES = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
# What a field may call it that something is on, or off.
ON, OFF = ("yes", "on", "true"), ("no", "off", "false", "disabled", "never", "none")

Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=8, le=4096)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Words:
    """Annotates a text with words that it may be beside names and paths."""

    words: tuple[str, ...]


class Switch(str):
    """`no`, `off`, `yes` or the like without quotes in a YAML file: true or false by YAML 1.1, and a word to people."""

    def __bool__(self) -> bool:
        return SWITCHES[self.lower()]


class Section(pydantic.BaseModel):
    """A frozen group of fields that refuses unknown keys; what does not validate becomes a `UserError`."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
    section: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for field in cls.model_fields.values():  # the line breaks of this file are not those of --help
            field.description = " ".join((field.description or "").split())

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _speak_in_sentences(cls, values: Any, validate: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        if values is None:  # a YAML group with nothing under it
            values = {}
        unclear: dict[str, Switch] = {}
        if isinstance(values, Mapping):
            fields = {key: cls.model_fields[key] for key in values if key in cls.model_fields}
            taken = {key: _settled(Takes.of(field), values[key]) for key, field in fields.items()}
            unclear = {key: word for key in taken for word in _switches(taken[key])}
            values = {**values, **taken}
        try:
            made = validate(values)
        except pydantic.ValidationError as error:
            raise UserError(_sentence(cls, *error.errors())) from None
        for key, word in unclear.items():
            field = f"{cls.section}.{key}".strip(".")
            words = Takes.of(cls.model_fields[key]).words
            remedy = f"choose one of {', '.join(words)}, or put another name in quotes" if words else "put it in quotes"
            raise UserError(f"{field} has {word}, which YAML takes for {str(bool(word)).lower()}: {remedy}")
        return made


class DaliConfig(Section):
    """How NVIDIA DALI decodes on a GPU."""

    section: ClassVar[str] = "data.dali"

    hw_decoder_load: Fraction = 0.65
    """Share of the pictures that goes to the GPU's JPEG hardware, 0 to 1; the rest is decoded by its ordinary cores."""
    preallocate_height: int = Field(218, ge=0)
    """Height in pixels for which decoding buffers are made in advance; 0: none."""
    preallocate_width: int = Field(178, ge=0)
    """Width in pixels for which decoding buffers are made in advance; 0: none."""


class DataConfig(Section):
    """Which pictures, which labels, and how they reach the device."""

    section: ClassVar[str] = "data"

    root: ConfigPath = Path("data/celeba")
    """Folder of the data set: CelebA as downloaded, or pictures with a table.csv."""
    attributes: tuple[str, ...] = ("all",)
    """Attributes to learn, by name; all: every column of the table."""
    split: Literal["official", "identity", "image"] = "official"
    """official: the data set's own split; identity: random, no identity in two splits; image: random by image."""
    split_fractions: tuple[Fraction, Fraction, Fraction] = (0.8, 0.1, 0.1)
    """Shares of training, validation and test for the random splits; they add up to 1."""
    split_seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the random splits and of the subset."""
    subset: int | None = Field(None, ge=1)
    """Train on this many images drawn from the training split; None: on all of it."""
    missing: Literal["stop", "skip"] = "stop"
    """What to do about rows whose image is missing: stop, or skip them."""
    image_size: tuple[Side, Side] = (178, 178)
    """Height and width of the network's input in pixels."""
    crop: Literal["square", "full"] = "square"
    """square: the largest centred square of each picture; full: the whole picture."""
    flip: bool = True
    """Mirror half of the training pictures left to right."""
    min_zoom: float = Field(1.0, gt=0, le=1)
    """Smallest side of a random training crop as a fraction of the crop's side; 1: no random crop."""
    decoder: Literal["auto", "dali", "torch"] = "auto"
    """dali: NVIDIA DALI, on the GPU where there is one; torch: worker threads on the CPU; auto: dali on a GPU where it
    is installed, else torch."""
    threads: int = Field(2, ge=1, le=256)
    """Decoding threads of each rank."""
    prefetch: int = Field(2, ge=1, le=64)
    """Batches decoded ahead."""
    dali: DaliConfig = DaliConfig()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(self.split_fractions) - 1) > 1e-6:
            raise UserError(
                f"data.split_fractions {self.split_fractions} add up to {sum(self.split_fractions):g}: "
                "choose three shares that add up to 1, such as 0.8 0.1 0.1"
            )
        if not self.attributes:
            raise UserError("data.attributes is empty: name at least one attribute, or say all")
        if "all" in self.attributes and len(self.attributes) > 1:
            raise UserError("data.attributes is all and more: say all alone, or the names alone")
        twice = sorted({name for name in self.attributes if self.attributes.count(name) > 1})
        if twice:
            raise UserError(f"data.attributes names {twice[0]} more than once: name each attribute once")
        return self

    @pydantic.field_validator("attributes", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class ModelConfig(Section):
    """The network and what it starts from."""

    section: ClassVar[str] = "model"

    name: Literal["resnet18"] = "resnet18"
    """Architecture, from torchvision."""
    weights: Annotated[ConfigPathText, Words(("none", "imagenet"))] = "none"
    """none: random; imagenet: torchvision's ImageNet weights; a file with a ResNet18's weights (.safetensors, .pt,
    .pth), torchvision's or timm's resnet18; or a run, its best/ or a checkpoint. The head is new, unless a run's is of
    the very same attributes."""
    freeze: Annotated[str, Words(tuple(POLICIES))] = "none"
    """none; backbone: train the head alone; or the last layer to freeze: conv1, layer1, layer2, layer3, layer4. Layers
    may be freed later: "backbone 2:layer3 5:none" trains layer4 too from epoch 2 on, and everything from epoch 5 on."""
    frozen_statistics: Literal["kept", "updated"] = "kept"
    """What BatchNorm does in frozen layers while training. kept: it normalises by the statistics it has, and keeps them
    (evaluation mode); updated: it normalises by the batch's, and goes on averaging them."""

    @property
    def stages(self) -> tuple[tuple[int, str], ...]:
        """The policies of `freeze`, each with the epoch, counted from 1, from whose beginning on it holds."""
        first, *later = self.freeze.split()
        parts = [word.partition(":") for word in later]
        return (1, first), *((int(epoch), policy) for epoch, _, policy in parts)

    def freeze_in(self, epoch: int) -> str:
        """The policy that holds in an epoch, counted from 1; a pure function, so a resumed run needs no state."""
        return [policy for begin, policy in self.stages if begin <= epoch][-1]

    @property
    def trains_head_alone(self) -> bool:
        """Whether everything else is frozen for the whole run."""
        return POLICIES[self.stages[-1][1]] == len(LAYERS)

    @pydantic.field_validator("freeze", mode="before")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        """A mapping from epochs to policies, as YAML may have it, in the words of the option."""
        if isinstance(value, Mapping):
            value = " ".join(f"{_shown(epoch)}:{_shown(policy)}" for epoch, policy in value.items())
        return " ".join(value.split()).removeprefix("1:") if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        first, *later = self.freeze.split() or [""]
        if ":" in first:
            raise UserError(
                f"model.freeze begins with {first[:40]}: say first what is frozen from the start, such as backbone "
                "2:layer3 5:none"
            )
        self._check_policy(first)
        for word in later:
            number, _, policy = word.partition(":")
            if not re.fullmatch("[1-9][0-9]{0,8}", number) or not policy:
                raise UserError(
                    f"model.freeze has {word[:40]} after its first word: expected EPOCH:POLICY, such as 2:layer3"
                )
            self._check_policy(policy)
        for (before, more), (epoch, fewer) in itertools.pairwise(self.stages):
            if epoch <= before:
                raise UserError(
                    f"model.freeze has {epoch}:{fewer} after epoch {before}: let the epochs ascend, from 2 on"
                )
            if POLICIES[fewer] >= POLICIES[more]:
                raise UserError(
                    f"model.freeze has {epoch}:{fewer} after {more}, which freezes no more than that: let each stage "
                    "free more layers, such as backbone 2:layer3 5:none"
                )
        return self

    def _check_policy(self, policy: str) -> None:
        if policy == "all":
            raise UserError(
                "model.freeze has all, which leaves nothing to train, the head neither: choose backbone to train the "
                "head alone"
            )
        if policy not in POLICIES:
            verb, found = "is" if policy == self.freeze else "has", policy[:40] or "empty"
            raise UserError(
                f"model.freeze {verb} {found}, which names no layer of {self.name}{nearest(policy, tuple(POLICIES))}: "
                f"choose one of {', '.join(POLICIES)}"
            )


class OptimConfig(Section):
    """The optimiser and its schedule."""

    section: ClassVar[str] = "optim"

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """Optimiser."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate, the highest of the schedule."""
    backbone_lr: float | None = Field(None, gt=0)
    """Learning rate of all but the head, the highest of the schedule; None: optim.lr."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay; biases and norms are left out."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """Learning rate over the run: constant; cosine: down to 0; one-cycle: up over 30 % of the run, or
    over optim.warmup_epochs where they are set, then down to 0. constant and cosine begin with the warm-up."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs (fractions allowed) in which the learning rate rises from 0."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; None: no clipping."""


class TrainConfig(Section):
    """The loop."""

    section: ClassVar[str] = "train"

    batch_size: int = Field(64, ge=1)
    """Images in a step over all ranks together (the global batch size)."""
    norm_size: Literal["auto", "batch"] | Count = "auto"
    """Images that BatchNorm normalises over, a divisor of train.batch_size: what a step computes depends on it, and on
    the number of ranks only through it. auto: a rank's micro-batch in a new run, and afterwards what the run began
    with, on however many ranks it goes on; batch: all images of a step, by torch's SyncBatchNorm (several ranks need
    GPUs for it)."""
    accumulation: Literal["auto"] | Count = "auto"
    """Micro-batches that a rank's share of a batch is cut into, to save memory; auto: as many as train.norm_size asks
    for."""
    epochs: int = Field(15, ge=1)
    """Times the training set is gone through."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast type; no: float32; auto: bf16 where the hardware computes in it (Ampere and later, CPUs with
    AVX-512-BF16 or AMX), else no."""
    channels_last: bool = True
    """Keep activations and weights in NHWC memory, which convolutions prefer."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order of the images, crops and flips."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Pull the targets this far towards 1/2."""
    positive_weight: Literal["none", "balanced"] = "none"
    """balanced: weigh each attribute's positives by negatives/positives of the training set."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after this many epochs without a better checkpoint.best_score; None: never."""
    log_every: int = Field(20, ge=1)
    """Steps between two looks at the loss (progress bar, W&B, check for non-finite values)."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do about a step whose loss or gradient is not finite: stop; or skip it, which leaves the model as if that
    batch had not been, and go on."""
    nonfinite_limit: int = Field(10, ge=1, le=1000)
    """Steps that may be skipped in a run before it stops all the same."""

    @property
    def ranks_asked_for(self) -> int | None:
        """The only number of ranks that can do it, where norm_size and accumulation are both numbers; else None."""
        if not isinstance(self.norm_size, int) or not isinstance(self.accumulation, int):
            return None
        return self.batch_size // (self.norm_size * self.accumulation)


class CheckpointConfig(Section):
    """What is kept, and when."""

    section: ClassVar[str] = "checkpoint"

    keep: int = Field(2, ge=1)
    """Checkpoints kept, the newest ones (best/ is kept apart)."""
    every_steps: int | None = Field(None, ge=1)
    """Checkpoint every so many steps within an epoch, beside the one at its end; None: at its end alone."""
    every_minutes: float | None = Field(None, gt=0)
    """Checkpoint also where the last one is so many minutes old; None: by steps and epochs alone."""
    on_failure: Literal["stop", "continue"] = "stop"
    """What to do where a checkpoint cannot be written, as on a full disk: stop; or warn, go on without it, and try
    again at the next."""
    best_score: Annotated[str, Words(SCORES)] = "roc_auc"
    """Validation score that chooses the epoch kept in best/: loss, accuracy, balanced_accuracy, precision, recall, f1,
    roc_auc or average_precision."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.best_score not in SCORES:
            raise UserError(
                f"checkpoint.best_score is {self.best_score}, which is not a score"
                f"{nearest(self.best_score, SCORES)}: choose one of {', '.join(SCORES)}"
            )
        return self


class TrackingConfig(Section):
    """Weights & Biases."""

    section: ClassVar[str] = "tracking"

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """online: upload while training; offline: keep in the run folder for `wandb sync`; disabled: nothing; auto: as
    WANDB_MODE or W&B's settings files say, else online where a W&B key is configured, else offline."""
    project: str | None = None
    """W&B project; None: as WANDB_PROJECT or W&B's settings files say, else distrib."""
    entity: str | None = None
    """W&B user or team; None: as WANDB_ENTITY or W&B's settings files say, else the key's own."""
    group: str | None = None
    """W&B group that this run belongs to; None: as WANDB_RUN_GROUP says."""
    upload_best: bool = False
    """Log best/ as a W&B artifact."""


class ExplainConfig(Section):
    """What is made of the best epoch after training: scores, figures, explanations, the report page."""

    section: ClassVar[str] = "explain"

    after_training: bool = True
    """Make them at the end of training, on rank 0; `distrib explain RUN` makes them at any time."""
    photograph: ConfigPath | None = None
    """Picture file to explain by an occlusion map; None: the first picture of the test split."""
    group: str = "Male"
    """Attribute of the table within whose two groups each score is given as well."""
    modules: tuple[str, ...] = ("conv1", "layer1", "layer2", "layer3", "layer4")
    """Modules of the network whose activation maps are shown."""
    filters: tuple[str, ...] = ("conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1")
    """Convolutions whose filters are shown."""
    images: int = Field(4, ge=1, le=8)
    """Test pictures of each attribute with an occlusion and a Grad-CAM map."""
    truth_images: int = Field(100, ge=1)
    """Test pictures on which the maps are held against the boxes of synthetic faces."""
    window: int | None = Field(None, ge=1)
    """Side of the occluding square in pixels of the network's input; None: from the input's size."""
    stride: int | None = Field(None, ge=1)
    """Pixels between two positions of the square; None: from the window."""
    fill: Literal["mean", "blur", "black"] = "mean"
    """What covers the square: a mean colour, the blurred picture, or black."""
    bootstrap: int = Field(1000, ge=10)
    """Resamples from which the 95 % intervals come."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise UserError(
                f"explain.stride {self.stride} exceeds explain.window {self.window}, so parts of the picture would "
                "never be covered: choose a smaller stride"
            )
        return self


class RunConfig(Section):
    """Where the run lives and on what."""

    section: ClassVar[str] = "run"

    folder: ConfigPath | None = None
    """Folder of the run; None: runs/NAME-DATE-TIME, after the configuration file."""
    resume: Annotated[ConfigPathText, Words(("never", "auto"))] = "never"
    """never: start anew, in a folder without checkpoints; auto: go on from the newest valid checkpoint in the run
    folder, or start where there is none; or the path of a checkpoint. Also written --resume."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one, else the CPU."""
    ranks: int | None = Field(None, ge=1)
    """Stop unless exactly this many ranks take part; None: as many as the launcher started."""
    timeout: float = Field(300.0, ge=2)
    """Seconds without progress after which a rank is taken for lost, and the others name it and leave."""
    start_timeout: float = Field(1800.0, ge=2)
    """The same until the end of this process's first epoch, which reads the data for the first time."""


class Config(Section):
    """ResNet18 on face attributes, trained on any number of ranks."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    explain: ExplainConfig = ExplainConfig()
    run: RunConfig = RunConfig()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.optim.warmup_epochs > self.train.epochs:
            raise UserError(
                f"optim.warmup_epochs is {self.optim.warmup_epochs:g}, longer than the run of train.epochs "
                f"{self.train.epochs}: shorten the warm-up"
            )
        self._check_groups()
        epoch, policy = self.model.stages[-1]
        if epoch > self.train.epochs:
            raise UserError(
                f"model.freeze has {epoch}:{policy}, which is after the end of the run of train.epochs "
                f"{self.train.epochs}: free the layers earlier, or train longer"
            )
        return self

    def _check_groups(self) -> None:
        batch, norm, accumulation = self.train.batch_size, self.train.norm_size, self.train.accumulation
        if norm == "batch" and accumulation not in ("auto", 1):
            raise UserError(
                f"train.norm_size is batch, which normalises over all images of a step at once, and train.accumulation "
                f"{accumulation} cuts them up: set train.accumulation to auto, or train.norm_size to a number"
            )
        if accumulation != "auto" and batch % accumulation:
            raise UserError(
                f"train.batch_size {batch} cannot be cut into train.accumulation {accumulation} equal micro-batches: "
                "change one of the two"
            )
        if isinstance(norm, int) and batch % norm:
            lower = next(size for size in range(min(norm, batch), 0, -1) if batch % size == 0)
            raise UserError(
                f"train.norm_size {norm} is no divisor of train.batch_size {batch}: choose one that is, such as {lower}"
            )
        if isinstance(norm, int) and accumulation != "auto" and batch % (norm * accumulation):
            raise UserError(
                f"train.batch_size {batch} cannot be cut into train.accumulation {accumulation} micro-batches of "
                f"train.norm_size {norm} images for any number of ranks: set train.accumulation to auto"
            )

    def replace(self, group: str, /, **values: Any) -> "Config":
        """This configuration with some values of one group changed, validated anew."""
        section = getattr(self, group)
        changed = type(section).model_validate({**section.model_dump(), **values})
        return self.model_copy(update={group: changed})

    def to_yaml(self) -> str:
        """The tree as YAML that `--config` takes."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)

    def ineffective(self) -> list[str]:
        """Settings that were changed from their default and do nothing in this run, a sentence each."""
        data, model, optim = self.data, self.model, self.optim
        cases = [
            (data.split == "official" and data.split_fractions != DataConfig().split_fractions, "data.split_fractions",
             "data.split is official"),
            (optim.name != "sgd" and optim.momentum != OptimConfig().momentum, "optim.momentum",
             f"optim.name is {optim.name}"),
            (data.split == "official" and data.subset is None and data.split_seed != DataConfig().split_seed,
             "data.split_seed", "data.split is official and there is no data.subset"),
            (data.decoder == "torch" and data.dali != DaliConfig(), "data.dali", "data.decoder is torch"),
            (model.weights == "none" and model.trains_head_alone, "the frozen backbone",
             "its weights are random (model.weights is none)"),
            (model.frozen_statistics != "kept" and model.freeze == "none", "model.frozen_statistics",
             "model.freeze is none"),
            (self.train.norm_size != "auto" and model.trains_head_alone and model.frozen_statistics == "kept",
             "train.norm_size", f"model.freeze is {model.freeze}, and frozen layers keep their statistics"),
            (optim.backbone_lr is not None and model.trains_head_alone, "optim.backbone_lr",
             f"model.freeze is {model.freeze}"),
            (self.tracking.mode == "disabled" and self.tracking.upload_best, "tracking.upload_best",
             "tracking.mode is disabled"),
            (self.train.on_nonfinite == "stop" and self.train.nonfinite_limit != TrainConfig().nonfinite_limit,
             "train.nonfinite_limit", "train.on_nonfinite is stop"),
        ]  # fmt: skip
        return [f"{field} has no effect because {because}" for changed, field, because in cases if changed]


def load_config(argv: Sequence[str]) -> tuple[Config, str]:
    """The configuration that a command line asks for.

    Args:
        argv: `--config FILE` (at most once, anywhere) and options such as `--optim.lr 3e-4`.

    Returns:
        The configuration, and a name for the run: the stem of the YAML file, or "run".

    Raises:
        UserError: for anything that is not a valid configuration.
        SystemExit: with status 0 after `--help`.
    """
    arguments = ["--run.resume" if argument == "--resume" else argument for argument in argv]
    arguments = [re.sub(r"^--resume=", "--run.resume=", argument) for argument in arguments]
    file, arguments = _take_config(arguments)
    config = Config() if file is None else read_yaml(file)
    description = (
        "Trains ResNet18 on face attributes. --config FILE reads a YAML file with these same fields; options on the "
        "command line win over it. --resume is short for --run.resume."
    )
    return parse(arguments, config, "train.py", description), "run" if file is None else file.stem


def parse(argv: Sequence[str], default: Config, prog: str, description: str) -> Config:
    """A configuration with the options of a command line (`--optim.lr 3e-4`) put over it.

    Args:
        argv: options alone.
        default: the configuration beneath.
        prog: name of the program, for `--help`.
        description: of the program, for `--help`.

    Raises:
        UserError: for anything that is not a valid configuration.
        SystemExit: with status 0 after `--help`; with that of `standard_streams` where the help cannot be written.
    """
    arguments = list(argv)
    helps = not {"-h", "--help"}.isdisjoint(arguments)
    errors = io.StringIO()
    try:
        _refuse_unknown(arguments)
        arguments = ["--help"] if helps else list(_in_the_fields_words(arguments))
        # Beside the help, standard error says why that could not be written.
        with _wide_terminal(not helps), contextlib.nullcontext() if helps else contextlib.redirect_stderr(errors):
            config = tyro.cli(
                Config,
                default=default,
                args=arguments,
                prog=prog,
                description=description,
                config=(tyro.conf.FlagConversionOff,),
            )
        _refuse_unusable(config)
    except UserError as error:
        raise UserError(str(error)) from None
    except SystemExit as stop:
        if stop.code and not helps:
            raise UserError(_first_paragraph(errors.getvalue())) from None
        raise
    return config


def read_yaml(file: Path) -> Config:
    """The configuration in a YAML file; what it leaves out has its default.

    Raises:
        UserError: if the file is missing, is not YAML, or holds what the tree does not know.
    """
    values = read_settings(file, "--config ", "groups such as data: and optim:")
    try:
        config = Config.model_validate(values)
        _refuse_unusable(config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return config


def read_mapping(file: Path, option: str, expected: str) -> dict[Any, Any]:
    """The keys and values of a YAML file; none where it is empty. `no`, `on` and the like are false and true.

    Args:
        file: to read.
        option: what an error begins with, before the file.
        expected: what an error says should be in it.

    Raises:
        UserError: if the file is missing, or is not YAML with keys and values.
    """
    return _load(file, option, expected, lambda text: yaml.load(text, _Loader))


def read_settings(file: Path, option: str, expected: str) -> dict[Any, Any]:
    """The same of a file with keys of the configuration.

    Of what YAML 1.1 takes for something else than it looks like, 010 (8), 1:30 (90) and 2026-01-01 (a date) are text,
    from which a field of numbers reads 10, or nothing; so is 1e-3, from which it reads 0.001. `no`, `on` and the like
    are `Switch`, which `Section` and `settled` take by what the field is. `None`, as `--help` has it, is null.
    """
    return _load(file, option, expected, lambda text: yaml.load(text, _SettingsLoader))


def _load(file: Path, option: str, expected: str, read: Callable[[str], Any]) -> dict[Any, Any]:
    try:
        values = read(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{option}{file}: there is no such file; the ready-made ones are in configs/") from None
    except OSError as error:
        raise UserError(f"{option}{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:  # PowerShell's `>` writes UTF-16
        raise UserError(f"{option}{file} cannot be read, for it is not UTF-8 text: save it as UTF-8") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place else ""
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        raise UserError(f"{option}{file}{where} is not valid YAML: {problem}") from None
    except (ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        # PyYAML builds numbers, dates and nested lists without a look at what they hold.
        problem = str(error).partition("\n")[0]
        raise UserError(f"{option}{file} holds a value that YAML cannot read: {problem}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{option}{file} holds a {type(values).__name__}: expected {expected}")
    return values


class _Loader(yaml.SafeLoader):
    """Safe YAML, without what a configuration has no use for."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names into a group."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_KEYS:
            raise yaml.constructor.ConstructorError(
                problem=f"a group has more than {MAX_KEYS} keys", problem_mark=node.start_mark
            )


class _SettingsLoader(_Loader):
    """With what people mean; see `read_settings`."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own
        first: [each for each in found if each[0].rpartition(":")[2] not in ("int", "float", "timestamp", "value")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Safe YAML that `_SettingsLoader` reads as it was."""


def _refuse_set(_: _Loader, node: yaml.Node) -> NoReturn:
    # It would be another list of attributes on each rank.
    raise yaml.constructor.ConstructorError(problem="a !!set has no order", problem_mark=node.start_mark)


def _switch(loader: _Loader, node: yaml.ScalarNode) -> Switch:
    word = str(loader.construct_scalar(node))
    if word.lower() not in SWITCHES:
        raise yaml.constructor.ConstructorError(problem=f"{word} is no !!bool", problem_mark=node.start_mark)
    return Switch(word)


_Loader.add_constructor("tag:yaml.org,2002:set", _refuse_set)
_SettingsLoader.add_constructor("tag:yaml.org,2002:bool", _switch)
for _each in (_SettingsLoader, _Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])
# PyYAML's own, without 010 and 1:30.
_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile("^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"),
    list("-+0123456789"),
)
_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Takes:
    """What a field takes.

    Attributes:
        types: of it, or of its parts where it has several.
        words: that it may be.
    """

    types: frozenset[Any]
    words: tuple[str, ...]

    @property
    def several(self) -> bool:
        """Whether it may be of one type or another, or a word."""
        return len(self.types - {type(None), ...}) + bool(self.words) > 1

    @classmethod
    def of(cls, field: pydantic.fields.FieldInfo) -> Self:
        """What a field of a section takes."""
        types, words = set[Any](), [word for each in field.metadata if isinstance(each, Words) for word in each.words]
        waiting = [field.annotation]
        while waiting:
            annotation = waiting.pop()
            origin, parts = get_origin(annotation), get_args(annotation)
            if origin is Literal:
                words += parts
            elif origin is Annotated:
                waiting.append(parts[0])
            elif parts:
                waiting += parts
            else:
                types.add(annotation)
        return cls(frozenset(types), tuple(words))


def field_of(key: str) -> pydantic.fields.FieldInfo:
    """The field of the configuration with a key such as `optim.lr`."""
    *groups, name = key.split(".")
    section: Any = Config
    for group in groups:
        section = section.model_fields[group].annotation
    found: pydantic.fields.FieldInfo = section.model_fields[name]
    return found


def settled(key: str, value: Any) -> Any:
    """A value of `read_settings` as a key of the configuration takes it.

    What it does not take is left as it is, for the configuration to refuse.
    """
    return _settled(Takes.of(field_of(key)), value) if key in keys() else plain(value)


def plain(value: Any) -> Any:
    """A value of `read_settings`, with true or false for a `Switch`."""
    return bool(value) if isinstance(value, Switch) else value


def _settled(takes: Takes, value: Any, depth: int = 0) -> Any:
    """A value as a field takes it; a `Switch` stays where the field takes other text."""
    if depth > DEPTH:
        return value
    if isinstance(value, list | tuple):
        return type(value)(_settled(takes, each, depth + 1) for each in value)
    if isinstance(value, Mapping) and not any(each is Any or _is_section(each) for each in takes.types):
        return {key: _settled(takes, each, depth + 1) for key, each in value.items()}
    if isinstance(value, Switch) and bool in takes.types:
        return bool(value)
    if isinstance(value, Switch) or (not takes.types and str(value).lower() in SWITCHES):
        said = str(value).lower()
        words = (said, *(ON if SWITCHES[said] else OFF))
        return next((word for word in words if word in takes.words), value)
    return value


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _switches(value: Any, depth: int = 0) -> Iterator[Switch]:
    """Those within a value for which no word was found."""
    if isinstance(value, Switch):
        yield value
    elif isinstance(value, list | tuple) and depth <= DEPTH:
        for each in value:
            yield from _switches(each, depth + 1)


def _in_the_fields_words(arguments: Iterable[str]) -> Iterator[str]:
    """Options, with `no`, `off`, `yes` and the like of fields that have a word for it in that word."""
    key = ""
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        key = name[2:].replace("-", "_") or key
        if key in keys() and value.lower() in SWITCHES:
            takes = Takes.of(field_of(key))
            if bool in takes.types or takes.words:
                value = str(_settled(takes, Switch(value)))
        yield f"{name}{equals}{value}"


def keys() -> dict[str, str]:
    """Every key of the tree (`optim.lr`) with its description."""
    return dict(_walk(Config, ""))


def nearest(word: str, valid: Sequence[str] | Mapping[str, str]) -> str:
    """` (did you mean X?)` for the valid word nearest to this one, or nothing where none is near.

    A mapping goes from the spellings that are compared to the word that is suggested.
    """
    spellings = valid if isinstance(valid, Mapping) else {each: each for each in valid}
    lowered = {each.lower(): target for each, target in spellings.items()}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f" (did you mean {lowered[close[0]]}?)" if close else ""


def _refuse_unusable(config: Config) -> None:
    """Refuse names that cannot be printed, and whole numbers that nothing counts to."""
    for key in keys():
        value = functools.reduce(getattr, key.split("."), config)
        names = value if isinstance(value, tuple) and key != "data.attributes" else (value,)  # the table knows those
        for name in map(str, (each for each in names if isinstance(each, str | Path))):
            unprintable = UNPRINTABLE.search(name)
            if UNDECODED.search(name) or (isinstance(value, Path) and not unprintable and not _can_be_named(name)):
                encoding = sys.getfilesystemencoding()
                remedy = "choose another name" if encoding == "utf-8" else "set LC_ALL=C.UTF-8, or choose another name"
                raise UserError(f"{key} is {name}, which is no text in this locale ({encoding}): {remedy}")
            if unprintable:
                raise UserError(f"{key} is {name}, which has a character that no terminal shows: choose another name")
            if len(name) > MAX_PATH or max(len(part.encode()) for part in name.split("/")) > MAX_NAME:
                raise UserError(f"{key} is {name[:40]}..., which is too long for a file system: choose another name")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{key} has a value of {value.bit_length()} bits: choose one below 2**63")


def _can_be_named(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _walk(section: type[Section], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


def _spellings() -> dict[str, str]:
    """What a person may have meant by a wrong key: the key, its last part, or the first words of its description."""
    spellings: dict[str, str] = {}
    for key, description in keys().items():
        words = re.split(r"[,.:;(]", description)[0].strip().lower().replace(" ", "_")
        said = () if words in Takes.of(field_of(key)).words else (words,)
        for spelling in (*said, key.rpartition(".")[2], key):
            spellings[spelling] = key
    return spellings


def _groups() -> list[str]:
    """Every group of keys of the tree: `data`, `data.dali`."""
    parts = [key.split(".")[:-1] for key in keys()]
    return list(dict.fromkeys(".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)))


def _unknown_key(section: str, path: str, value: Any) -> str:
    """What is said of a key in a section of a file that is none."""
    key, groups = ".".join(part for part in (section, path) if part), _groups()
    spellings = {**_spellings(), **{each: each for each in groups if isinstance(value, Mapping)}}
    if not section and (value is None or isinstance(value, Mapping)):  # a group, or one with nothing under it
        spellings = {each: each for each in groups}
    said, remedy = f"{key} is not a known key", "`--help` lists all keys"
    meant = next((each for each in (path, key) if each in (*keys(), *groups)), None)
    if meant is None:
        said += nearest(key, spellings) or nearest(path, spellings)
    if "." in path:
        *above, last = (meant or "optim.lr").split(".")
        lines = [*(f"`{'  ' * depth}{name}:`" for depth, name in enumerate(above)), f"`{'  ' * len(above)}{last}: …`"]
        remedy = f"a file has each part of a key below the one before: {', then '.join(lines)}"
    return f"{said}; {remedy}"


def _sentence(made: type[Section], error: Any, *others: Any) -> str:
    """One sentence for the first of pydantic's errors in a section."""
    section = made.section
    field = made.model_fields.get(str(error["loc"][0])) if error["loc"] else None
    takes = None if field is None else Takes.of(field)
    path = ".".join(map(_shown, error["loc"]))
    if error["type"] == "extra_forbidden":
        return _unknown_key(section, path, error["input"])
    loc = list(error["loc"])
    if len(loc) > 1 and isinstance(loc[-1], str) and takes is not None and takes.several:  # pydantic's name of one
        del loc[-1]
    path = ".".join(map(_shown, loc))
    key = ".".join(part for part in (section, path) if part)
    found = _shown(error["input"], reprlib.repr) if not isinstance(error["input"], Path) else repr(str(error["input"]))
    if error["type"] in ("string_type", "path_type") and type(error["input"]) in (int, float):
        return f"{key} is {found}, which YAML takes for a number: put it in quotes"
    if error["type"] in EXPECTED:
        return f"{key} is {found}, which is refused: it should be {EXPECTED[error['type']]}"
    if error["type"] == "missing":
        return f"{key.rpartition('.')[0]} is {found}, which is refused: a value is missing at the end"
    problem = str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    if error["type"] == "literal_error":  # of a field that may be a word or a number, the number's error follows
        number = next((each["msg"] for each in others if each["loc"][: len(loc)] == tuple(loc)), "")
        bound = number.removeprefix("Input should be ") if "than" in number else ""
        problem += f", or a whole number {bound}".rstrip() if number else ""
    return f"{key} is {found}, but {problem}".replace("but should be", "which is refused: it should be")


def _shown(value: Any, show: Callable[[Any], str] = str) -> str:
    try:
        return show(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of very many digits"


def _take_config(arguments: list[str]) -> tuple[Path | None, list[str]]:
    files, rest = [], []
    pending = iter(arguments)
    for argument in pending:
        if argument == "--config":
            files.append(next(pending, ""))
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if any(not file or file.startswith("--") for file in files):
        raise UserError("--config needs the path of a YAML file, such as configs/celeba.yaml")
    if len(files) > 1:
        raise UserError(f"--config is given {len(files)} times ({', '.join(files)}): give it once")
    return (expanded_path(files[0]) if files else None), rest


def _refuse_unknown(arguments: list[str]) -> None:
    valid = keys()
    for argument in arguments:
        if not argument.startswith("--") or argument == "--help":
            continue
        key = argument[2:].partition("=")[0].replace("-", "_")
        if key not in valid:
            hint = nearest(key, _spellings()).replace("mean ", "mean --").replace("_", "-")
            raise UserError(f"{argument.partition('=')[0]} is not a known option{hint}; `--help` lists all options")


@contextlib.contextmanager
def _wide_terminal(wide: bool) -> Iterator[None]:
    """Keep tyro from wrapping an error, so that it can be read back as one sentence."""
    before = os.environ.get("COLUMNS")
    if wide:
        os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


def _first_paragraph(box: str) -> str:
    """The message inside the box that tyro draws around an error, of other characters where UTF-8 is not shown."""
    lines = [line.strip(" │|") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    body = [line for line in lines[1:] if line.strip(" ╭╮╰╯─+-")]
    end = next((i for i, line in enumerate(body) if line.startswith(("Argument helptext", "For full helptext"))), None)
    said, *_ = " ".join(body[:end]).partition(". Got errors:")  # of each type that a field may have, in Python's words
    return said.rstrip(".") + "; `--help` lists all options"


if __name__ == "__main__":
    sys.stdout.write(load_config(sys.argv[1:])[0].to_yaml())
