"""The folder of a study: what is in it and who writes it.

    study.yaml           the study and its base configuration, as it was last started
    journal.log          Optuna's trials (or study.db; or a database elsewhere)
    precision.json       the precision of all trials, where the study left it to the machine, and what was measured
    study.csv            a trial a row
    best.yaml            the configuration of the best trial
    study/index.html     the page
    trials/NAME-0007/    the run of a trial; with -rung1 and -seed2 where it has several
    trials/NAME-0007.yaml, .log    with what it was started, and what it said
    study.lock, publishing.lock                     held by who is choosing a trial, and by who writes the page
    trials/NAME-0007.lock, .run.lock                held by that trial's worker, and by its run

Any number of workers write it, each under these locks.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from distrib.base.errors import UserError, afterwards, first_line
from distrib.config import Config
from distrib.config.reading import REMOVED, WHATEVER
from distrib.studies.definition import Study, to_yaml

# What may be another when a study is resumed: how much is to be done, and on what; not what it is of.
FREE = (
    "budget.", "launch", "config.run.", "config.tracking.", "config.explain.", "config.data.root",
    "config.data.decoder", "config.data.threads", "config.data.prefetch", "config.data.dali.", "config.checkpoint.keep",
    "config.checkpoint.every_steps", "config.checkpoint.every_minutes", "config.checkpoint.on_failure",
)  # fmt: skip


class StudyFolder:
    """Names the files of a study, and keeps its workers apart."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.definition = path / "study.yaml"
        self.precision = path / "precision.json"
        self.csv = path / "study.csv"
        self.best = path / "best.yaml"
        self.page = path / "study" / "index.html"
        self.trials = path / "trials"
        self._name = name

    def run(self, number: int, rung: int | None, seed: int | None) -> Path:
        """The folder of a run; `rung` and `seed` where a trial has several of them."""
        parts = [f"{self._name}-{number:04d}"]
        parts += [] if rung is None else [f"rung{rung}"]
        parts += [] if seed is None else [f"seed{seed}"]
        return self.trials / "-".join(parts)

    def has_runs(self) -> bool:
        """Whether runs of trials are here."""
        return any((each / "events.jsonl").is_file() for each in self.trials.glob(f"{self._name}-*"))

    @contextmanager
    def lock(self, name: Literal["study", "publishing"] = "study") -> Iterator[None]:
        """Keep other workers from choosing, or from writing what is found, while this is on; waits for them.

        Raises:
            UserError: if the folder cannot be written, or its file system has no locks.
        """
        held = self._lock(self.path / f"{name}.lock", fcntl.LOCK_EX)
        assert held is not None
        with afterwards(held.release):
            yield

    def lock_trial(self, number: int) -> "Lock | None":
        """A worker's lock on its trial, until it is released or this process ends; None: another worker holds it.

        Raises:
            UserError: as `lock` does.
        """
        return self._lock(self.trials / f"{self._name}-{number:04d}.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)

    def lock_run(self, number: int) -> "Lock | None":
        """The lock for what trains a trial, which inherits it: a run that has outlived its worker holds it still.

        Raises:
            UserError: as `lock` does.
        """
        return self._lock(self.trials / f"{self._name}-{number:04d}.run.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _lock(self, file: Path, kind: int) -> "Lock | None":
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, kind)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise UserError(
                f"the study's folder {self.path} cannot be written or locked ({error.strerror}): choose another "
                "--folder"
            ) from None
        return Lock(descriptor)

    def check(self, study: Study) -> None:
        """Refuse a folder that is of another study; under the lock.

        Raises:
            UserError: if the study has changed in what may not change.
        """
        if not self.definition.exists():
            return
        try:
            texts = (self.definition.read_text(encoding="utf-8"), to_yaml(study))
            before, now = (dict(_flat(yaml.safe_load(text), "")) for text in texts)
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise UserError(
                f"{self.definition} cannot be read ({first_line(error)}): choose another --folder"
            ) from None
        if "config.train.norm_size" not in before:  # of an earlier version, whose default accumulation was 1
            before["config.train.norm_size"] = "auto"
            for each in (before, now):
                if each.get("config.train.accumulation") == 1:
                    each["config.train.accumulation"] = "auto"
        # Settings that came later have had their defaults from the beginning.
        before = dict(_flat(Config().model_dump(mode="json"), "config.")) | before
        for key, off in REMOVED.items():
            if off is WHATEVER or before.get(f"config.{key}", WHATEVER) == off:
                before.pop(f"config.{key}", None)
        for key in sorted((before.keys() | now.keys()) - {"data"}):
            if before.get(key) != now.get(key) and not key.startswith(FREE):
                raise UserError(
                    f"the study in {self.path} began with {key.removeprefix('config.')} {before.get(key)}, and now it "
                    f"is {now.get(key)}: change it back, or choose another --folder"
                )
        if study.data is not None and before.get("data", study.data) != study.data:
            raise UserError(
                f"the study in {self.path} began with other images or labels than those of data.root "
                f"{study.base.data.root}: name the data set it began with, or choose another --folder"
            )


@dataclass(frozen=True)
class Lock:
    """A lock that is held as long as its descriptor is open, in this process or one that has inherited it."""

    descriptor: int

    def release(self) -> None:
        """Let others have it, unless a child still holds it."""
        os.close(self.descriptor)


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The leaves of a tree by their dotted keys; the space, whose names have dots of their own, entry by entry."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
