"""`train.deterministic`: what it sets, what it refuses, and that on a CPU it changes no bit."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from image_files import encoded, smooth

from distrib.base.errors import UserError
from distrib.config import Config, DataConfig
from distrib.data.batch import Batch, Request
from distrib.data.decoders import make_decoder
from distrib.data.store import FolderStore
from distrib.data.table import Table
from distrib.model.network import AttributeClassifier
from distrib.ranks.ending import run_program
from distrib.ranks.machine import make_deterministic
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.training.optimizer import make_optimizer
from distrib.training.step import TrainStep


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These switches are of the whole process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # which puts it back afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def test_it_is_set_when_the_ranks_meet_and_only_where_it_is_asked_for() -> None:
    start_ranks(Config().replace("run", device="cpu").replace("train", precision="no"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    torch.backends.cudnn.benchmark = True
    start_ranks(Config().replace("run", device="cpu").replace("train", precision="no", deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_what_cublas_is_told_already_stays_if_it_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG to be :4096:8 or :16:8, and it is :0:0: unset it"):
        make_deterministic()


def test_an_operation_that_has_no_deterministic_form_ends_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: None) -> None:
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))  # which torch refuses on a CPU too

    assert run_program(make_deterministic, work, "interrupted", "") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("distrib: error: train.deterministic is true, and put_ does not have a deterministic impl")
    assert line.endswith("set train.deterministic to false, which may be done on resuming too")


@pytest.mark.parametrize(("deterministic", "share"), [(False, 0.25), (True, 0.0)])
def test_dali_leaves_the_jpeg_hardware_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool, share: float
) -> None:
    fn = pytest.importorskip("nvidia.dali.fn", reason="needs NVIDIA DALI")
    asked, image_slice = [], fn.decoders.image_slice

    def watched(*inputs: Any, **arguments: Any) -> Any:
        asked.append(arguments["hw_decoder_load"])
        return image_slice(*inputs, **arguments)

    monkeypatch.setattr(fn.decoders, "image_slice", watched)
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(40, 36)))
    targets = np.zeros((1, 1), np.uint8)
    table = Table(FolderStore(tmp_path, ["a.jpg"]), ["a.jpg"], ("Bald",), targets, None, None, ())
    config = DataConfig.model_validate({"decoder": "dali", "dali": {"hw_decoder_load": 0.25}})
    if deterministic:
        make_deterministic()
    made = make_decoder(config, table, torch.device("cpu"), 1)
    assert len(list(made.batches([Request.centred(np.array([0]))]))) == 1
    assert asked == [share]


def test_a_step_on_a_cpu_has_the_same_bits_either_way() -> None:
    weights = []
    for deterministic in (False, True):
        config = Config().replace("run", device="cpu").replace("train", precision="no", deterministic=deterministic)
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = start_ranks(config)
        torch.manual_seed(0)
        net = AttributeClassifier(2)
        model, optimizer = accelerator.prepare(net, make_optimizer(net, config.optim))
        step = TrainStep(config, accelerator, model, optimizer, None, Agreement(StopRequests(), accelerator))
        images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(3))
        for number in range(2):
            step([Batch(images, torch.ones(4, 2), torch.arange(4))], number)
        weights.append(net.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
