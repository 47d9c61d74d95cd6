import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms.v2.functional import normalize

from distrib.config import LAYERS, ModelConfig
from distrib.errors import UserError
from distrib.training.model import AttributeClassifier, make_model


def pictures(count: int = 2, height: int = 40, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.manual_seed(1))


def refusal(weights: str | Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        make_model(ModelConfig(weights=str(weights)), 2, True, 0)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert len(sentence) < 600
    for part in ("model.weights", *parts):
        assert part in sentence


@pytest.fixture(scope="module")
def donor() -> dict[str, torch.Tensor]:
    torch.manual_seed(99)
    return resnet18(num_classes=2).state_dict()


# --- what it computes


@pytest.mark.parametrize("channels_last", [True, False])
def test_logits_are_torchvision_s_on_normalised_pictures(channels_last: bool) -> None:
    model, _ = make_model(ModelConfig(), 3, channels_last, 0)
    model.eval()
    images_BHWC = pictures()
    before = images_BHWC.clone()
    plain = resnet18(num_classes=3)
    plain.load_state_dict(model.net.state_dict())
    plain.eval()
    x_BCHW = images_BHWC.permute(0, 3, 1, 2).float() / 255
    wanted = plain(normalize(x_BCHW, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    found = model(images_BHWC)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(images_BHWC, before), "the pictures are left as they are"


def test_channels_last_is_a_matter_of_memory_alone() -> None:
    last, _ = make_model(ModelConfig(), 2, True, 0)
    first, _ = make_model(ModelConfig(), 2, False, 0)
    assert last.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert first.net.conv1.weight.is_contiguous()
    last.eval()
    first.eval()
    torch.testing.assert_close(last(pictures()), first(pictures()), rtol=1e-4, atol=1e-4)


def test_pictures_of_any_size_go_in() -> None:
    model = AttributeClassifier(2).eval()
    for height, width in ((32, 32), (218, 178), (8, 9)):
        assert model(pictures(1, height, width)).shape == (1, 2)


def test_the_state_is_torchvision_s_and_holds_no_normalisation() -> None:
    model = AttributeClassifier(5)
    plain = resnet18(num_classes=5)
    plain.load_state_dict(model.net.state_dict(), strict=True)
    assert {name.removeprefix("net.") for name in model.state_dict()} == set(plain.state_dict())


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(12345)
    one, origin = make_model(ModelConfig(), 2, True, 7)
    torch.manual_seed(54321)
    same, _ = make_model(ModelConfig(), 2, True, 7)
    other, _ = make_model(ModelConfig(), 2, True, 8)
    assert "random" in origin
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert not torch.equal(one.net.conv1.weight, other.net.conv1.weight)
    assert not torch.equal(one.net.fc.weight, other.net.fc.weight)


# --- freezing


def trained_parts(model: AttributeClassifier) -> set[str]:
    return {name.split(".")[0] for name, p in model.net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("freeze", ["none", "backbone", *LAYERS])
def test_a_policy_freezes_up_to_the_layer_it_names(freeze: str) -> None:
    model = AttributeClassifier(2, freeze)
    everything = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    first_trained = {"none": 0, "conv1": 2, "layer1": 3, "layer2": 4, "layer3": 5, "layer4": 6, "backbone": 6}[freeze]
    assert trained_parts(model) == set(everything[first_trained:])


@pytest.mark.parametrize("freeze", ["none", "layer2", "backbone"])
def test_frozen_layers_stay_as_they_are_and_others_do_not(freeze: str) -> None:
    model = AttributeClassifier(2, freeze)
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    trained = trained_parts(model)
    model.eval()
    model.train()  # as the loop does after each evaluation
    model(pictures(4)).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for name, tensor in model.net.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        assert moved == (name.split(".")[0] in trained), name


def test_in_evaluation_no_statistics_move() -> None:
    model = AttributeClassifier(2).eval()
    before = model.net.bn1.running_mean.clone()
    model(pictures(4))
    assert torch.equal(model.net.bn1.running_mean, before)
    assert not any(module.training for module in model.modules())


def test_a_policy_that_names_no_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.freeze.*did you mean layer3"):
        ModelConfig(freeze="layer33")


# --- where weights come from


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_weights_come_from_a_file(tmp_path: Path, donor: dict[str, torch.Tensor], ending: str) -> None:
    file = tmp_path / f"donor.{ending}"
    safetensors.torch.save_file(donor, file) if ending == "safetensors" else torch.save(donor, file)
    model, origin = make_model(ModelConfig(weights=str(file)), 2, True, 0)
    for name, tensor in donor.items():
        assert torch.equal(model.net.state_dict()[name], tensor), name
    assert str(file) in origin
    assert "its head too" in origin
    assert model.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_head_for_other_attributes_is_made_anew(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "donor.pt"
    torch.save(donor, file)
    model, origin = make_model(ModelConfig(weights=str(file)), 5, True, 0)
    random, _ = make_model(ModelConfig(), 5, True, 0)
    assert torch.equal(model.net.layer4[1].conv2.weight, donor["layer4.1.conv2.weight"])
    assert torch.equal(model.net.bn1.running_mean, donor["bn1.running_mean"])
    assert torch.equal(model.net.fc.weight, random.net.fc.weight)
    assert "a new head" in origin


def test_weights_without_a_head_and_weights_of_the_whole_model(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    headless = tmp_path / "headless.safetensors"
    safetensors.torch.save_file({name: t for name, t in donor.items() if not name.startswith("fc.")}, headless)
    model, origin = make_model(ModelConfig(weights=str(headless)), 2, True, 0)
    assert torch.equal(model.net.conv1.weight, donor["conv1.weight"])
    assert "a new head" in origin
    whole = tmp_path / "whole.pt"
    torch.save({f"net.{name}": tensor for name, tensor in donor.items()}, whole)
    model, _ = make_model(ModelConfig(weights=str(whole)), 2, True, 0)
    assert torch.equal(model.net.fc.weight, donor["fc.weight"])


def test_weights_of_another_architecture_are_refused(tmp_path: Path, donor: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "other.pt"
    torch.save(nn.Linear(3, 2).state_dict(), file)
    refusal(file, str(file), "weight", "ResNet18")
    torch.save({**donor, "layer5.0.conv1.weight": torch.zeros(1)}, file)
    refusal(file, str(file), "layer5.0.conv1.weight")
    torch.save({**donor, "conv1.weight": torch.zeros(64, 1, 7, 7)}, file)
    refusal(file, str(file), "conv1.weight")
    torch.save({name: t for name, t in donor.items() if name != "layer3.0.bn1.weight"}, file)
    refusal(file, str(file), "lacks layer3.0.bn1.weight")
    torch.save({}, file)
    refusal(file, str(file), "lacks")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], 3, {"conv1.weight": "none"}])
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "training.pt"
    torch.save(content, file)
    refusal(file, str(file), "state dict")


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("damage", ["half", "empty", "text", "other format"])
def test_a_damaged_file_is_refused(tmp_path: Path, donor: dict[str, torch.Tensor], ending: str, damage: str) -> None:
    file = tmp_path / f"damaged.{ending}"
    as_safetensors = (ending == "safetensors") != (damage == "other format")
    safetensors.torch.save_file(donor, file) if as_safetensors else torch.save(donor, file)
    content = file.read_bytes()
    file.write_bytes({"half": content[: len(content) // 2], "empty": b"", "text": b"hello\n" * 99}.get(damage, content))
    refusal(file, str(file), "cannot be read")


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    file, witness = tmp_path / "trap.pt", tmp_path / "it ran"
    torch.save({"conv1.weight": Trap(witness)}, file)
    refusal(file, str(file))
    file.write_bytes(pickle.dumps(Trap(witness)))
    refusal(file, str(file))
    assert not witness.exists()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "nothing.pt", str(tmp_path / "nothing.pt"), "not a file", "imagenet")
    refusal(tmp_path, str(tmp_path), "not a file")
    refusal("imagenett", "imagenett", "not a file")


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
    model, origin = make_model(ModelConfig(weights="imagenet"), 2, True, 0)
    assert torch.equal(model.net.conv1.weight, donor["conv1.weight"])
    assert "a new head" in origin


@pytest.mark.parametrize("content", [b"", b"<html>proxy error</html>", b"PK\x03\x04half a zip"])
def test_a_damaged_download_is_refused(cache: Path, content: bytes) -> None:
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(content)
    refusal("imagenet", "resnet18-f37072fd.pth")
