"""Scoring a trained model on a data set, every image exactly once, on any number of ranks: `distrib evaluate`.

Legend: N images, A attributes.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn

from distrib.base.errors import UserError
from distrib.base.files import check_output, written_whole
from distrib.base.json import to_json
from distrib.base.streams import standard_streams
from distrib.base.words import few, plural
from distrib.config import Config, DataConfig, RunConfig, TrainConfig
from distrib.data.batch import Batch, Request
from distrib.data.decoders import Decoder, make_decoder
from distrib.data.splits import (
    TITLES,
    make_splits,
    nothing_in,
    one_class,
    other_split,
    seen_in_training,
    splits_of_training,
)
from distrib.data.table import SPLITS, Table, read_table
from distrib.model.options import DataOptions, EvaluateOptions
from distrib.model.trained import OnnxClassifier, TrainedModel, load
from distrib.ranks.environment import several_ranks
from distrib.ranks.machine import describe_machine, resolve
from distrib.ranks.meeting import check_ranks, from_rank_0, on_every_rank, start_ranks
from distrib.ranks.printing import say, warn
from distrib.scoring.bootstrap import paired_bootstrap
from distrib.scoring.evaluation import predict_logits
from distrib.scoring.predictions import Predictions
from distrib.scoring.scorecard import Scorecard, comparison_json, comparison_text

# Of the bootstrap that compares two models.
RESAMPLES, SEED = 1000, 0
# The options that name a file to write.
FILES = ("predictions", "json", "csv")


def prepare_evaluation(options: EvaluateOptions) -> Callable[[], None]:
    """Read the models and let the ranks meet; returns what then scores them.

    Raises:
        UserError: if there is no such model, an option does not fit it, or the ranks are not those asked for.
    """
    models = [load(path) for path in (options.model, options.against) if path is not None]
    if options.thresholds is not None:
        models[0] = models[0].with_thresholds(options.thresholds)
    config = resolve(configuration(options, models), like=models[0].description.precision)
    check_ranks(config)
    accelerator = start_ranks(config)

    def work() -> None:
        files = [getattr(options, name) for name in FILES]
        # What is printed is all that there is of an evaluation without files; ranks leave together.
        with standard_streams(goes_on=several_ranks() or any(files)):
            evaluate(options, config, models, accelerator)

    return work


def configuration(options: EvaluateOptions, models: Sequence[TrainedModel]) -> Config:
    """The configuration of this evaluation: the data as for the model's training but for what the options say.

    Raises:
        UserError: if an option is out of its range, or does not fit an ONNX file.
    """
    device, precision = options.device, options.precision
    for model in models:
        if isinstance(model.net, OnnxClassifier):
            if device == "cuda" or precision in ("bf16", "fp16"):
                asked = "--device cuda" if device == "cuda" else f"--precision {precision}"
                raise UserError(
                    f"{asked} does not go with {model.source}, an ONNX file, which is computed on the CPU in float32: "
                    "leave the option out, or name the model folder that the file was made from"
                )
            device, precision = "cpu", "no"
    if options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}, but a batch has at least 1 image: choose a larger one")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return Config(
        data=data_config(models[0], options.data),
        train=TrainConfig(batch_size=options.batch_size * ranks, precision=precision),
        run=RunConfig(device=device),
    )


def data_config(model: TrainedModel, options: DataOptions) -> DataConfig:
    """Which data, and how the model takes their images.

    Raises:
        UserError: if an option is out of its range, or no data set is known.
    """
    given = {name: value for name, value in asdict(options).items() if value is not None}
    known = data_of_training(model)
    if "root" not in given | known:
        raise UserError(f"{model.source} does not say which data it was trained on: name a data set by --data.root")
    if given.keys() & {"root", "split", "split_fractions", "split_seed"}:
        known |= {"subset": None, "fold": "none"}  # of another training split
    about = model.description
    return DataConfig.model_validate({**known, **given, "attributes": about.attributes, **about.view})


def data_of_training(model: TrainedModel) -> dict[str, Any]:
    """The settings of the data that the model was trained on, as far as it says."""
    return dict((model.description.training.get("config") or {}).get("data") or {})


def evaluate(
    options: EvaluateOptions, config: Config, models: Sequence[TrainedModel], accelerator: Accelerator
) -> None:
    """Score the first model, compare it with the second where there is one, and say and write the results.

    Raises:
        UserError: for all that the user can mend.
    """
    from_rank_0(accelerator, check_outputs, options)
    table = on_every_rank(accelerator, labels, config.data, models[0], options)
    rows, notes = on_every_rank(accelerator, choose_rows, table, config.data, models[0], options)
    for other in models[1:]:
        notes += on_every_rank(accelerator, seen_by_other, other, table, rows, config.data, options)
    names = common_attributes(models)
    machine, ranks = describe_machine(accelerator), plural(accelerator.num_processes, "rank")
    say(f"model:   {models[0].source}, epoch {models[0].description.epoch}{', with flip' if options.flip else ''}")
    say(f"data:    {config.data.root}, {options.split}: {plural(len(rows), 'image')}")
    say(f"machine: {ranks} on {machine['device']}, precision {config.train.precision}, decoder {config.data.decoder}")
    for note in notes:
        warn(note)

    logits = [logits_of(model, table, rows, config, accelerator, options) for model in models]
    accelerator.end_training()  # the other ranks end now, and hold no GPU while rank 0 counts
    if not accelerator.is_main_process:
        return
    model, found = models[0], Predictions.of(options.split, table, rows, logits[0])
    card = model.scorecard(found)
    say(f"\n{card.as_text()}\n\n{card.thresholds_as_text()}")
    result: dict[str, Any] = {
        "model": str(model.source),
        "epoch": model.description.epoch,
        "data": str(config.data.root),
        "split": options.split,
        "images": len(found),
        "flip": options.flip,
        "precision": config.train.precision,
        "decoder": config.data.decoder,
        **machine,
        **card.as_json(),
    }
    if options.against is not None:
        mine, theirs = ([model.attributes.index(name) for name in names] for model in models)
        targets, identity = found.targets_NA[:, mine], found.identity_N
        comparison = paired_bootstrap(logits[0][:, mine], logits[1][:, theirs], targets, identity, RESAMPLES, SEED)
        say(f"\nagainst {options.against}:\n{comparison_text(comparison, names)}")
        result["against"] = {"model": str(options.against), **comparison_json(comparison, names)}
    write_outputs(options, card, result, model, found)


def check_outputs(options: EvaluateOptions) -> None:
    """Refuse files that could not be written at the end.

    Raises:
        UserError: naming the option.
    """
    for name in FILES:
        file: Path | None = getattr(options, name)
        if file is not None:
            check_output(file, f"--{name}")
    if options.predictions is not None and options.predictions.suffix not in (".parquet", ".csv"):
        raise UserError(f"--predictions {options.predictions} ends neither in .parquet nor in .csv: choose one of them")


def labels(config: DataConfig, model: TrainedModel, options: EvaluateOptions) -> Table:
    """The table of the data set with the model's attributes; of its own splits, the images of one alone are asked for.

    Raises:
        UserError: if it cannot be read, or lacks one of them.
    """
    asked = options.data
    # For other data a random split is drawn only if that is asked for.
    drawn = config.split if asked.root is None else asked.split or "official"
    folded = data_of_training(model).get("fold", "none") != "none" and options.split != "test"
    whole = options.split == "all" or drawn != "official" or folded
    uses = SPLITS if whole else (options.split,)
    return model.labels(read_table(config.root, config.missing, uses), config.root)


def choose_rows(
    table: Table, config: DataConfig, model: TrainedModel, options: EvaluateOptions
) -> tuple[NDArray[np.int64], list[str]]:
    """The rows of a split, int64 [N], or of all images; and warnings about them and no others.

    The split is that of the model's training, if this is the data that it was trained on, wherever it lies now; a split
    that was drawn for other data says nothing of this one, which comes with its own.

    Raises:
        UserError: if the data set has no such split, or there is nothing in it.
    """
    if options.split == "all":
        rows = np.arange(len(table), dtype=np.int64)
        return rows, [*table.notes, *one_class(table, rows, str(config.root))]
    asked, notes = options.data, list(table.notes)
    of_training = DataConfig.model_validate({**dict(config), **data_of_training(model), "root": config.root})
    own = splits_of_training(table, of_training, model.description.training.get("data"))
    redrawn = {asked.split, asked.split_fractions, asked.split_seed} != {None}
    if own is not None and not redrawn:
        splits = own
    else:
        if asked.root is not None and asked.split is None and config.split != "official":
            notes.append(other_split(config, config.split))
            config = config.model_copy(update={"split": "official"})
        if config.split == "official" and table.split is None:
            raise UserError(
                f"--split {options.split} asks for a split, and {config.root} has none of its own (no "
                f"list_eval_partition file, no column split): score all of it by --split all"
            )
        splits = make_splits(table, config, needs=())
    rows = getattr(splits, options.split)
    if not len(rows):
        there = [name for name in SPLITS if len(getattr(splits, name))]
        share = "" if config.split == "official" else ", or give it a larger share by --data.split-fractions"
        raise UserError(
            f"{nothing_in(options.split, {name: getattr(splits, name) for name in SPLITS}, config)}: choose "
            f"{', '.join(f'--split {name}' for name in there)} or --split all{share}"
        )
    trained = rows[:0]  # of other data nothing is known
    if own is not None:
        trained = own.train
    elif asked.root is None and not redrawn:  # it has changed since
        trained = splits.train
    if options.split != "train":
        notes += seen_in_training(table, rows, trained, TITLES[options.split])
    return rows, [*notes, *one_class(table, rows, TITLES[options.split])]


def seen_by_other(
    model: TrainedModel, table: Table, rows: NDArray[np.int64], config: DataConfig, options: EvaluateOptions
) -> list[str]:
    """Notes if the model of --against was trained on some of the images, or people, that the first is scored on.

    Args:
        model: that one, whose attributes may be others.
        table: with the first model's attributes.
        rows: int64 [N], which are to be scored.
        config: of the data set.
        options: of the command line.
    """
    if options.split in ("train", "all"):
        return []
    try:
        its_own = labels(config, model, options)
    except UserError:  # it predicts more than this data set has labels for, and was not trained on it
        return []
    of_training = DataConfig.model_validate({**dict(config), **data_of_training(model), "root": config.root})
    splits = splits_of_training(its_own, of_training, model.description.training.get("data"))
    if splits is None:
        return []
    seen = {its_own.names[row] for row in splits.train}
    trained = np.array([row for row, name in enumerate(table.names) if name in seen], dtype=np.int64)
    notes = seen_in_training(table, rows, trained, TITLES[options.split])
    return [f"--against {model.source}: {note[0].lower()}{note[1:]}" for note in notes]


def common_attributes(models: Sequence[TrainedModel]) -> list[str]:
    """The attributes that all models predict, in the order of the first.

    Raises:
        UserError: if there are none; on all ranks alike.
    """
    first, *others = models
    common = [name for name in first.attributes if all(name in other.attributes for other in others)]
    if not common:
        known = "; ".join(f"{model.source}: {few(list(model.attributes))}" for model in models)
        raise UserError(
            f"--against {others[0].source} has no attribute in common with {first.source} ({known}): compare models of "
            "the same attributes",
            on_all_ranks=True,
        )
    return common


def logits_of(
    model: TrainedModel,
    table: Table,
    rows: NDArray[np.int64],
    config: Config,
    accelerator: Accelerator,
    options: EvaluateOptions,
) -> NDArray[np.float32]:
    """Logits float32 [N, A] of the model for these rows, the same array on every rank."""
    about = model.description
    data = DataConfig.model_validate({**dict(config.data), **about.view, "grow": "none"})  # evaluation is at full size
    decoder: Decoder = make_decoder(data, table, accelerator.device, options.batch_size)
    if accelerator.is_main_process and sys.stderr.isatty():
        decoder = Shown(decoder, -(-len(rows) // accelerator.num_processes // options.batch_size))
    net = MirrorMean(model.net) if options.flip else model.net
    # For evaluation it is only moved and put under autocast: no DDP, which has no use for an ONNX file.
    net = accelerator.prepare_model(net, evaluation_mode=True)
    of_batch = len(about.attributes), options.batch_size
    return predict_logits(accelerator, net, decoder, rows, *of_batch, zoom=about.eval_zoom)


class MirrorMean(nn.Module):
    """Logits averaged over each image and its mirror image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Logits float [B, A] of uint8 RGB images [B, H, W, 3]."""
        logits_BA: torch.Tensor = (self.net(images_BHWC).float() + self.net(images_BHWC.flip(2)).float()) / 2
        return logits_BA


class Shown:
    """A decoder whose progress shows on the terminal."""

    def __init__(self, decoder: Decoder, batches: int) -> None:
        self.name = decoder.name
        self._decoder, self._batches = decoder, batches

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """See `Decoder.batches`."""
        console = Console(stderr=True)
        yield from track(self._decoder.batches(requests), "scoring", self._batches, console=console, transient=True)


def write_outputs(
    options: EvaluateOptions, card: Scorecard, result: Mapping[str, Any], model: TrainedModel, found: Predictions
) -> None:
    """Write the files that are asked for; on rank 0.

    Raises:
        UserError: if one cannot be written.
    """
    if options.predictions is not None:
        write_predictions(options.predictions, model, found)
    if options.json is not None:
        with written_whole(options.json, "--json") as staged:
            staged.write_text(to_json(result) + "\n", encoding="utf-8")
    if options.csv is not None:
        with written_whole(options.csv, "--csv") as staged:
            staged.write_text(card.as_csv(), encoding="utf-8")


def write_predictions(file: Path, model: TrainedModel, found: Predictions) -> None:
    """A row for each image: file, split, identity where known, and label, probability and decision by attribute.

    Args:
        file: .parquet or .csv.
        model: whose calibrated probabilities and decisions at its thresholds they are.
        found: its logits.

    Raises:
        UserError: if it cannot be written.
    """
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    columns: dict[str, Any] = {"file": found.names, "split": [found.split] * len(found)}
    if found.identity_N is not None:
        columns["identity"] = found.identity_N
    probabilities_NA = model.probabilities(found.logits_NA)
    decisions_NA = model.decisions(found.logits_NA).astype(np.uint8)
    for i, name in enumerate(found.attributes):
        columns[f"{name}_label"] = found.targets_NA[:, i]
        columns[f"{name}_probability"] = probabilities_NA[:, i]
        columns[f"{name}_decision"] = decisions_NA[:, i]
    table = pyarrow.table(columns)
    # pyarrow opens no file whose name has bytes that are no UTF-8.
    with written_whole(file, "--predictions") as staged, staged.open("wb") as stream:
        if file.suffix == ".parquet":
            pyarrow.parquet.write_table(table, stream)
        else:
            pyarrow.csv.write_csv(table, stream)
