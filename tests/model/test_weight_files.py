"""Files of weights as other trainings write them: where the network is in them, and what is none."""

import argparse
import gzip
import os
import pickle
import shutil
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sentences
import torch
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50

from distrib.model.weight_files import COUNTER, Candidate, find_network, read_tensors

with torch.device("meta"):
    WANTED = resnet18(num_classes=2).state_dict()


def network(value: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A ResNet18's state dict, every value the same, so that a file of it is small."""
    return {
        name: torch.full((), value, dtype=dtype if tensor.is_floating_point() else tensor.dtype).expand(tensor.shape)
        for name, tensor in WANTED.items()
    }


def value(found: Candidate) -> float:
    """Of every value of the network that was found."""
    weights = {name: tensor for name, tensor in found.weights.items() if not name.endswith(COUNTER)}
    assert weights.keys() >= {name for name in WANTED if not name.startswith("fc.") and not name.endswith(COUNTER)}
    (each,) = {float(tensor[(0,) * tensor.ndim]) for tensor in weights.values()}
    return each


def find(content: Any) -> Candidate:
    return find_network("weights.pt", content)


def refusal(content: Any, *parts: str) -> None:
    """Of a file, or of what has been read from one."""

    def call() -> Candidate:
        return find_network(str(content), read_tensors(content)) if isinstance(content, Path) else find(content)

    sentence = sentences.refusal(call, "model.weights", *parts)
    assert len(sentence) < 700


# --- where the network is


def wrapped(state: dict[str, torch.Tensor], path: tuple[str, ...], prefix: str = "", **beside: Any) -> dict[str, Any]:
    content: dict[str, Any] = {prefix + name: tensor for name, tensor in state.items()}
    for key in reversed(path):
        content = {
            "epoch": 3,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{}]},
            key: content,
        }
    return {**content, **beside}


@pytest.mark.parametrize(
    ("path", "prefix", "found"),
    [
        ((), "module.", "in the names that begin with module."),
        ((), "module._orig_mod.model.", "in the names that begin with module._orig_mod.model."),
        ((), "encoder_q.", "in the names that begin with encoder_q."),
        (("state_dict",), "", "under state_dict"),
        (("model_state_dict",), "backbone.", "under model_state_dict, in the names that begin with backbone."),
        (("model",), "module.net.encoder.", "under model, in the names that begin with module.net.encoder."),
        (("net", "params"), "_orig_mod.", "under net and params, in the names that begin with _orig_mod."),
        (("net_g.best",), "features.0.", "under net_g.best, in the names that begin with features.0."),
    ],
)  # fmt: skip
def test_the_network_is_found_wherever_it_is_wrapped(path: tuple[str, ...], prefix: str, found: str) -> None:
    there = find(wrapped(network(3), path, prefix))
    assert value(there) == 3
    assert there.where == found


def test_a_network_within_another_is_found() -> None:
    state = {f"backbone.body.{name}": tensor for name, tensor in network(3).items() if not name.endswith(COUNTER)}
    state |= {"head.0.weight": torch.zeros(4, 512), "backbone.fpn.inner.0.weight": torch.zeros(2, 512, 1, 1)}
    assert value(find(state)) == 3


def test_a_network_that_is_all_of_a_file_is_not_remarked_on() -> None:
    assert find(network()).where == ""


def test_numbers_among_the_tensors_are_passed_over() -> None:
    assert value(find({**network(3), "epoch": 3, "best": torch.tensor(0.9), "optimizer": {}})) == 3


def test_what_holds_itself_is_looked_through_once() -> None:
    content: dict[str, Any] = {"model": network(3)}
    content["all"] = [content] * 100
    assert value(find(content)) == 3


@pytest.mark.parametrize(
    ("flawed", "part"),
    [
        (torch.zeros(64, 3, 7, 7, dtype=torch.int8), "of numbers of type int8"),
        (torch.full((64, 3, 7, 7), torch.inf), "with values that are not finite"),
        (torch.zeros(64, 3, 7, 7).to_sparse(), "not a plain tensor"),
    ],
    ids=["int8", "infinite", "sparse"],
)
def test_tensors_that_are_no_weights_are_refused(flawed: torch.Tensor, part: str) -> None:
    refusal({**network(), "conv1.weight": flawed}, "has conv1.weight", part)


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        (resnet34, ["is a ResNet34", "layer1.2.conv1.weight, which does not fit"]),
        (resnet50, ["is a ResNet50", "layer1.0.conv1.weight of shape [64, 64, 1, 1], not [64, 64, 3, 3]"]),
    ],
)
def test_larger_resnets_are_named_and_refused(other: Any, parts: list[str]) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in other().state_dict().items()}
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    refusal(wrapped(state, ("model",), "module."), "under model, in the names that begin with module.", *parts)


@pytest.mark.parametrize(
    "head",
    [("last_linear.weight", "last_linear.bias"), ("classifier.1.weight", "classifier.1.bias"),
     ("fc_gender.weight", "fc_gender.bias", "fc_age.weight"), ("heads.smiling.0.running_mean", "heads.smiling.0.bias")],
)  # fmt: skip
def test_a_head_may_have_any_name(head: tuple[str, ...]) -> None:
    backbone = {name: tensor for name, tensor in network(3).items() if not name.startswith("fc.")}
    there = find({**backbone, **{name: torch.zeros(4, 512) for name in head}})
    assert value(there) == 3
    assert there.head == head
    assert there.weights.keys() == backbone.keys()


@pytest.mark.parametrize("more", ["bn2.weight", "layer5.0.conv1.weight", "ca.fc1.weight"])
def test_more_of_the_backbone_is_no_head(more: str) -> None:
    refusal({**network(), more: torch.zeros(4)}, f"has {more}, which does not fit")


def test_a_backbone_with_more_or_less_in_its_blocks_is_refused() -> None:
    """It would compute something else."""
    refusal({**network(), "layer1.0.se.fc1.weight": torch.zeros(4, 64, 1, 1)}, "layer1.0.se.fc1.weight")
    lacking = {name: tensor for name, tensor in network().items() if name != "layer3.0.bn1.weight"}
    refusal({"net": lacking}, "under net, lacks layer3.0.bn1.weight")


# --- several networks in a file


@pytest.mark.parametrize(
    ("plain", "averaged", "found"),
    [
        ((("state_dict",), ""), (("state_dict_ema",), ""), "under state_dict_ema, rather than"),
        ((("model",), "module."), (("ema",), "module."), "under ema, in the names that begin with module., rather"),
        ((("model",), ""), (("modelEMA", "module"), ""), "under modelEMA and module, rather than"),
        ((("net",), ""), (("swa_model",), "module."), "under swa_model, in the names that begin with module., rather"),
        ((("state_dict",), "model."), (("state_dict",), "model_ema."), "names that begin with model_ema., rather"),
        (((), ""), (("ema",), ""), "under ema, rather than the plain ones, at the top of the file"),
    ],
)  # fmt: skip
def test_averaged_weights_are_taken_before_the_plain_ones_and_that_is_said(
    plain: Any, averaged: Any, found: str
) -> None:
    content = wrapped(network(1), *plain)
    if plain[0] == averaged[0]:
        content["state_dict"] |= {averaged[1] + name: tensor for name, tensor in network(2).items()}
    else:
        content |= wrapped(network(2), *averaged)
    there = find({**content, "n_averaged": torch.tensor(4)})
    assert value(there) == 2
    assert there.where.startswith("the averaged weights, ")
    assert found in there.where


STATISTICS = ("running_mean", "running_var", COUNTER)


def parameters(number: float) -> dict[str, torch.Tensor]:
    """What many trainings average, and BatchNorm's statistics not."""
    return {name: tensor for name, tensor in network(number).items() if not name.endswith(STATISTICS)}


@pytest.mark.parametrize("path", [("ema_state_dict",), ("ema", "shadow"), ("shadow",)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_averages_of_the_parameters_alone_take_the_plain_statistics(path: tuple[str, ...], prefix: str) -> None:
    there = find({"model": network(1), **wrapped(parameters(2), path, prefix)})
    assert not there.problem
    assert float(there.weights["layer4.1.conv2.weight"][0, 0, 0, 0]) == 2
    assert float(there.weights["fc.bias"][0]) == 2
    assert float(there.weights["bn1.running_var"][0]) == 1
    assert there.where.startswith(f"the averaged weights, under {' and '.join(path)}")
    assert there.where.endswith("rather than the plain ones, under model, whose running means and variances they take")


@pytest.mark.parametrize(
    "averages",
    [{"ema": {"decay": 0.99, "shadow_params": [*parameters(2).values()], "collected_params": None}},
     {"callbacks": {"EMA": {"ema_weights": (*parameters(2).values(),)}}}],
    ids=["torch_ema", "callback"],
)  # fmt: skip
def test_averages_without_names_have_them_by_their_order(averages: dict[str, Any]) -> None:
    there = find({"state_dict": network(1), **averages})
    assert {name: float(there.weights[name].flatten()[0]) for name in parameters(0)} == dict.fromkeys(
        parameters(0), 2.0
    )
    assert float(there.weights["layer3.0.downsample.1.running_mean"][0]) == 1
    assert "under state_dict, whose names, in their order, and running means and variances they take" in there.where


@pytest.mark.parametrize("head", [[], [torch.zeros(9, 512), torch.zeros(9), torch.zeros(2, 9)]], ids=["none", "other"])
def test_averages_without_names_may_have_another_head(head: list[torch.Tensor]) -> None:
    backbone = [tensor for name, tensor in parameters(2).items() if not name.startswith("fc.")]
    there = find({"model": network(1), "shadow_params": backbone + head})
    assert float(there.weights["layer4.1.conv2.weight"][0, 0, 0, 0]) == 2
    assert "fc.weight" not in there.weights


def test_averages_that_fit_no_network_are_passed_over_and_that_is_said() -> None:
    lacking = {name: tensor for name, tensor in network(2).items() if name != "layer2.0.bn1.weight"}
    there = find({"model": network(1), "ema": lacking})
    assert value(there) == 1
    assert there.where == "the plain weights, under model; what is averaged, under ema, lacks layer2.0.bn1.weight"
    there = find({"model": network(1), "ema_weights": [*parameters(2).values()][::-1]})
    assert value(there) == 1
    assert "what is averaged, under ema_weights, is a list of 62 tensors without names" in there.where


def test_lightnings_averages_are_told_by_what_is_beside_them() -> None:
    """They are where the plain weights of its other checkpoints are."""
    content = {"epoch": 3, "averaging_state": {"n_averaged": torch.tensor(4)}, "callbacks": {}}
    content["state_dict"] = {f"net.{name}": tensor for name, tensor in network(2).items()}
    content["current_model_state"] = {f"net.{name}": tensor for name, tensor in network(1).items()}
    there = find(content)
    assert value(there) == 2
    assert "the averaged weights, under state_dict" in there.where
    assert "rather than the plain ones, under current_model_state" in there.where


def test_several_networks_in_a_file_are_refused_by_their_names() -> None:
    refusal({"student": network(1), "teacher": network(2)}, "several ResNet18s", "under student; under teacher")
    both = {**network(1), **{f"other.{name}": tensor for name, tensor in network(2).items()}}
    refusal(both, "several ResNet18s", "at its top; in the names that begin with other.")
    refusal({"ema": network(1), "swa": network(2), "model": network(3)}, "under ema; under swa")


def test_the_same_network_twice_is_one() -> None:
    assert value(find({"state_dict": network(3), "best_state_dict": network(3)})) == 3


def test_a_file_without_a_network_is_told_by_what_is_at_its_top(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "args": argparse.Namespace(),
        "net": {"vgg.weight": torch.zeros(2)},
        **dict.fromkeys("abcdefgh"),
    }
    torch.save(content, tmp_path / "other.pt")
    top = "epoch (int); args (argparse.Namespace); net (dict of 1); a (NoneType)"
    refusal(tmp_path / "other.pt", top, "and 3 more")


# --- what kind of file it is


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 46830571\n".format("0" * 64)
HTML = "\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["is empty (0 bytes)"]),
        (LFS.encode(), ["is a Git LFS pointer", "46,830,571 bytes", "git lfs pull"]),
        (HTML.encode(), ["is an HTML or XML page", "Google Drive - Virus scan warning", "download the file itself"]),
        (LFS.replace("\n", "\r\n").encode(), ["is a Git LFS pointer", "46,830,571 bytes"]),
        (b"<html><title>\n Anmelden f\xfcr alle\n </title>", ["is an HTML or XML page", "Anmelden"]),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ["HTML or XML"]),
        (b'{"message": "Bad credentials"}', ['text that begins with "{"message": "Bad credentials"}"']),
        (b"hello\n" * 2000, ['text that begins with "hello"']),
        (gzip.compress(b"weights"), ["is a gzip archive", "unpack it"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), ["is an HDF5 file"]),
        (bytes(range(256)) * 9, ["not a torch or safetensors file"]),
        (bytes(5000), ["not a torch or safetensors file"]),
        (
            pickle.dumps({"a": 1}),
            ["is a Python pickle, not a torch or safetensors file", "as a dict of tensors"],
        ),
        (pickle.dumps({"conv1.weight": np.ones(3)}, 2), ["is a Python pickle", "as a dict of tensors"]),
        (b"\x08\x0a\x12\x07pytorch\x1a\x062.11.0:\xff\x01" + bytes(99), ["is an ONNX file", "exported from"]),
        (b"\x08\x07:\xff\x01" + bytes(99), ["is an ONNX file", "exported from"]),
    ],
    ids=[
        "empty",
        "LFS",
        "HTML",
        "LFS on Windows",
        "Latin HTML",
        "XML",
        "JSON",
        "text",
        "gzip",
        "HDF5",
        "noise",
        "zeros",
        "pickle",
        "pickled arrays",
        "ONNX",
        "nameless ONNX",
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, ending: str, content: bytes, parts: list[str]) -> None:
    file = tmp_path / f"weights.{ending}"
    file.write_bytes(content)
    refusal(file, str(file), *parts)


def test_archives_are_named(tmp_path: Path) -> None:
    file, inner = tmp_path / "weights.pth", tmp_path / "resnet18.pth"
    torch.save(network(), inner)
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(inner, "run/resnet18.pth")
    refusal(file, "is a zip archive that torch.save has not written, with run/resnet18.pth in it", "unpack it")
    with tarfile.open(file, "w") as tar:
        tar.add(inner, "resnet18.pth")
    refusal(file, "is a tar archive", "unpack it")
    torch.jit.script(nn.Linear(3, 2)).save(str(file))
    refusal(file, "is a TorchScript archive", "torch.jit.load(…).state_dict()")


@pytest.mark.parametrize("kind", ["safetensors", "torch", "old torch"])
@pytest.mark.parametrize("part", [0.0005, 0.5, 0.9999])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kind: str, part: float) -> None:
    file, state = tmp_path / "weights.bin", {f"layer{i}.weight": torch.zeros(999, 9) for i in range(99)}
    if kind == "safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "torch")
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    parts = {"safetensors": ["is cut off", f"of {len(content):,} bytes" if part > 0.1 else ""]}
    refusal(file, str(file), *parts.get(kind, ["is cut off" if kind == "torch" else "damaged"]), "get the file again")


def test_the_projects_own_onnx_file_is_named(tmp_path: Path) -> None:
    """As its export writes it."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "classifier", [], [])
    onnx.save(onnx.helper.make_model(graph, producer_name="pytorch"), tmp_path / "model.onnx")
    refusal(tmp_path / "model.onnx", "is an ONNX file", "name the run or the model folder")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_arrays_of_numpy_are_named(tmp_path: Path, prefix: str) -> None:
    content = {f"{prefix}{name}": np.zeros(1, np.float32) for name in WANTED}
    for each, where in ((content, ""), ({"net": content, "best": np.float64(0.9)}, ", under net,")):
        torch.save(each, tmp_path / "arrays.pt")
        refusal(tmp_path / "arrays.pt", f"{where} has {prefix}conv1.weight that is a NumPy array", "torch.from_numpy")
    torch.save({"mean": np.zeros(3), "best": np.float64(0.9)}, tmp_path / "arrays.pt")
    refusal(tmp_path / "arrays.pt", "mean (numpy array); best (numpy number)")


# --- nothing in a file is run


class Trap:
    """Does something when it is unpickled."""

    def __init__(self, call: Callable[..., object], witness: Path) -> None:
        self.call, self.witness = call, witness

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {exec: (f"import os; os.mkdir({str(self.witness)!r})",), shutil.copytree: (".", str(self.witness))}
        return self.call, arguments.get(self.call, (str(self.witness),))


@pytest.mark.parametrize("call", [os.mkdir, shutil.copytree, os.path.join, exec, subprocess.Popen, partial])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, call: Callable[..., object], zipped: bool) -> None:
    """Not even where the weights beside it are whole."""
    file, witness = tmp_path / "trap.pt", tmp_path / "it ran"
    for content in ({"conv1.weight": Trap(call, witness)}, {"state_dict": network(), "notes": Trap(call, witness)}):
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        refusal(file, str(file), "asks to run ", call.__name__, "nothing in a file is run")
    file.write_bytes(pickle.dumps(Trap(call, witness), protocol=2))
    refusal(file, str(file))
    assert not witness.exists()


class Options:
    """Of a training of somebody's, pickled beside the weights; what it does when it is made or filled is seen."""

    made = 0

    def __init__(self, **options: Any) -> None:
        Options.made += 1
        self.__dict__.update(options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Options.made += 1
        self.__dict__.update(state)


class OptionsLikeADict(dict[str, Any]):
    """As Lightning keeps its hyperparameters."""


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_passed_over_and_never_made(tmp_path: Path, zipped: bool) -> None:
    content = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "hyper_parameters": OptionsLikeADict(lr=0.1),
        "options": Options(lr=0.1),
        "best_acc1": np.float64(0.9),
        "history": np.arange(3),
        "optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1).state_dict(),
        "state_dict": network(3),
    }
    Options.made = 0
    torch.save(content, tmp_path / "training.pt", _use_new_zipfile_serialization=zipped)
    there = find(read_tensors(tmp_path / "training.pt"))
    assert value(there) == 3
    assert there.where == "under state_dict"
    assert Options.made == 0


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_network_is_refused_with_the_way_to_its_tensors(tmp_path: Path, zipped: bool) -> None:
    """The old format names the class of a network in a way that torch refuses at once."""
    file, whole = tmp_path / "whole.pt", resnet18()
    for content, under in ((whole, ""), ({"model": whole, "epoch": 3}, " under model" if zipped else "")):
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refusal(file, f"a pickled torchvision.models.resnet.ResNet{under}", "net.state_dict()")
