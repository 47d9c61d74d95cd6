"""Optuna's journal of a study, which a full disk, a loss of power or a person may have touched."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from distrib.base.errors import UserError, afterwards


def open_journal(file: Path) -> JournalStorage:
    """The storage in a journal, which is made where there is none.

    Raises:
        UserError: if a line of it is damaged.
        OSError: if it cannot be read or written.
    """
    lock = JournalFileOpenLock(str(file))
    if file.exists():
        _mend(file, lock)
    return JournalStorage(_Journal(str(file), lock))


class _Journal(JournalFileBackend):
    """Optuna's, which takes an empty line for damage, and does not say where it has met some."""

    def __init__(self, path: str, lock: JournalFileOpenLock) -> None:
        super().__init__(path, lock)
        self._path = Path(path)
        self._places = {0: (0, 1)}  # number of an entry -> the byte and the line at which it is to be looked for

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The entries from one on, counted from 0.

        Raises:
            UserError: if one is damaged. The last line may be one that another machine has not sent whole.
        """
        number = log_number_from if log_number_from in self._places else 0
        byte, line_number = self._places[number]
        damage: UserError | None = None
        with self._path.open("rb") as journal:
            journal.seek(byte)
            for line in journal:
                if damage is not None:
                    raise damage
                if not line.endswith(b"\n"):
                    return
                byte, line_number = byte + len(line), line_number + 1
                if not line.strip():
                    self._places[number] = byte, line_number
                    continue
                try:
                    entry = _entry(line, self._path, line_number - 1)
                except UserError as error:
                    damage = error
                    continue
                self._places[number + 1] = byte, line_number
                number += 1
                if number > log_number_from:
                    yield entry


def _mend(file: Path, lock: JournalFileOpenLock) -> None:
    """Cut off a last line that a full disk or a loss of power has left without its end: the next would run into it.

    Raises:
        UserError: if the last whole line is damaged.
    """
    lock.acquire()
    with afterwards(lock.release), file.open("r+b") as journal:
        whole, _, rest = journal.read().rpartition(b"\n")
        if rest:
            journal.truncate(len(whole) + 1 if whole else 0)
        *_, last = whole.split(b"\n")
        if last.strip():
            _entry(last, file, whole.count(b"\n") + 1)


def _entry(line: bytes, file: Path, number: int) -> dict[str, Any]:
    """What a line of a journal says.

    Raises:
        UserError: if it is damaged.
    """
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or "op_code" not in entry:
        raise UserError(
            f"{file}, line {number} is damaged: it is not an entry of a study's journal; restore the file from a "
            "backup, or start the study anew in another --folder"
        )
    return entry
