"""What a run is about: the same for its whole length, and on every rank."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from accelerate import Accelerator

from distrib.config import Config
from distrib.data.decoders import Decoder, Substitute, make_decoder
from distrib.data.kind import data_kind
from distrib.data.plan import Plan
from distrib.data.reader import sample_colours
from distrib.data.resident import ResidentImages, make_resident_decoder
from distrib.data.splits import Splits, digest
from distrib.data.table import Table
from distrib.model.trained import Description
from distrib.ranks.machine import describe_machine
from distrib.runs.folder import RunFolder
from distrib.runs.tracking import Tracker
from distrib.training.checkpoint import Progress

# Says on rank 0, of an epoch's row of metrics.csv, whether the run is not worth continuing.
Judge = Callable[[Mapping[str, float]], bool]


def never(_: Mapping[str, float]) -> bool:
    """The judge of a run that nobody compares with others."""
    return False


@dataclass(frozen=True)
class TrainingRun:
    """What a run trains on and where it leaves its traces; `config` is resolved, `table` has the chosen attributes.

    `judge` says on rank 0, of each epoch's row of metrics.csv, whether the run is not worth continuing; `images` are
    those of training and validation, where they have been decoded already.
    """

    config: Config
    accelerator: Accelerator
    table: Table
    splits: Splits
    folder: RunFolder
    tracker: Tracker
    judge: Judge = never
    images: ResidentImages | None = None

    @cached_property
    def plan(self) -> Plan:
        data, train = self.config.data, self.config.train
        views = data.min_zoom, data.flip
        return Plan(self.splits.train, train.seed, train.batch_size, *views, data.stages, train.epochs)

    def make_decoder(self, max_batch: int, substitute: Substitute | None = None) -> Decoder:
        """A decoder of the images to train on and to validate with; for its arguments see `decoders.make_decoder`."""
        data, device = self.config.data, self.accelerator.device
        if self.images is not None:
            return make_resident_decoder(self.images, data, self.table, device, substitute)
        return make_decoder(data, self.table, device, max_batch, substitute)

    @cached_property
    def data(self) -> str:
        """Digest of what is trained and validated on."""
        return digest(self.table, self.splits.train, self.splits.valid)

    @cached_property
    def colours(self) -> list[list[float] | None]:
        """Mean colours of some training images, which tell other images under the same names."""
        return sample_colours(self.table, self.splits.train)


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        progress: how far it came.
        stopped_by: what asked it to stop; None: it came to its end.
    """

    progress: Progress
    stopped_by: str | None = None


def describe(run: TrainingRun, epoch: int) -> Description:
    """What prediction needs to know of the network, before it is calibrated."""
    config, splits = run.config, run.splits
    count = len(run.table.attributes)
    return Description(
        architecture=config.model.name,
        stem=config.model.stem,
        attributes=run.table.attributes,
        image_size=config.data.image_size,
        crop=config.data.crop,
        eval_zoom=config.data.eval_zoom,
        temperature=(1.0,) * count,
        thresholds=(0.5,) * count,
        tuned_for=config.checkpoint.thresholds,
        epoch=epoch,
        training={
            "config": config.model_dump(mode="json"),
            "images": {"train": len(splits.train), "valid": len(splits.valid), "test": len(splits.test)},
            "data": run.data,
            "colours": run.colours,
            "data_kind": data_kind(config.data.root),
            "date": time.strftime("%Y-%m-%d"),
            **describe_machine(run.accelerator),
        },
    )
