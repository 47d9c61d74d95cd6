"""How programs end where memory runs out: one sentence, and a status of its own."""

import pytest

from distrib.base.program import program
from distrib.ranks.ending import run_program

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 16.00 GiB"


@pytest.mark.parametrize(
    ("error", "said"), [(RuntimeError(CUDA), "CUDA out of memory"), (MemoryError(), "MemoryError")]
)
def test_memory_that_runs_out_is_a_sentence(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work(*_: object) -> int:
        raise error

    assert program(work)([]) == 3
    assert capsys.readouterr().err == (
        f"distrib: error: out of memory ({said}): end other programs that use it, or use a device that has more\n"
    )
    assert run_program(lambda: None, work, "interrupted", "lower --batch-size") == 3
    assert capsys.readouterr().err == f"distrib: error: out of memory ({said}): lower --batch-size\n"


def test_another_error_of_a_library_is_not_hidden() -> None:
    def work(*_: object) -> int:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        program(work)([])
