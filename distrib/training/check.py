"""What can be known of a training before its ranks are started; torch is imported only for weights to look at."""

from typing import TYPE_CHECKING

from distrib.base.errors import UserError
from distrib.config import RANDOM, Config
from distrib.data.reader import sample_colours
from distrib.data.splits import Splits, digest, make_splits
from distrib.data.table import Table, read_table
from distrib.explaining.options import check_options, check_photograph
from distrib.runs.folder import RunFolder
from distrib.runs.wandb_settings import resolve_wandb
from distrib.training.grouping import check_batch, group_batch

if TYPE_CHECKING:
    from distrib.training.checkpoint import Checkpoint


def read_data(config: Config) -> tuple[Table, Splits]:
    """The table with the chosen attributes, and its splits.

    Raises:
        UserError: if the data set is not as the configuration says.
    """
    whole = read_table(config.data.root, config.data.missing)
    if config.explain.after_training:
        check_options(config, whole)
        check_photograph(config)
    table = whole.select(config.data.attributes)
    splits = make_splits(table, config.data)
    if len(splits.train) < config.train.batch_size:
        raise UserError(
            f"train.batch_size {config.train.batch_size} exceeds the training split of {len(splits.train)} images: "
            "choose a smaller one"
        )
    return table, splits


def check_start(config: Config, ranks: int) -> tuple[Table, Splits]:
    """What can be known before the ranks are started; nothing is written.

    Raises:
        UserError: if the batch cannot be shared out, the data set is not as the configuration says, the first weights
            cannot be had, W&B refuses one of its settings, the run folder holds another run, or what there is to
            resume from is damaged, of another training or finished elsewhere.
    """
    check_batch(config.train, ranks)
    resolve_wandb(config.tracking, config.run.folder)
    table, splits = read_data(config)
    checkpoint: Checkpoint | None = None
    if config.run.folder is not None:
        folder, resume = RunFolder(config.run.folder), config.run.resume
        folder.check(resume)
        if resume != "never":
            from distrib.training.checkpoint import refuse_changes
            from distrib.training.start import choose, refuse_finished

            checkpoint = choose(folder, resume)
            if checkpoint is not None:
                data = digest(table, splits.train, splits.valid)
                refuse_changes(checkpoint, config, data, sample_colours(table, splits.train))
                refuse_finished(checkpoint, config, folder)
    group_batch(config, ranks, checkpoint)
    if checkpoint is None and config.model.weights not in RANDOM:
        from distrib.training.start import first_model

        first_model(config, table.attributes, None)
    return table, splits
