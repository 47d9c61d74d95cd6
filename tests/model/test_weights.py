import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import sentences
import torch
from fuzzing import check_sentence
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50

from distrib.config import ModelConfig
from distrib.model.network import AttributeClassifier
from distrib.model.weight_files import COUNTER
from distrib.model.weights import Origin, make_model

NAMES = ("Smiling", "Male")


def make(
    weights: str | Path, attributes: tuple[str, ...] = NAMES, seed: int = 0, **model: Any
) -> tuple[AttributeClassifier, Origin]:
    return make_model(ModelConfig(weights=str(weights), **model), attributes, True, seed)


def refusal(weights: str | Path, *parts: str) -> None:
    sentence = sentences.refusal(lambda: make(weights), "model.weights", *parts)
    assert len(sentence) < 600


def saved(state: dict[str, torch.Tensor], file: Path) -> Path:
    safetensors.torch.save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return file


def model_folder(folder: Path, state: dict[str, torch.Tensor], attributes: tuple[str, ...]) -> Path:
    """As best/ is, but for what only people read."""
    folder.mkdir(parents=True)
    saved(state, folder / "model.safetensors")
    about = {
        "architecture": "resnet18", "attributes": attributes, "image_size": [32, 32], "crop": "square",
        "temperature": [1.0] * len(attributes), "thresholds": [0.5] * len(attributes),
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(about))
    return folder


def assert_backbone(model: AttributeClassifier, donor: dict[str, torch.Tensor]) -> None:
    state = model.net.state_dict()
    for name, tensor in donor.items():
        assert name.startswith("fc.") or torch.equal(state[name], tensor), name


def assert_new_head(model: AttributeClassifier, seed: int = 0) -> None:
    """The one that a network of random weights has with this seed."""
    random, _ = make("none", tuple(map(str, range(len(model.net.fc.bias)))), seed)
    assert torch.equal(model.net.fc.weight, random.net.fc.weight)
    assert torch.equal(model.net.fc.bias, random.net.fc.bias)


@pytest.fixture(scope="module")
def donor() -> dict[str, torch.Tensor]:
    torch.manual_seed(99)
    state = resnet18(num_classes=2).state_dict()
    return {name: tensor + 3 if name.endswith(COUNTER) else tensor for name, tensor in state.items()}


# --- none


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(12345)
    one, origin = make("none", seed=7)
    torch.manual_seed(54321)
    same, _ = make("none", seed=7)
    other, _ = make("none", seed=8)
    assert origin.summary == "random weights"
    assert (origin.loaded, set(origin.new), origin.lines()) == ((), set(one.net.state_dict()), [])
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert not torch.equal(one.net.conv1.weight, other.net.conv1.weight)
    assert not torch.equal(one.net.fc.weight, other.net.fc.weight)


# --- files


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
@pytest.mark.parametrize("attributes", [("Smiling",), NAMES], ids=["other", "same"])
def test_weights_come_from_a_file_and_the_head_is_new(
    tmp_path: Path, donor: dict[str, torch.Tensor], ending: str, attributes: tuple[str, ...]
) -> None:
    """A head of the same shape too: nothing says that it is of the same attributes."""
    file = saved(donor, tmp_path / f"donor.{ending}")
    model, origin = make(file, attributes, seed=5)
    assert_backbone(model, donor)
    assert_new_head(model, seed=5)
    assert model.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert origin.summary == f"weights from {file}, a new head"
    assert (len(origin.loaded), origin.new) == (120, ("fc.weight", "fc.bias"))
    reason = {
        1: "the file's head has 2 outputs, this run has 1",
        2: "the file does not say of which attributes its head is",
    }[len(attributes)]
    assert origin.lines() == [
        "loaded: conv1, bn1, layer1, layer2, layer3, layer4 (120 tensors)", f"new: fc.weight, fc.bias ({reason})"
    ]  # fmt: skip


def test_a_file_without_a_head_will_do(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    headless = {name: tensor for name, tensor in donor.items() if not name.startswith("fc.")}
    model, origin = make(saved(headless, tmp_path / "headless.safetensors"))
    assert_backbone(model, headless)
    assert origin.lines()[-1] == "new: fc.weight, fc.bias (the file has none)"


def test_a_file_without_counters_will_do(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    """As torch 0.4 and older wrote them."""
    old = {name: tensor for name, tensor in donor.items() if not name.endswith(COUNTER)}
    model, origin = make(saved(old, tmp_path / "old.pth"))
    assert_backbone(model, old)
    assert origin.lines()[-1] == "new: 20 num_batches_tracked, which begin at 0"
    assert len(origin.loaded) == 100
    assert len(origin.new) == 22


@pytest.mark.parametrize("prefix", ["module.", "net.", "model.module."])
@pytest.mark.parametrize("wrapping", ["", "state_dict"])
def test_names_and_wrappings_of_other_trainings_are_understood(
    tmp_path: Path, donor: dict[str, torch.Tensor], prefix: str, wrapping: str
) -> None:
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in donor.items()}
    content = {wrapping: state, "epoch": 3, "optimizer": {"state": {}}} if wrapping else state
    torch.save(content, tmp_path / "training.pt")
    model, origin = make(tmp_path / "training.pt")
    assert_backbone(model, donor)
    assert len(origin.loaded) == 120
    assert "conv1.weight" in origin.loaded
    names = f"in the names that begin with {prefix}"
    assert origin.lines()[0] == f"found: {f'under {wrapping}, ' if wrapping else ''}{names}"


def test_averaged_weights_are_taken_and_that_is_said(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    averaged = {name: tensor + 1 for name, tensor in donor.items()}
    torch.save({"state_dict": donor, "state_dict_ema": averaged}, tmp_path / "timm.pth.tar")
    model, origin = make(tmp_path / "timm.pth.tar")
    assert_backbone(model, averaged)
    said = "found: the averaged weights, under state_dict_ema, rather than the plain ones, under state_dict"
    assert origin.lines()[0] == said


def test_a_head_of_several_layers_is_left_out(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    state = {name: tensor for name, tensor in donor.items() if not name.startswith("fc.")}
    head = {"fc.1.weight": torch.zeros(2, 512), "fc.1.bias": torch.zeros(2)}
    model, origin = make(saved(state | head, tmp_path / "dropout.pt"))
    assert_backbone(model, state)
    assert_new_head(model)
    assert origin.lines()[-1].endswith("(the head there is of other layers, fc.1.weight, fc.1.bias)")


def test_other_types_of_numbers_are_taken(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    model, _ = make(saved({name: tensor.half() for name, tensor in donor.items()}, tmp_path / "half.pt"))
    assert model.net.conv1.weight.dtype == torch.float32
    assert torch.equal(model.net.conv1.weight, donor["conv1.weight"].half().float())


# --- folders


def test_a_head_of_the_very_same_attributes_is_kept(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    folder = model_folder(tmp_path / "run/best", donor, NAMES)
    for named in (folder, folder.parent):  # best/ itself, and the run
        model, origin = make(named)
        for name, tensor in donor.items():
            assert torch.equal(model.net.state_dict()[name], tensor), name
        assert origin.summary == f"weights from {folder}, its head too"
        assert origin.lines() == ["loaded: conv1, bn1, layer1, layer2, layer3, layer4, fc (122 tensors)"]
        assert origin.new == ()


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (("Smiling", "Young"), "the head there is for Smiling, Young, and this run is for Smiling, Male"),
        (("Male", "Smiling"), "the head there has the same attributes in another order"),
        (("Smiling",), "the head there is for Smiling, and this run is for Smiling, Male"),
        (tuple("abcdef"), "the head there is for a, b, c and 3 more, and this run is for Smiling, Male"),
    ],
)
def test_a_head_of_other_attributes_is_not_kept(tmp_path: Path, attributes: tuple[str, ...], reason: str) -> None:
    torch.manual_seed(98)
    state = resnet18(num_classes=len(attributes)).state_dict()
    model, origin = make(model_folder(tmp_path / "best", state, attributes))
    assert_backbone(model, state)
    assert_new_head(model)
    assert origin.lines()[-1] == f"new: fc.weight, fc.bias ({reason})"


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    refusal(tmp_path, str(tmp_path), "holds no model", "best/")
    folder = model_folder(tmp_path / "best", donor, (*NAMES, "Young"))
    (folder / "model.safetensors").unlink()
    refusal(folder, "model.safetensors", "cannot be read")
    saved(donor, folder / "model.safetensors")
    sentence = sentences.refusal(lambda: make(folder, (*NAMES, "Young")), "fc.", "of shape [2", ", not [3")
    check_sentence(sentence, folder)
    (folder / "model.json").write_text("{}")
    refusal(folder, str(folder / "model.json"), "not a description of a model")


# --- of another stem


def of_small_stem() -> dict[str, torch.Tensor]:
    torch.manual_seed(97)
    return AttributeClassifier(2, channels_last=False, stem="small").net.state_dict()


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_of_another_stem_all_is_taken_but_the_first_convolution(
    stem: str, tmp_path: Path, donor: dict[str, torch.Tensor]
) -> None:
    other = of_small_stem() if stem == "imagenet" else donor
    file = saved({f"module.net.{name}": tensor for name, tensor in other.items()}, tmp_path / "weights.pt")
    model, origin = make(file, stem=stem)
    assert_backbone(model, {name: tensor for name, tensor in other.items() if name != "conv1.weight"})
    random, _ = make("none", stem=stem)
    assert torch.equal(model.net.conv1.weight, random.net.conv1.weight)
    assert origin.new == ("conv1.weight", "fc.weight", "fc.bias")
    sizes = ("3x3", "7x7") if stem == "imagenet" else ("7x7", "3x3")
    assert f"new: conv1.weight (the one there is {sizes[0]}, and that of model.stem {stem} is {sizes[1]})" in (
        origin.lines()
    )


def test_of_the_small_stem_itself_all_is_taken(tmp_path: Path) -> None:
    state = of_small_stem()
    model, origin = make(model_folder(tmp_path / "best", state, NAMES), stem="small")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.net.state_dict().items())
    assert not origin.new


def test_a_new_first_convolution_is_not_left_frozen(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    file = saved(donor, tmp_path / "weights.pt")
    for freeze in ("conv1", "backbone 2:layer1"):
        sentences.refusal(
            lambda freeze=freeze: make(file, stem="small", freeze=freeze),
            "model.weights", "7x7", "model.stem small", "3x3", f"model.freeze {freeze} would leave it random",
        )  # fmt: skip
    make(file, stem="small", freeze="backbone 2:none")
    make(file, freeze="backbone")


# --- what is no ResNet18, or nothing at all


def test_weights_of_another_architecture_are_refused(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "other.pt"
    torch.save(nn.Linear(3, 2).state_dict(), file)
    refusal(file, str(file), "weight", "ResNet18")
    torch.save({**donor, "layer5.0.conv1.weight": torch.zeros(1)}, file)
    refusal(file, str(file), "layer5.0.conv1.weight")
    torch.save({**donor, "conv1.weight": torch.zeros(64, 1, 7, 7)}, file)
    refusal(file, str(file), "conv1.weight of shape [64, 1, 7, 7], not [64, 3, 7, 7]")
    torch.save({name: t for name, t in donor.items() if name != "layer3.0.bn1.weight"}, file)
    refusal(file, str(file), "lacks layer3.0.bn1.weight")
    for content, at_top in (({}, "is nothing"), ({"state_dict": {}}, "are state_dict (dict of 0)")):
        torch.save(content, file)
        refusal(file, str(file), "no state dict of a ResNet18", f"at its top {at_top}")


@pytest.mark.parametrize("other", [resnet34, resnet50])
def test_larger_resnets_are_named_and_refused(tmp_path: Path, other: Any) -> None:
    name = {resnet34: "ResNet34", resnet50: "ResNet50"}[other]
    refusal(saved(other().state_dict(), tmp_path / "larger.pt"), f"larger.pt is a {name}", "which does not fit")


def test_a_deep_stem_is_refused(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    """timm's resnet18d: three convolutions in place of the first, and pooling before each shortcut's convolution."""
    deep = {
        name.replace("downsample.1", "downsample.2").replace("downsample.0", "downsample.1"): tensor
        for name, tensor in donor.items()
        if name != "conv1.weight"
    }
    deep["conv1.0.weight"] = torch.zeros(32, 3, 3, 3)
    refusal(saved(deep, tmp_path / "resnet18d.safetensors"), "resnet18d.safetensors", "which does not fit", "timm")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        3,
        {"conv1.weight": "none"},
        {1: torch.zeros(1)},
        {"state_dict": {"conv1.weight": 3}},
        {"conv1.weight": torch.zeros(64, 3, 7, 7).to_sparse()},
        {"conv1.weight": torch.zeros(64, 3, 7, 7, device="meta")},
    ],
    ids=["list", "number", "text", "numbered", "wrapped", "sparse", "meta"],
)
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "training.pt"
    torch.save(content, file)
    refusal(file, str(file), "state dict")


def test_two_networks_in_a_file_are_refused(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    both = {**donor, **{f"module.{name}": tensor + 1 for name, tensor in donor.items()}}
    places = "at its top; in the names that begin with module."
    refusal(saved(both, tmp_path / "both.pt"), "both.pt", "several ResNet18s", places)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_file_is_read_by_what_it_holds_and_not_by_its_name(
    tmp_path: Path, donor: dict[str, torch.Tensor], ending: str
) -> None:
    file = tmp_path / f"weights.{ending}"
    torch.save(donor, file) if ending == "safetensors" else safetensors.torch.save_file(donor, file)
    model, _ = make(file)
    assert_backbone(model, donor)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "nothing.pt", str(tmp_path / "nothing.pt"), "not a file or folder", "imagenet")
    refusal("imagenett", "imagenett", "not a file or folder")
    refusal("~nobody-of-this-name/x.pt", "~nobody-of-this-name", "not a user", "write the path out")


# --- torchvision's store


@pytest.mark.parametrize("address", ["https://example.org/a/resnet18.pth", "s3://bucket/resnet18.pth"])
def test_an_address_is_shown_as_it_was_written(address: str) -> None:
    for written in (address, str(Path(address))):
        refusal(written, address, "nothing is downloaded from there", "download the file")


@pytest.mark.parametrize("word", ["Imagenet", "ImageNet", "image-net"])
def test_a_word_in_another_spelling_is_suggested(word: str) -> None:
    refusal(word, "did you mean imagenet?")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's download folder, with nothing in it and no network around it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    return tmp_path / "hub/checkpoints"


def test_imagenet_without_network_is_one_sentence_with_the_remedy(cache: Path) -> None:
    refusal("imagenet", "imagenet", "resnet18-f37072fd.pth", "https://", str(cache))


def test_imagenet_weights_are_taken_from_where_the_sentence_says(cache: Path) -> None:
    cache.mkdir(parents=True)
    donor = resnet18(num_classes=1000).state_dict()
    torch.save(donor, cache / "resnet18-f37072fd.pth")
    model, origin = make("imagenet")
    assert_backbone(model, donor)
    assert "torchvision ResNet18_Weights.IMAGENET1K_V1, a new head" in origin.summary
    assert origin.lines()[-1] == "new: fc.weight, fc.bias (the file's head has 1000 outputs, this run has 2)"


@pytest.mark.parametrize("content", [b"", b"<html>proxy error</html>", b"PK\x03\x04half a zip"])
def test_a_damaged_download_is_refused(cache: Path, content: bytes) -> None:
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(content)
    refusal("imagenet", "resnet18-f37072fd.pth")
