"""Checkpoints: staged, fsynced, renamed, and only then are older ones pruned; each file's SHA-256 in a manifest.

Rank 0 writes them in the background: a step waits for a copy of the state, and not for the disk.
"""

import hashlib
import json
import pickle
import re
import reprlib
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field, TypeAdapter

from distrib.base.errors import UserError, first_line, printable
from distrib.base.files import replace_folder, save_weights
from distrib.config import AugmentConfig, Config, read_yaml
from distrib.data.reader import other_colours

# What a resumed run may not change, because its steps or its state would mean something else. All else may change:
# epochs, learning rate and schedule, precision, decoder, ranks, logging …
FIXED = (
    "data.attributes", "data.split", "data.split_fractions", "data.split_seed", "data.fold", "data.subset",
    "data.image_size", "data.grow", "data.crop", "data.flip", "data.min_zoom", "data.eval_zoom",
    *(f"augment.{name}" for name in AugmentConfig.model_fields), "model.name", "model.stem", "model.freeze",
    "model.frozen_statistics", "optim.name", "train.batch_size", "train.seed", "train.ema", "train.label_smoothing",
    "train.positive_weight", "checkpoint.best_score", "checkpoint.thresholds",
)  # fmt: skip

MANIFEST = "manifest.json"
TRAINER = ("optimizer", "scaler", "progress", "data")  # what trainer.pt holds, beside "network"
VERSION = 4

Count = Annotated[int, Field(ge=0)]


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs finished.
        step: steps finished of the epoch under way.
        loss_sum: sum of the training losses of those steps.
        seconds: time spent on those steps.
        best_epoch: the epoch kept in best/, counted from 1; 0: none yet.
        best_score: its score; None: none yet.
        skipped: the steps of the run, counted from 0, that were skipped because their loss was not finite.
        replaced: rows of the training images that were broken, and others were trained on in their place.
        pruned: whether the study that the run is a trial of has given it up.
        norm_size: images that BatchNorm normalised over; None: of an earlier version, which did not write it down.
        accumulation: micro-batches of each rank; None likewise.
    """

    epoch: Count = 0
    step: Count = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: Count = 0
    best_score: float | None = None
    skipped: tuple[Count, ...] = ()
    replaced: tuple[Count, ...] = ()
    pruned: bool = False
    norm_size: int | None = None
    accumulation: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds once read and verified."""

    folder: Path
    weights: dict[str, torch.Tensor]
    trainer: dict[str, Any]  # by the names in `TRAINER`, and "network" as in `Contents`

    @property
    def progress(self) -> Progress:
        return TypeAdapter(Progress).validate_python(self.trainer["progress"])


class DamagedError(Exception):
    """A checkpoint that is not whole; says what is wrong with it, on one line."""

    def __init__(self, problem: str) -> None:
        super().__init__(printable(problem))


@dataclass(frozen=True)
class Contents:
    """What goes into a checkpoint and changes from one to the next.

    Attributes:
        weights: the network's state, by torchvision's names; of its average, where there is one.
        optimizer: its state dict.
        scaler: the fp16 gradient scaler's state dict, or None.
        progress: of the run.
        model_json: what prediction needs, so that a checkpoint is a model folder too.
        total_steps: steps of the run so far; names the checkpoint, so that names sort by age.
        network: the state of the trained network itself, where `weights` are its average; else None.
    """

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    progress: Progress
    model_json: str
    total_steps: int
    network: dict[str, torch.Tensor] | None = None


def save_checkpoint(folder: Path, contents: Contents, data: str, config_yaml: str, keep: int) -> Path:
    """Write a checkpoint into the folder of checkpoints and prune the oldest ones.

    Args:
        folder: of all checkpoints of a run.
        contents: of this one.
        data: digest of what is trained on; a run resumes with nothing else.
        config_yaml: the resolved configuration.
        keep: how many to leave.
    """
    trainer = {
        "optimizer": contents.optimizer,
        "scaler": contents.scaler,
        "progress": asdict(contents.progress),
        "data": data,
        "network": contents.network,
    }

    def write(staged: Path) -> None:
        save_weights(contents.weights, staged / "model.safetensors")
        _save_trainer(trainer, staged / "trainer.pt")
        (staged / "config.yaml").write_text(config_yaml, encoding="utf-8")
        (staged / "model.json").write_text(contents.model_json, encoding="utf-8")
        _write_manifest(staged)

    target = folder / f"step-{contents.total_steps:08d}"
    replace_folder(target, write)
    for later in later_than(folder, contents.total_steps):  # of a past that the run has gone back from
        shutil.rmtree(later, ignore_errors=True)
    others = [each for each in _newest_first(folder) if each.is_dir()]
    for old in others[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


# Called in the background with a copy of the weights, by torchvision's names and in the host's memory.
WriteFirst = Callable[[dict[str, torch.Tensor]], None]


def nothing(_: dict[str, torch.Tensor]) -> None:
    """What has to be on the disk before most checkpoints."""


class CheckpointWriter:
    """Writes checkpoints in the background, one at a time.

    Args:
        folder: of all checkpoints of a run.
        data: digest of what is trained on.
        config_yaml: the resolved configuration.
        keep: how many to leave.
        failed: called with the sentence where one could not be written and the run is to continue without it; None: the
            error is raised from the next call instead.
        written: called in the background when one is on the disk.
    """

    def __init__(
        self,
        folder: Path,
        data: str,
        config_yaml: str,
        keep: int,
        failed: Callable[[str], None] | None,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._data, self._config_yaml, self._keep = folder, data, config_yaml, keep
        self._failed, self._written = failed, written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[UserError | None] | None = None

    def save(self, contents: Contents, first: WriteFirst = nothing) -> None:
        """Copy the state where the training cannot reach it, and have it written; waits for an earlier one first.

        Args:
            contents: of the checkpoint.
            first: writes what has to be on the disk before the checkpoint is; where it cannot, there is no checkpoint.

        Raises:
            UserError: as `wait` does, for an earlier one.
        """
        self.wait()
        copy = _Copy(contents)
        self._pending = self._thread.submit(self._write, contents, copy, first)

    def has_failed(self) -> bool:
        """Whether there was an error in writing for which the run is to stop; without waiting.

        Then `wait` raises it. Where the run is to continue, it is told here.
        """
        if self._pending is None or not self._pending.done():
            return False
        if self._pending.exception() is not None:
            return True
        if self._failed is None:
            return self._pending.result() is not None
        self.wait()
        return False

    def wait(self, at_any_rate: bool = False) -> None:
        """Wait until the last one is on the disk.

        Args:
            at_any_rate: whether it has to be there, whatever the run is to do about failures.

        Raises:
            UserError: if it could not be written, and the run is to stop for that; or if what comes first could not be.
        """
        pending, self._pending = self._pending, None
        error = None if pending is None else pending.result()
        if error is None:
            return
        if self._failed is None or at_any_rate:
            raise error
        self._failed(str(error))

    def _write(self, contents: Contents, copy: "_Copy", first: WriteFirst) -> UserError | None:
        """The error of the checkpoint, which the run may survive; that of what comes first is raised."""
        weights, optimizer, network = copy.on_cpu()
        first(weights)
        on_cpu = replace(contents, weights=weights, optimizer=optimizer, network=network)
        try:
            save_checkpoint(self._folder, on_cpu, self._data, self._config_yaml, self._keep)
        except UserError as error:
            return error
        self._written()
        return None


class _Copy:
    """A copy of weights and optimiser on their own device, made in the order of the step's own operations.

    On a GPU nobody waits for it: the host continues, and the writer fetches it on a stream of its own.
    """

    def __init__(self, contents: Contents) -> None:
        state = [contents.weights, contents.optimizer, contents.network]
        self._state = _map_tensors(lambda tensor: tensor.detach().clone(), state)
        self._ready = torch.cuda.Event() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        if self._ready is not None:
            self._ready.record()

    def on_cpu(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, torch.Tensor] | None]:
        """What was copied, in the host's memory; to be called once, from any thread."""
        state, self._state = self._state, None
        if self._ready is not None:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                stream.wait_event(self._ready)
                state = _map_tensors(lambda tensor: tensor.cpu(), state)
        weights, optimizer, network = state
        return weights, optimizer, network


def _map_tensors(change: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """The same dictionaries and lists with every tensor changed."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _map_tensors(change, each) for key, each in tree.items()}
    if isinstance(tree, list | tuple):
        return [_map_tensors(change, each) for each in tree]
    return tree


def later_than(folder: Path, steps: int) -> list[Path]:
    """The checkpoints in a folder that have more steps than so many, which a run that resumes there passes over."""
    return [each for each in _newest_first(folder) if _steps(each) > steps]


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint that a run has passed over: it may be whole for another version of this program.

    Returns:
        Where it is now.
    """
    kept = checkpoint.with_name(f"passed-over-{checkpoint.name}")
    shutil.rmtree(kept, ignore_errors=True)
    return checkpoint.rename(kept)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint and verify every byte of it.

    Raises:
        DamagedError: if it is not whole.
        UserError: if the disk or the memory fails, which says nothing about the checkpoint.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["version"], dict(manifest["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{MANIFEST} is missing") from None
    except IsADirectoryError:
        raise DamagedError(f"{MANIFEST} is a folder") from None
    except OSError as error:
        raise _unreadable(folder / MANIFEST, error) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({_first_line(error)})") from None
    if version != VERSION:
        raise DamagedError(f"it is of version {reprlib.repr(version)}, and this program reads version {VERSION}")
    for name in ("model.safetensors", "model.json", "trainer.pt", "config.yaml"):
        if not (folder / name).is_file():
            raise DamagedError(f"{name} is missing")
        try:
            same = _sha256(folder / name) == files.get(name)
        except OSError as error:
            raise _unreadable(folder / name, error) from None
        if not same:
            raise DamagedError(f"{name} is not the file that was written (its SHA-256 differs)")
    try:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own about odd files
            trainer = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
        known = {key: trainer[key] for key in TRAINER}
        checkpoint = Checkpoint(folder, weights, {**known, "network": trainer.get("network")})
        _ = checkpoint.progress
    except (OSError, MemoryError) as error:
        raise _unreadable(folder, error) from None
    except Exception as error:  # whole by its manifest, and still not a checkpoint: each library has its own for that
        raise DamagedError(f"it does not hold what a checkpoint holds ({_first_line(error)})") from None
    return checkpoint


def find_checkpoint(folder: Path, resume: str, report: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint that `--resume` means: None where `auto` finds no checkpoint at all.

    Args:
        folder: of all checkpoints of the run.
        resume: "auto", or the path of a checkpoint.
        report: is told of each damaged one that `auto` passes over.

    Raises:
        UserError: if the named one is damaged, or if there are some and none is whole.
    """
    if resume != "auto":
        try:
            return load_checkpoint(Path(resume))
        except DamagedError as damage:
            raise UserError(
                f"--resume {resume} is not a complete checkpoint: {damage}; name another, or say --resume auto"
            ) from None
    candidates = _newest_first(folder)
    for candidate in candidates:
        try:
            return load_checkpoint(candidate)
        except DamagedError as damage:
            report(f"checkpoint {candidate} is damaged and passed over: {damage}")
    if candidates:
        raise UserError(
            f"--resume auto: none of the {len(candidates)} checkpoints in {folder} is whole; start anew in another "
            "run.folder, or move this one away"
        )
    return None


def refuse_changes(checkpoint: Checkpoint, config: Config, data: str, colours: Sequence[list[float] | None]) -> None:
    """Refuse to resume with another training than the checkpoint's.

    Args:
        checkpoint: to resume from.
        config: resolved, of today.
        data: digest of what would be trained on.
        colours: of some of these images, see `distrib.data.reader.sample_colours`.

    Raises:
        UserError: if one of the fields in `FIXED` or the training images differ.
    """
    before = read_yaml(checkpoint.folder / "config.yaml")
    for key in FIXED:
        group, _, name = key.partition(".")
        then, now = (getattr(getattr(each, group), name) for each in (before, config))
        if then != now:
            raise UserError(
                f"{key} is {now}, and {checkpoint.folder} was trained with {then}: put it back, or start anew in "
                "another run.folder"
            )
    if checkpoint.trainer["data"] != data:
        raise UserError(
            f"the training images or labels in {config.data.root} are not those of {checkpoint.folder}: restore the "
            "data set, or start anew in another run.folder"
        )
    if _look_otherwise(checkpoint, colours):
        raise UserError(
            f"the training images in {config.data.root} have the names of those of {checkpoint.folder}, and look "
            "otherwise: restore the data set, or start anew in another run.folder"
        )


def _look_otherwise(checkpoint: Checkpoint, colours: Sequence[list[float] | None]) -> bool:
    """Whether images have other colours than those that a checkpoint tells of; one of an earlier version does not."""
    try:
        before = json.loads((checkpoint.folder / "model.json").read_bytes())["training"]["colours"]
        return other_colours(before, colours)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _save_trainer(trainer: dict[str, Any], file: Path) -> None:
    """What trainer.pt holds; of a full disk torch says no more than RuntimeError.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        torch.save(trainer, file)
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise OSError(first_line(error)) from None


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=_steps, reverse=True)


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _write_manifest(folder: Path) -> None:
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"version": VERSION, "files": files}, indent=2), encoding="utf-8")


def _unreadable(path: Path, error: OSError | MemoryError) -> UserError:
    reason = error.strerror if isinstance(error, OSError) else "out of memory"
    return UserError(f"{path} cannot be read now ({reason}): check the disk and its permissions, and try again")


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to read it all the same
        return "trainer.pt has more in it than tensors and plain values"
    return first_line(error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
