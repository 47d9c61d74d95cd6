"""What is the user's to mend, and what may pass by itself."""

import errno
import os
from pathlib import Path

import pytest
from accelerate import Accelerator

from distrib.base.errors import UserError
from distrib.data.reader import ImageReader
from distrib.data.table import read_table
from distrib.ranks.meeting import from_rank_0


@pytest.mark.parametrize(
    ("number", "passes"), [(errno.EIO, True), (errno.ESTALE, True), (errno.ENOSPC, False), (errno.ENOENT, False)]
)
def test_a_disk_that_fails_may_work_the_next_time(
    number: int, passes: bool, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ImageReader(read_table(faces))

    def fail(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UserError) as error:
        reader.read(0)
    assert error.value.may_pass is passes
    with pytest.raises(UserError) as error:
        from_rank_0(Accelerator(cpu=True), reader.read, 0)
    assert (error.value.may_pass, error.value.on_all_ranks) == (passes, True)


def test_a_wrong_setting_does_not_pass() -> None:
    assert UserError("train.epochs is 0").may_pass is False
