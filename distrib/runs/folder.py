"""The folder of a run: what is in it and who writes it.

    config.yaml                 as resolved; a valid --config
    metrics.csv                 an epoch a row
    metrics_by_attribute.csv    an epoch and attribute a row
    speed.csv                   an epoch a row, and one at the end or a stop: where the time went, MFU, peak memory
    events.jsonl                what happened, in order: start, resume, epoch, nonfinite, error, end …
    checkpoints/                step-NNNNNNNN/
    best/                       the model of the best validation epoch, with its model card
    former-best/                the one before, until a checkpoint that knows of best/ is on the disk
    passed-over-best/           one that a run has gone back behind, with the checkpoints that it passed over
    profile/                    what the operations of some steps took, where train.profile asks for it
    report/                     index.html, and the figures and tables it is made of
    wandb/                      W&B's own files
    wandb_run_id                the run's id in W&B
    wandb_settings.json         what else makes it the same run there, as its first start has found it: project, name …
    preempt                     made by whoever wants the run to save and leave; gone when it has
    trial.json                  of which study this run is a trial, where it is one
    run.lock                    who is at work in this folder; gone when they have left

Only rank 0 writes, but for the last line of another rank that has met an error of its own.
"""

import csv
import errno
import fcntl
import io
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.files import recover_folder, remove_leftovers, replace_folder, save_weights, write_whole
from distrib.base.json import to_json
from distrib.config import SCORES
from distrib.ranks.environment import launch_id, restarts
from distrib.runs.metrics import ADDED, METRICS, RAW_LOSS, SPEED
from distrib.scoring.metrics import Scores

if TYPE_CHECKING:
    import torch

BY_ATTRIBUTE = ("epoch", "attribute", *SCORES)
# A launcher gives its ranks 30 seconds to leave: so long a resumed run may have to wait for its earlier self.
LEAVES_WITHIN = 30.0


class RunFolder:
    """Writes what a run leaves behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.former_best = path / "former-best"
        self.passed_over_best = path / "passed-over-best"
        self.profile = path / "profile"
        self.page = path / "report/index.html"
        self.preempt = path / "preempt"
        self.trial = path / "trial.json"
        self._lock: int | None = None
        self._adding = threading.Lock()  # the loop, the writer of checkpoints and the watch add lines

    def lock(self, patience: float = 0.0) -> None:
        """Keep other runs out of this folder until `unlock`, or until this process ends, however it does.

        Args:
            patience: seconds to wait for another run that is about to leave.

        Raises:
            UserError: if another run is at work here, or the folder cannot be written.
        """
        if self._lock is not None:
            return
        file, until = self.path / "run.lock", time.monotonic() + patience
        while True:
            try:
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise _cannot_use(self.path, error) from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise UserError(
                        f"run.folder {self.path} is on a file system without locks ({error.strerror}): choose one "
                        "where flock works"
                    ) from None
                if time.monotonic() > until:
                    raise UserError(
                        f"run.folder {self.path} is in use by {holder}: wait for it, stop it (touch {self.preempt}), "
                        "or choose another folder"
                    ) from None
                time.sleep(0.2)
                continue
            # Whoever held it may have removed the file in the meantime: then this lock is on a file without a name.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    break
            os.close(descriptor)
        self._lock = descriptor
        with suppress(OSError):  # a full disk takes no name, and the lock holds without it
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def unlock(self) -> None:
        """Let others into the folder."""
        if self._lock is not None:
            with suppress(OSError):  # on a disk that has failed; without its lock it keeps nobody out
                (self.path / "run.lock").unlink(missing_ok=True)
                os.close(self._lock)
            self._lock = None

    def check(self, resume: str) -> None:
        """Refuse a folder whose run would be lost.

        Raises:
            UserError: if a new run, or one from a checkpoint elsewhere, is to start where an earlier one has left its
                files.
        """
        if not any((self.path / name).exists() for name in ("metrics.csv", "checkpoints", "best")):
            return
        named = Path(resume).resolve()
        # A run from a checkpoint elsewhere that was killed before its own first one begins there again.
        own = resume == "auto" or named.parent == self.checkpoints.resolve() or named == self.origin()
        if not own:
            raise UserError(
                f"run.folder {self.path} holds a run already: resume it with --resume auto, or choose another folder"
            )

    def meant(self, resume: str) -> str:
        """What `run.resume` means for the run in this folder: auto after its earlier self, which the launcher has
        started again, whatever was asked for at first."""
        again = restarts() > 0 and any(event.get("launch") == launch_id() for event in self.events("start"))
        return "auto" if again else resume

    def origin(self) -> Path | None:
        """The checkpoint elsewhere from which this folder's run has begun, as long as it has none of its own."""
        starts = self.events("start")
        if any(self.checkpoints.glob("step-*")) or not starts or not starts[-1].get("checkpoint"):
            return None
        checkpoint = Path(starts[-1]["checkpoint"])
        return None if checkpoint.parent == self.checkpoints.resolve() else checkpoint

    def make(self) -> None:
        """Make the folder where there is none.

        Raises:
            UserError: if it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_use(self.path, error) from None

    def open(self) -> None:
        """Clear what a crash has left half-written in an earlier run's folder, once it is locked.

        Raises:
            UserError: if it cannot be written.
        """
        try:
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
            recover_folder(self.best)
            recover_folder(self.former_best)
            remove_leftovers(self.checkpoints)
            for leftover in self.path.glob(".*.staged"):
                if leftover.is_file():
                    leftover.unlink()
        except OSError as error:
            raise _cannot_use(self.path, error) from None

    def epochs(self) -> int:
        """How many epochs metrics.csv tells of."""
        return max(0, len(_lines(self.path / "metrics.csv")) - 1)

    def has_report(self) -> bool:
        """Whether the report has been finished since the training ended; a page alone may lack what was to come."""
        return self.page.exists() and [each["event"] for each in self.events("end", "report")][-1:] == ["report"]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """The events of these kinds that events.jsonl tells of; a line that a kill cut off is none."""
        found = []
        for line in _lines(self.path / "events.jsonl"):
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") in kinds:
                    found.append(event)
        return found

    def write_config(self, yaml: str) -> None:
        _write(self.path / "config.yaml", yaml)

    def event(self, kind: str, **fields: Any) -> None:
        """Add a line to events.jsonl, on the disk when this returns."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **fields}
        with self._adding:
            _append(self.path / "events.jsonl", json.dumps(line) + "\n")

    def epoch(self, row: Mapping[str, float], scores: Scores) -> None:
        """Add an epoch's row to metrics.csv and its rows to metrics_by_attribute.csv."""
        columns = tuple(row)
        assert columns in (METRICS, (*METRICS, RAW_LOSS))
        _append_rows(self.path / "metrics.csv", columns, [list(row.values())])
        rows = [[row["epoch"], name, *values.values()] for name, values in scores.by_attribute().items()]
        _append_rows(self.path / "metrics_by_attribute.csv", BY_ATTRIBUTE, rows)

    def speed(self, row: Mapping[str, float | None]) -> None:
        """Add a row to speed.csv; None: the field is empty."""
        assert tuple(row) == SPEED
        _append_rows(self.path / "speed.csv", SPEED, [list(row.values())])

    def forget_after(self, epoch: int, step: int) -> None:
        """Drop the rows of what a resumed run will train again; and let speed.csv, if it is an earlier version's, have
        today's columns.

        Args:
            epoch: the last whole one that is kept.
            step: of the run, to which its rows in speed.csv are kept: a process that stopped has left one of its own.
        """
        for name in ("metrics.csv", "metrics_by_attribute.csv", "speed.csv"):
            file = self.path / name
            if file.exists():
                header, *rows = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) or [""]
                if not header.endswith("\n"):  # cut off by a full disk or a kill
                    file.unlink()
                    continue
                cells = [row.split(",", 2) for row in rows]
                kept = [
                    row
                    for row, (number, *others) in zip(rows, cells, strict=True)
                    if row.endswith("\n") and number.isdecimal() and int(number) <= epoch
                    and not (name == "speed.csv" and others[0].isdecimal() and int(others[0]) > step)
                ]  # fmt: skip
                if name == "speed.csv" and ADDED[0] not in header:
                    header = header.replace("\n", f",{','.join(ADDED)}\n")
                    kept = [row.replace("\n", ",0.0" * len(ADDED) + "\n") for row in kept]
                _write(file, "".join([header, *kept]))

    def recall_best(self, epoch: int, passed_over: bool) -> bool:
        """Let best/ be that of this epoch, the best one that a resumed run knows of, or be no more.

        Args:
            epoch: counted from 1; 0: the run knows of none.
            passed_over: whether the run has gone back behind checkpoints that are kept; then their best/ is kept too.

        Returns:
            Whether there was a best/ and is none now.
        """
        known = _epoch_of(self.best) == epoch
        there = self.best.exists()
        if there and not known and passed_over:
            shutil.rmtree(self.passed_over_best, ignore_errors=True)
            self.best.rename(self.passed_over_best)
        elif not known:
            shutil.rmtree(self.best, ignore_errors=True)
        if not known and _epoch_of(self.former_best) == epoch:
            self.former_best.rename(self.best)
        self.forget_former_best()
        return there and not self.best.exists()

    def forget_former_best(self) -> None:
        """Remove what is kept for a crash before a checkpoint knows of best/: one is on the disk now."""
        shutil.rmtree(self.former_best, ignore_errors=True)

    def save_best(
        self,
        weights: "dict[str, torch.Tensor]",
        logits: NDArray[np.float32],
        description: Mapping[str, Any],
        card: str,
    ) -> None:
        """Replace best/; what a checkpoint on the disk may know of stays in former-best/ until `forget_former_best`.

        Args:
            weights: by torchvision's names, for model.safetensors.
            logits: float32 [validation images, A], for validation.safetensors: the figures are made from the very
                numbers that were scored, and no image or label leaves the data set with the model.
            description: what prediction needs, for model.json.
            card: the model card, for README.md.
        """

        import torch

        def write(staged: Path) -> None:
            save_weights(weights, staged / "model.safetensors")
            save_weights({"logits": torch.from_numpy(logits)}, staged / "validation.safetensors")
            (staged / "model.json").write_text(to_json(description), encoding="utf-8")
            (staged / "README.md").write_text(card, encoding="utf-8")

        def link(staged: Path) -> None:
            for file in self.best.iterdir():
                try:
                    (staged / file.name).hardlink_to(file)
                except OSError:  # not every file system has links
                    shutil.copyfile(file, staged / file.name)

        if self.best.exists() and not self.former_best.exists():
            replace_folder(self.former_best, link)
        replace_folder(self.best, write)


def _epoch_of(best: Path) -> int | None:
    """The epoch, counted from 1, whose model is in a folder such as best/; None: it does not say."""
    try:
        epoch = json.loads((best / "model.json").read_text(encoding="utf-8"))["epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return epoch if isinstance(epoch, int) else None


def _lines(file: Path) -> list[str]:
    """The lines of a file that a kill may have cut off anywhere; none where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _append_rows(file: Path, header: tuple[str, ...], rows: list[list[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(rows if file.exists() else [list(header), *rows])
    _append(file, text.getvalue())


def _append(file: Path, text: str) -> None:
    """Add whole lines to a file, on the disk when this returns; a line that a kill cut off is closed first."""
    try:
        with file.open("a+b") as stream:
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                if stream.read() != b"\n":
                    stream.write(b"\n")
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise _cannot_write(file, error) from None


def _write(file: Path, text: str) -> None:
    try:
        write_whole(file, text)
    except OSError as error:
        raise _cannot_write(file, error) from None


def _cannot_use(folder: Path, error: OSError) -> UserError:
    return UserError(f"run.folder {folder} cannot be written ({error.strerror}): choose another")


def _cannot_write(file: Path, error: OSError) -> UserError:
    return UserError(f"{file} cannot be written ({error.strerror}): check the disk, then resume with --resume auto")
