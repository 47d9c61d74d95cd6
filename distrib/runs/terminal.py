"""What a person sees while a run trains, on rank 0: a progress bar, or plain lines where the output is no terminal."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distrib.base.words import percent

# Without a terminal a line at most this often, in seconds: logs of long runs stay readable.
LINE_EVERY = 10.0

HEADER = (
    f"{'Epoch':>7} {'Loss':>9} {'Validation Loss':>16} {'Accuracy':>9} {'Precision':>10} {'F1':>8} {'ROC AUC':>9}"
    f" {'images/s':>10} {'seconds':>9}"
)


class Terminal:
    """Shows how a run gets on; this one shows nothing, as on every rank but the first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, epoch: int, done: int, metrics: Mapping[str, float]) -> None:
        """After a look at the device: the epoch from 1, the steps done of the run, and the metrics as W&B has them."""

    def epoch(self, row: Mapping[str, float], best: bool) -> None:
        """A row of the table with the report's columns."""


def make_terminal(main: bool, total_steps: int, done: int, epochs: int) -> Terminal:
    """A bar where rank 0 has a terminal, lines where it has none, and nothing on other ranks."""
    if not main:
        return Terminal()
    return Bar(total_steps, done, epochs) if sys.stdout.isatty() else Lines(total_steps, done, epochs)


class Lines(Terminal):
    """For logs."""

    def __init__(self, total_steps: int, done: int, epochs: int) -> None:
        self._total, self._epochs = total_steps, epochs
        self._first, self._began = done, time.monotonic()
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        print(HEADER, flush=True)
        return self

    def step(self, epoch: int, done: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._last < LINE_EVERY or done == self._first:
            return
        self._last = now
        left = (now - self._began) / (done - self._first) * (self._total - done)
        print(
            f"        epoch {epoch}/{self._epochs}, step {done}/{self._total}: {_numbers(metrics)}, "
            f"{timedelta(seconds=int(left))} left",
            flush=True,
        )

    def epoch(self, row: Mapping[str, float], best: bool) -> None:
        print(_row(row, best), flush=True)


class Bar(Terminal):
    """For people."""

    def __init__(self, total_steps: int, done: int, epochs: int) -> None:
        self._epochs = epochs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total} steps {task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(),
            transient=True,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=done, numbers="")

    def __enter__(self) -> Self:
        self._progress.console.print(HEADER, highlight=False, soft_wrap=True)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, epoch: int, done: int, metrics: Mapping[str, float]) -> None:
        self._progress.update(
            self._task,
            completed=done,
            description=f"epoch {epoch}/{self._epochs}",
            numbers=_numbers(metrics),
        )

    def epoch(self, row: Mapping[str, float], best: bool) -> None:
        self._progress.console.print(_row(row, best), highlight=False, soft_wrap=True)


@contextmanager
def time_left(work: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal, and there alone, how far a long piece of work is and how long it will still take.

    Args:
        work: what is done.
        total: the number of its parts.

    Yields:
        What is to be called with the number of parts that have been finished since the last call.
    """
    console = Console()
    if not console.is_terminal:
        yield lambda finished: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield partial(progress.advance, progress.add_task(work, total=total))


def _row(row: Mapping[str, float], best: bool) -> str:
    return (
        f"{row['epoch']:>7} {row['train_loss']:>9.4f} {row['val_loss']:>16.4f} {row['val_accuracy'] * 100:>8.2f}% "
        f"{row['val_precision']:>10.4f} {row['val_f1']:>8.4f} {row['val_roc_auc']:>9.4f}"
        f" {row['images_per_second']:>10,.0f} {row['seconds']:>9.1f}{'  best so far' if best else ''}"
    )


def _numbers(metrics: Mapping[str, float]) -> str:
    loss, lr, speed = (metrics[f"train/{name}"] for name in ("loss", "lr", "images_per_second"))
    shares = {"data": metrics["train/data_share"], "MFU": metrics.get("train/mfu")}
    known = [f"{name} {percent(share)}" for name, share in shares.items() if share is not None]
    return ", ".join([f"loss {loss:.4f}, lr {lr:.2e}, {speed:,.0f} images/s", *known])
