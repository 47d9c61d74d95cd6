from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms.v2.functional import normalize

from distrib.config import LAYERS
from distrib.model.network import AttributeClassifier


def pictures(count: int = 2, height: int = 40, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.manual_seed(1))


# --- what it computes


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_logits_are_torchvision_s_on_normalised_pictures(channels_last: bool, stem: str) -> None:
    model = AttributeClassifier(3, channels_last, stem=stem).eval()
    images_BHWC = pictures()
    before = images_BHWC.clone()
    plain = resnet18(num_classes=3)
    if stem == "small":
        plain.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        plain.maxpool = nn.Identity()
    plain.load_state_dict(model.net.state_dict())
    plain.eval()
    x_BCHW = images_BHWC.permute(0, 3, 1, 2).float() / 255
    wanted = plain(normalize(x_BCHW, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    found = model(images_BHWC)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(images_BHWC, before), "the images are left as they are"


def test_the_small_stem_leaves_images_whole_and_draws_the_other_weights_as_before() -> None:
    nets = []
    for stem in ("imagenet", "small"):
        torch.manual_seed(0)
        nets.append(AttributeClassifier(2, stem=stem).eval())
    sides = []
    for model in nets:
        model.net.layer1.register_forward_hook(lambda *args: sides.append(args[2].shape[2:]))
        model(pictures(1, 32, 48))
    assert sides == [(8, 12), (32, 48)]
    by_fan_out = (2 / (64 * 9)) ** 0.5  # He et al., as torchvision does
    assert nets[1].net.conv1.weight.std().item() == pytest.approx(by_fan_out, rel=0.1)
    states = [model.net.state_dict() for model in nets]
    assert all(name == "conv1.weight" or torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_channels_last_is_a_matter_of_memory_alone() -> None:
    last = AttributeClassifier(2, channels_last=True).eval()
    first = AttributeClassifier(2, channels_last=False).eval()
    first.load_state_dict(last.state_dict())
    assert last.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert first.net.conv1.weight.is_contiguous()
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


# --- freezing


def frozen(policy: str, **options: Any) -> AttributeClassifier:
    model = AttributeClassifier(2, **options)
    model.freeze(policy)
    return model


def trained_parts(model: AttributeClassifier) -> set[str]:
    return {name.split(".")[0] for name, p in model.net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("freeze", ["none", "backbone", *LAYERS])
def test_a_policy_freezes_up_to_the_layer_it_names(freeze: str) -> None:
    model = frozen(freeze)
    everything = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    first_trained = {"none": 0, "conv1": 2, "layer1": 3, "layer2": 4, "layer3": 5, "layer4": 6, "backbone": 6}[freeze]
    assert trained_parts(model) == set(everything[first_trained:])


@pytest.mark.parametrize("freeze", ["none", "layer2", "backbone"])
def test_frozen_layers_stay_as_they_are_and_others_do_not(freeze: str) -> None:
    model = frozen(freeze)
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


def test_frozen_layers_may_go_on_averaging_statistics() -> None:
    model = frozen("layer2", frozen_statistics="updated")
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    model.eval()
    model.train()
    model(pictures(4)).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for name, tensor in model.net.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert moved == (statistic or name.split(".")[0] in trained_parts(model)), name
    model.eval()
    assert not any(module.training for module in model.modules())


def test_layers_are_freed_again() -> None:
    model = AttributeClassifier(2)
    for policy, changes in [("none", False), ("backbone", True), ("layer4", False), ("layer2", True), ("none", True)]:
        assert model.freeze(policy) == changes, policy
        trained = trained_parts(model)
        assert trained == trained_parts(frozen(policy))
        for name, module in model.net.named_children():
            assert all(part.training == (name in trained or not list(module.parameters())) for part in module.modules())
    model.eval()
    model.freeze("layer1")
    assert not any(module.training for module in model.modules()), "what is evaluated stays so"
