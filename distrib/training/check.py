"""What can be known of a training before its ranks are started; nothing is written, and torch is imported if needed."""

from distrib.config import Config
from distrib.data.splits import Splits, digest
from distrib.data.table import Table
from distrib.runs.folder import RunFolder
from distrib.runs.wandb_settings import resolve_wandb
from distrib.training.checkpoint import (
    refuse_changes,
)
from distrib.training.grouping import check_batch, group_batch
from distrib.training.start import choose, first_model, read_data, refuse_finished


def check_start(config: Config, ranks: int) -> tuple[Table, Splits]:
    """What can be known before the ranks are started; nothing is written.

    Raises:
        UserError: if the batch cannot be shared out, the data set is not as the configuration says, the first weights
            cannot be had, W&B refuses one of its settings, the run folder holds another run, or what there is to go on
            from is damaged, of another training or finished elsewhere.
    """
    check_batch(config.train, ranks)
    resolve_wandb(config.tracking, config.run.folder)
    table, splits = read_data(config)
    checkpoint = None
    if config.run.folder is not None:
        folder, resume = RunFolder(config.run.folder), config.run.resume
        folder.check(resume)
        checkpoint = choose(folder, resume)
        if checkpoint is not None:
            refuse_changes(checkpoint, config, digest(table, splits.train, splits.valid))
            refuse_finished(checkpoint, config, folder)
    group_batch(config, ranks, checkpoint)
    if checkpoint is None and config.model.weights != "none":
        first_model(config, table.attributes, None)
    return table, splits
