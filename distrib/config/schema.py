"""Every setting: its type, unit, default and check, in one typed, frozen tree."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import pydantic
import yaml
from pydantic import Field

from distrib.base.errors import UserError
from distrib.base.paths import ConfigPath, ConfigPathText
from distrib.base.words import nearest
from distrib.config.growing import Stage, growing_epochs, stages_of
from distrib.config.section import Section, Words, shown
from distrib.config.yaml_files import Dumper

# The parts of ResNet18 in the order an image meets them.
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")
# What `model.freeze` may freeze: so many of these parts, up to the last one named.
POLICIES = {"none": 0, "backbone": len(LAYERS), **{name: number for number, name in enumerate(LAYERS, start=1)}}
# The words for weights that are not read from anywhere.
RANDOM = ("none", "patches")
SCORES = ("loss", "accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "average_precision")
# The scores that thresholds are tuned for.
TunedScore = Literal["f1", "accuracy", "balanced_accuracy"]
TUNED_SCORES: tuple[TunedScore, ...] = get_args(TunedScore)

Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=8, le=4096)]
Threads = Annotated[int, Field(ge=1, le=256)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class DaliConfig(Section):
    """How NVIDIA DALI decodes on a GPU."""

    section: ClassVar[str] = "data.dali"

    hw_decoder_load: Fraction = 0.65
    """Share of the images that goes to the GPU's JPEG hardware, 0 to 1; the rest is decoded by its ordinary cores."""
    preallocate_height: int = Field(218, ge=0)
    """Height in pixels for which decoding buffers are made in advance; 0: none."""
    preallocate_width: int = Field(178, ge=0)
    """Width in pixels for which decoding buffers are made in advance; 0: none."""


class DataConfig(Section):
    """Which images, which labels, and how they reach the device."""

    section: ClassVar[str] = "data"

    root: ConfigPath = Path("data/celeba")
    """Folder of the data set: CelebA in any form, a packed data set, or images with a table.csv."""
    attributes: tuple[str, ...] = ("all",)
    """Attributes to learn, by name; all: every column of the table."""
    split: Literal["official", "identity", "image"] = "official"
    """official: the data set's own split; identity: random, no identity in two splits; image: random by image."""
    split_fractions: tuple[Fraction, Fraction, Fraction] = (0.8, 0.1, 0.1)
    """Shares of training, validation and test for the random splits; they add up to 1."""
    split_seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the random splits, of the folds and of the subset."""
    fold: Annotated[str, Words(("none",))] = "none"
    """none; or one of several folds of the training split, such as 2/5: it takes the place of the validation split, and
    the other four are trained on. Whole identities each, unless data.split is image or the data set names none."""
    subset: int | None = Field(None, ge=1)
    """Train on this many images drawn from the training split; None: on all of it."""
    missing: Literal["stop", "skip"] = "stop"
    """What to do about rows whose image is missing: stop, or skip them."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about an image that cannot be read or decoded while training: stop, or train on another training image
    in its place, the same one on any number of ranks. Evaluation always stops."""
    image_size: tuple[Side, Side] = (178, 178)
    """Height and width of the network's input in pixels."""
    grow: Annotated[str, Words(("none",))] = "none"
    """none; or heights of the training images, each with the share of the run at which it begins: "112@0 144@0.5
    178@0.75" ends with data.image_size, and each other height is a multiple of 16. Widths follow; evaluation is at
    data.image_size throughout, and an epoch may be the best one once it ends with images of that size. More
    train.epochs on resuming move the shares, as they do the learning rate's."""
    crop: Literal["square", "full"] | Annotated[float, Field(ge=0.1, le=1)] = "square"
    """square: the largest centred square of each image; a number, such as 0.83: the centred square with this share of
    that side; full: the whole image."""
    flip: bool = True
    """Mirror half of the training images left to right."""
    min_zoom: float = Field(1.0, gt=0, le=1)
    """Smallest side of a random training crop as a fraction of the crop's side; 1: no random crop."""
    eval_zoom: float = Field(1.0, gt=0, le=1)
    """Height and width of the centred part that evaluation and prediction look at, as a fraction of the crop's; 1: the
    whole crop. Random crops show faces larger than the whole crop does; with the mean of their sides,
    (1 + data.min_zoom) / 2, evaluation sees faces as large as training does on average (Touvron et al., Fixing the
    train-test resolution discrepancy, NeurIPS 2019)."""
    decoder: Literal["auto", "dali", "torch"] = "auto"
    """dali: NVIDIA DALI, on the GPU where there is one; torch: worker threads on the CPU; auto: dali on a GPU where it
    is installed, else torch."""
    threads: Literal["auto"] | Threads = "auto"
    """Threads of each rank that read and decode; auto: as many as cores of this machine are its own, at most 16."""
    prefetch: int = Field(2, ge=1, le=64)
    """Batches decoded ahead."""
    resident: Literal["auto", "device", "host", "never"] = "auto"
    """Where the images of training and validation stay, decoded once when the run begins. device: in the memory of each
    GPU; host: in that of the machine, shared by its ranks; never: they are decoded for each batch; auto: the first of
    these where they take no more than half of what is free, and on a CPU never."""
    dali: DaliConfig = DaliConfig()

    @property
    def fold_of(self) -> tuple[int, int] | None:
        """Which fold of the training split is validated on, counted from 0, and of how many; None: none is."""
        if self.fold == "none":
            return None
        number, _, folds = self.fold.partition("/")
        return int(number) - 1, int(folds)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """How large the images are that are trained on, from which share of the run on."""
        return stages_of(self.grow, self.image_size)

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
            raise UserError("data.attributes has all beside other names: say all alone, or the names alone")
        twice = sorted({name for name in self.attributes if self.attributes.count(name) > 1})
        if twice:
            raise UserError(f"data.attributes names {twice[0]} more than once: name each attribute once")
        stages_of(self.grow, self.image_size)
        found = re.fullmatch("([1-9][0-9]{0,2})/([1-9][0-9]{0,2})", self.fold)
        if self.fold != "none" and (found is None or not int(found[1]) <= int(found[2]) >= 2):
            raise UserError(
                f"data.fold is {self.fold[:40] or 'empty'}: expected none, or which fold of how many, such as 2/5 for "
                "the second of five"
            )
        return self

    @pydantic.field_validator("grow", mode="before")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        """A mapping from heights to shares, as YAML may have it, in the words of the option."""
        if isinstance(value, Mapping):
            value = " ".join(f"{shown(height)}@{shown(share)}" for height, share in value.items())
        return " ".join(value.split()) if isinstance(value, str) else value

    @pydantic.field_validator("attributes", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class AugmentConfig(Section):
    """What is done to training images beyond data.min_zoom and data.flip, anew in each epoch; nothing by default."""

    section: ClassVar[str] = "augment"

    mixup: float = Field(0.0, ge=0, le=100)
    """Mix each image and its targets with another's of its group (train.norm_size); the share of the other is from the
    Beta distribution with both parameters this, such as 0.2; 0: off."""


class ModelConfig(Section):
    """The network and what it starts from."""

    section: ClassVar[str] = "model"

    name: Literal["resnet18"] = "resnet18"
    """Architecture, from torchvision."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """How the network begins. imagenet: as torchvision has it, with a 7x7 convolution and max-pooling, which leave a
    quarter of each side; small: a 3x3 convolution alone, which leaves images whole, for those of up to 64 pixels: some
    15 times the work an image."""
    weights: Annotated[ConfigPathText, Words(("none", "patches", "imagenet"))] = "none"
    """none: random; patches: random, but for conv1, which starts from the principal components of patches of training
    images; imagenet: torchvision's ImageNet weights; a file with a ResNet18's weights (.safetensors, .pt,
    .pth), torchvision's or timm's resnet18; or a run, its best/ or a checkpoint. The head is new, unless a run's is of
    the very same attributes."""
    freeze: Annotated[str, Words(tuple(POLICIES))] = "none"
    """none; backbone: train the head alone; or the last layer to freeze: conv1, layer1, layer2, layer3, layer4. Layers
    may be freed later: "backbone 2:layer3 5:none" trains layer4 too from epoch 2 on, and everything from epoch 5 on."""
    frozen_statistics: Literal["kept", "updated"] = "kept"
    """What BatchNorm does in frozen layers while training. kept: it normalises by the statistics it has, and keeps them
    (evaluation mode); updated: it normalises by the batch's, and keeps averaging them."""

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
            value = " ".join(f"{shown(epoch)}:{shown(policy)}" for epoch, policy in value.items())
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
                    f"model.freeze has {epoch}:{fewer} after epoch {before}: name epochs in ascending order, from 2 on"
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
                "model.freeze has all, which leaves nothing to train, not even the head: choose backbone to train the "
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
    nesterov: bool = False
    """Nesterov's form of sgd's momentum."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """Learning rate over the run: constant; cosine: down to 0; one-cycle: up over 30 % of the run, or
    over optim.warmup_epochs where they are set, then down to 0. constant and cosine begin with the warm-up."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs (fractions allowed) in which the learning rate rises from 0."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; None: no clipping."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and self.name != "sgd":
            raise UserError(
                f"optim.nesterov is true, and optim.name is {self.name}, which has no such momentum: set optim.name to "
                "sgd, or optim.nesterov to false"
            )
        if self.nesterov and self.momentum == 0:
            raise UserError(
                "optim.nesterov is true, and optim.momentum is 0: choose a momentum such as 0.9, or set optim.nesterov "
                "to false"
            )
        return self


class TrainConfig(Section):
    """The loop."""

    section: ClassVar[str] = "train"

    batch_size: int = Field(64, ge=1)
    """Images in a step over all ranks together (the global batch size)."""
    norm_size: Literal["auto", "batch"] | Count = "auto"
    """Images that BatchNorm normalises over, a divisor of train.batch_size: what a step computes depends on it, and on
    the number of ranks only through it. auto: a rank's micro-batch in a new run, and afterwards what the run began
    with, on however many ranks it is resumed; batch: all images of a step, by torch's SyncBatchNorm (several ranks need
    GPUs for it)."""
    accumulation: Literal["auto"] | Count = "auto"
    """Micro-batches that a rank's share of a batch is cut into, to save memory; auto: as many as train.norm_size asks
    for."""
    epochs: int = Field(15, ge=1)
    """Times the training set is gone through."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast type; no: float32; auto: on a GPU bf16 where it computes in it (Ampere and later), fp16 on Volta and
    Turing, else no; on a CPU that computes in bf16 whichever is faster there, which a new run measures."""
    compile: Literal["auto", "no", "default", "reduce-overhead", "max-autotune"] = "auto"
    """Mode in which torch.compile makes one graph of the network's forward and backward pass; no: it is not compiled.
    auto: the mode that the run began with; in a new run default on a GPU (no if that fails to compile), and no on a
    CPU, with train.deterministic, and where BatchNorm is synchronised (train.norm_size batch). max-autotune chooses
    kernels by their speed each time, so that a resumed run may differ in bits from one that never stopped."""
    channels_last: bool = True
    """Keep activations and weights in NHWC memory, which convolutions prefer."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order of the images, crops, flips and augmentation."""
    deterministic: bool = False
    """Compute the same bits again on the same GPUs, at a cost in speed: by deterministic algorithms, and without JPEG
    hardware, whose pixels are not quite those of the GPU's cores. A CPU computes the same bits either way."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Pull the targets this far towards 1/2."""
    positive_weight: Literal["none", "balanced"] = "none"
    """balanced: weigh each attribute's positives by negatives/positives of the training set."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after this many epochs without a better checkpoint.best_score; None: never."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average (EMA) of the weights over the steps, such as 0.9998: the average is
    what is validated and kept. The decay begins low and rises with the steps, so that short runs profit. None: off."""
    log_every: int = Field(20, ge=1)
    """Steps between two looks at the loss (progress bar, W&B, check for non-finite values)."""
    profile: int | None = Field(None, ge=1, le=100)
    """Steps after the warm-up that torch's profiler watches on rank 0, for profile/ in the run folder; None: none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do about a step whose loss or gradient is not finite: stop; or skip it, which leaves the model as if that
    batch had not been, and continue."""
    nonfinite_limit: int = Field(10, ge=1, le=1000)
    """Steps that may be skipped in a run before it stops all the same."""

    @property
    def ranks_asked_for(self) -> int | None:
        """The only number of ranks that can do it, where norm_size and accumulation are both numbers; else None."""
        if not isinstance(self.norm_size, int) or not isinstance(self.accumulation, int):
            return None
        return self.batch_size // (self.norm_size * self.accumulation)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.deterministic and self.compile == "max-autotune":
            raise UserError(
                "train.deterministic is true, and train.compile is max-autotune, which chooses kernels by their speed, "
                "anew each time: set train.compile to default or no, or train.deterministic to false"
            )
        return self


class CheckpointConfig(Section):
    """What is kept, and when."""

    section: ClassVar[str] = "checkpoint"

    keep: int = Field(2, ge=1)
    """Checkpoints kept, the newest ones (best/ is kept apart)."""
    every_steps: int | None = Field(None, ge=1)
    """Checkpoint every so many steps within an epoch, beside the one at its end; None: only at its end."""
    every_minutes: float | None = Field(None, gt=0)
    """Checkpoint also where the last one is so many minutes old; None: by steps and epochs alone."""
    on_failure: Literal["stop", "continue"] = "stop"
    """What to do where a checkpoint cannot be written, as on a full disk: stop; or warn, continue without it, and try
    again at the next."""
    best_score: Annotated[str, Words(SCORES)] = "roc_auc"
    """Validation score that chooses the epoch kept in best/: loss, accuracy, balanced_accuracy, precision, recall, f1,
    roc_auc or average_precision."""
    thresholds: TunedScore = "f1"
    """Validation score that the threshold of each attribute is tuned for: the model says yes from there on. The scores
    at 1/2 stand beside those at the thresholds; best/ keeps the other two thresholds too, for --thresholds of
    `distrib evaluate` and `distrib predict`."""

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
    """Make them at the end of training, on rank 0; `distrib explain RUN` makes them at any time after it."""
    photograph: ConfigPath | None = None
    """Photograph to explain by an occlusion map; None: the first image of the test split."""
    group: str = "Male"
    """Attribute of the table within whose two groups each score is given as well."""
    modules: tuple[str, ...] = ("conv1", "layer1", "layer2", "layer3", "layer4")
    """Modules of the network whose activation maps are shown."""
    filters: tuple[str, ...] = ("conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1")
    """Convolutions whose filters are shown."""
    images: int = Field(4, ge=1, le=8)
    """Test images of each attribute with an occlusion and a Grad-CAM map."""
    truth_images: int = Field(100, ge=1)
    """Test images on which the maps are held against the boxes of synthetic faces."""
    window: int | None = Field(None, ge=1)
    """Side of the occluding square in pixels of the network's input; None: from the input's size."""
    stride: int | None = Field(None, ge=1)
    """Pixels between two positions of the square; None: from the window."""
    fill: Literal["mean", "blur", "black"] = "mean"
    """What covers the square: a mean colour, the blurred image, or black."""
    bootstrap: int = Field(1000, ge=10)
    """Resamples from which the 95 % intervals come."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise UserError(
                f"explain.stride {self.stride} exceeds explain.window {self.window}, so parts of the image would "
                "never be covered: choose a smaller stride"
            )
        return self


class RunConfig(Section):
    """Where the run lives and on what."""

    section: ClassVar[str] = "run"

    folder: ConfigPath | None = None
    """Folder of the run; None: runs/NAME-DATE-TIME, after the configuration file."""
    resume: Annotated[ConfigPathText, Words(("never", "auto"))] = "never"
    """never: start anew, in a folder without checkpoints; auto: resume from the newest valid checkpoint in the run
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
    augment: AugmentConfig = AugmentConfig()
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

    @property
    def growing_epochs(self) -> int:
        """Epochs, from the first one on, that end before images have their full size: none of them is the best one."""
        return growing_epochs(self.data.grow, self.train.epochs)

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
        if norm == "batch" and self.augment.mixup:
            raise UserError(
                "augment.mixup mixes the images of a group on one rank, and train.norm_size batch makes one group of "
                "all ranks' images: set train.norm_size to auto or a number, or augment.mixup to 0"
            )
        if isinstance(norm, int) and batch % norm:
            lower = next(size for size in range(min(norm, batch), 0, -1) if batch % size == 0)
            raise UserError(
                f"train.norm_size {norm} does not divide train.batch_size {batch}: choose one that does, "
                f"such as {lower}"
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
        return yaml.dump(self.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)

    def ineffective(self) -> list[str]:
        """Settings that were changed from their default and do nothing in this run, a sentence each."""
        data, model, optim = self.data, self.model, self.optim
        cases = [
            (data.split == "official" and data.split_fractions != DataConfig().split_fractions, "data.split_fractions",
             "data.split is official"),
            (optim.name != "sgd" and optim.momentum != OptimConfig().momentum, "optim.momentum",
             f"optim.name is {optim.name}"),
            (data.split == "official" and data.fold == "none" and data.subset is None
             and data.split_seed != DataConfig().split_seed,
             "data.split_seed", "data.split is official, and there is no data.subset and no data.fold"),
            (data.grow != "none" and len(data.stages) == 1, "data.grow", "it has one height"),
            (data.decoder == "torch" and data.dali != DaliConfig(), "data.dali", "data.decoder is torch"),
            (data.decoder != "torch" and self.train.deterministic
             and data.dali.hw_decoder_load not in (0, DaliConfig().hw_decoder_load), "data.dali.hw_decoder_load",
             "train.deterministic is true, which leaves the JPEG hardware out"),
            (model.weights in RANDOM and model.trains_head_alone, "the frozen backbone",
             f"its weights are random (model.weights is {model.weights})"),
            (model.frozen_statistics != "kept" and model.freeze == "none", "model.frozen_statistics",
             "model.freeze is none"),
            (self.train.norm_size != "auto" and model.trains_head_alone and model.frozen_statistics == "kept"
             and self.augment.mixup == 0,
             "train.norm_size", f"model.freeze is {model.freeze}, and frozen layers keep their statistics"),
            (self.train.norm_size == 1 and self.augment.mixup > 0, "augment.mixup",
             "train.norm_size is 1, and groups of one image have no partners"),
            (optim.backbone_lr is not None and model.trains_head_alone, "optim.backbone_lr",
             f"model.freeze is {model.freeze}"),
            (self.tracking.mode == "disabled" and self.tracking.upload_best, "tracking.upload_best",
             "tracking.mode is disabled"),
            (self.train.on_nonfinite == "stop" and self.train.nonfinite_limit != TrainConfig().nonfinite_limit,
             "train.nonfinite_limit", "train.on_nonfinite is stop"),
        ]  # fmt: skip
        return [f"{field} has no effect because {because}" for changed, field, because in cases if changed]


Section.tree = Config
