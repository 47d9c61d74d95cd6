"""What `distrib check --gpu` checks, a test each, on a GPU."""

import pytest
import torch

from distrib.checking.check import Bench, Failed, LeftOut
from distrib.checking.run import CHECKS


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(torch.device("cuda"), tmp_path_factory.mktemp("bench"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_this_gpu_keeps_the_promise(name: str, bench: Bench) -> None:
    try:
        CHECKS[name](bench)
    except LeftOut as reason:
        pytest.skip(str(reason))
    except Failed as failed:
        pytest.fail(str(failed), pytrace=False)
