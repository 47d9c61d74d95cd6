import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentences import refusal
from torch import nn
from torchvision.models import resnet18

from distrib.config import Config
from distrib.data.splits import make_splits
from distrib.data.table import read_table
from distrib.explaining import features
from distrib.explaining.features import activation_maps, filters_of
from distrib.explaining.finished_run import Finding, FinishedRun
from distrib.explaining.modules import check_modules
from distrib.model.network import AttributeClassifier
from distrib.model.trained import Description, TrainedModel
from distrib.scoring.predictions import Predictions

ATTRIBUTES = ("Smiling", "Eyeglasses", "Male")
SIZE = (72, 56)


@pytest.fixture(scope="module")
def net() -> AttributeClassifier:
    torch.manual_seed(3)
    net = AttributeClassifier(len(ATTRIBUTES))
    net(pictures(8))  # BatchNorm's statistics, without which activations of random weights explode
    return net.eval()


@pytest.fixture(scope="module")
def study(faces: Path, net: AttributeClassifier) -> FinishedRun:
    config = Config().replace("data", root=faces, attributes=ATTRIBUTES, image_size=SIZE, crop="full")
    whole = read_table(faces)
    table = whole.select(ATTRIBUTES)
    description = Description(
        architecture="resnet18", attributes=ATTRIBUTES, image_size=SIZE, crop="full",
        temperature=(1.5, 1.0, 1.0), thresholds=(0.45, 0.5, 0.5),
    )  # fmt: skip
    splits, model = make_splits(table, config.data), TrainedModel(net, description, faces)
    study = FinishedRun(faces, config, whole, table, splits, model, "", {})
    rows = study.splits.test
    logits_NA = study.model.logits(study.pictures(rows))
    return replace(study, predictions={"test": Predictions.of("test", table, rows, logits_NA)})


@pytest.fixture(scope="module")
def shown(study: FinishedRun) -> Finding:
    return features.activations(study)


def pictures(count: int = 2, height: int = SIZE[0], width: int = SIZE[1]) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.manual_seed(1))


def with_options(study: FinishedRun, **options: Any) -> FinishedRun:
    return replace(study, config=study.config.replace("explain", **options))


def decode(uri: str) -> np.ndarray:
    """Red, green, blue and opacity of each pixel of a PNG in a data URI."""
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))


def tile(mosaic: np.ndarray, place: int, height: int, width: int, columns: int = 8) -> np.ndarray:
    top, left = place // columns * (height + 1), place % columns * (width + 1)
    return mosaic[top : top + height, left : left + width]


# --- activation maps


@torch.no_grad()
def forward_by_hand(model: AttributeClassifier, images_BHWC: torch.Tensor) -> dict[str, torch.Tensor]:
    net = model.net
    x = (images_BHWC.permute(0, 3, 1, 2).float() - model.mean) / model.std
    seen = {"conv1": nn.functional.conv2d(x, net.conv1.weight, stride=2, padding=3)}
    bn = net.bn1
    seen["bn1"] = nn.functional.batch_norm(seen["conv1"], bn.running_mean, bn.running_var, bn.weight, bn.bias)
    seen["relu"] = seen["bn1"].clamp(min=0)
    x = nn.functional.max_pool2d(seen["relu"], 3, 2, 1)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        for number, block in enumerate(getattr(net, name)):
            short = x if block.downsample is None else block.downsample(x)
            x = block.conv1(x)
            seen[f"{name}.{number}.conv1"] = x
            seen[f"{name}.{number}.bn2"] = x = block.bn2(block.conv2(block.bn1(x).clamp(min=0)))
            x = (x + short).clamp(min=0)
            seen[f"{name}.{number}.relu"] = x  # used twice in a block: this is the second time
        seen[name] = x
    seen["avgpool"] = x.mean(dim=(2, 3), keepdim=True)
    seen["fc"] = (x.mean(dim=(2, 3)) @ net.fc.weight.T + net.fc.bias)[:, :, None, None]
    return seen


def test_maps_are_what_the_modules_put_out(net: AttributeClassifier) -> None:
    images_BHWC = pictures()
    wanted = forward_by_hand(net, images_BHWC)
    found = activation_maps(net, images_BHWC, list(wanted))
    assert list(found) == list(wanted)
    for name, maps_BCHW in found.items():
        assert maps_BCHW.dtype == torch.float32
        torch.testing.assert_close(maps_BCHW, wanted[name], rtol=1e-4, atol=1e-4, msg=lambda m, name=name: name + m)


def test_every_module_of_the_network_can_be_listed(net: AttributeClassifier) -> None:
    names = [name for name, _ in net.net.named_modules() if name]
    maps = activation_maps(net, pictures(3), names)
    assert list(maps) == names
    for name in names:
        assert maps[name].ndim == 4, name
        assert len(maps[name]) == 3
    assert maps["layer4"].shape == (3, 512, 3, 2)
    assert maps["fc"].shape == (3, len(ATTRIBUTES), 1, 1)


def test_a_look_changes_nothing(net: AttributeClassifier) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    logits_BA = net(pictures())
    maps = activation_maps(net, pictures(), ["conv1", "layer1.0.relu"])
    assert not any(each.requires_grad for each in maps.values())
    assert torch.equal(net(pictures()), logits_BA)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    maps["conv1"].numpy().fill(0)
    assert torch.equal(net(pictures()), logits_BA)


def hooks(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if module._forward_hooks]


def test_no_hook_stays_behind(net: AttributeClassifier) -> None:
    activation_maps(net, pictures(), ["conv1", "layer4"])
    assert not hooks(net)
    with pytest.raises(RuntimeError):
        activation_maps(net, pictures()[..., :2], ["conv1", "layer4"])  # two channels: the first layer fails
    assert not hooks(net)
    refusal(lambda: activation_maps(net, pictures(), ["conv1", "layer5"]), "layer5", "did you mean layer4")
    assert not hooks(net)


def test_the_layout_in_memory_is_no_matter(net: AttributeClassifier) -> None:
    plain = AttributeClassifier(len(ATTRIBUTES), channels_last=False).eval()
    plain.load_state_dict(net.state_dict())
    assert plain.net.conv1.weight.is_contiguous()
    assert not net.net.conv1.weight.is_contiguous()
    names = ["conv1", "layer2.0.conv1", "layer4"]
    one, other = activation_maps(net, pictures(), names), activation_maps(plain, pictures(), names)
    for name in names:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-4)
    for name in ("conv1", "layer2.0.conv1"):
        assert torch.equal(filters_of(net, name), filters_of(plain, name))


@pytest.mark.gpu
def test_maps_and_filters_come_from_a_gpu_too(net: AttributeClassifier) -> None:
    remote = AttributeClassifier(len(ATTRIBUTES)).eval()
    remote.load_state_dict(net.state_dict())
    remote.cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        maps = activation_maps(remote, pictures().cuda(), ["conv1", "layer4"])
    for name, wanted in activation_maps(net, pictures(), ["conv1", "layer4"]).items():
        torch.testing.assert_close(maps[name], wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(filters_of(remote, "layer3.0.conv1"), filters_of(net, "layer3.0.conv1"))


# --- filters


def test_filters_are_the_weights_and_a_copy_of_them(net: AttributeClassifier) -> None:
    for name, shape in {
        "conv1": (64, 3, 7, 7), "layer1.0.conv1": (64, 64, 3, 3), "layer4.0.conv1": (512, 256, 3, 3),
        "layer3.0.downsample.0": (256, 128, 1, 1),
    }.items():  # fmt: skip
        weights_OIhw = filters_of(net, name)
        assert weights_OIhw.shape == shape
        assert torch.equal(weights_OIhw, net.net.get_parameter(f"{name}.weight"))
        weights_OIhw.zero_()
        assert net.net.get_parameter(f"{name}.weight").abs().sum() > 0


# --- names


def test_names_of_the_defaults_and_of_every_module_are_right() -> None:
    explain = Config().explain
    check_modules(explain.modules, explain.filters)
    everything = dict(resnet18().named_modules())
    convolutions = [name for name, module in everything.items() if isinstance(module, nn.Conv2d)]
    check_modules([name for name in everything if name], convolutions)
    assert {*explain.modules} <= everything.keys()  # which `check_modules` takes for granted
    assert {*explain.filters} <= {*convolutions}


@pytest.mark.parametrize(
    ("name", "hint"),
    [("layer5", "layer4"), ("Layer2", "layer2"), ("layer1.0.cnv1", "layer1.0.conv1"), ("", None), ("net", None)],
)
def test_a_wrong_module_is_refused_with_the_list_of_right_ones(name: str, hint: str | None) -> None:
    sentence = refusal(lambda: check_modules(["conv1", name], []), "explain.modules", name)
    assert all(right in sentence for right, _ in resnet18().named_modules())
    assert f"did you mean {hint}" in sentence if hint else "did you mean" not in sentence


@pytest.mark.parametrize(
    ("name", "hint"), [("layer3", "layer3."), ("bn1", None), ("fc", None), ("layer1.0.conv3", "layer1.0.conv")]
)
def test_what_is_no_convolution_has_no_filters(net: AttributeClassifier, name: str, hint: str | None) -> None:
    sentence = refusal(lambda: check_modules([], ["conv1", name]), "explain.filters", name, "not a convolution")
    listed = sentence.rpartition(" are ")[2].split(", ")
    assert listed == [right for right, module in resnet18().named_modules() if isinstance(module, nn.Conv2d)]
    assert hint is None or f"did you mean {hint}" in sentence
    assert refusal(lambda: filters_of(net, name)) == sentence


# --- the jobs


def test_the_activations_are_of_the_surest_right_picture(study: FinishedRun, shown: Finding) -> None:
    test = study.predictions["test"]
    p = 1 / (1 + np.exp(-test.logits_NA[:, 0].astype(float) / 1.5))
    right = [i for i in range(len(p)) if (p[i] >= 0.45) == test.targets_NA[i, 0]]
    surest = max(right, key=lambda i: p[i] if p[i] >= 0.45 else 1 - p[i])
    assert shown.data["file"] == test.names[surest]
    for part in (test.names[surest], "Smiling", "rightly"):
        assert part in shown.data["caption"]
    picture = Image.open(io.BytesIO(base64.b64decode(shown.data["picture"].partition(",")[2])))
    assert (picture.height, picture.width) == SIZE
    difference = np.abs(np.array(picture).astype(int) - study.picture(int(test.rows[surest]))).mean()
    assert difference < 8, "the JPEG is of that image"


def test_where_no_decision_is_right_the_caption_says_so(study: FinishedRun) -> None:
    test = study.predictions["test"]
    wrong = replace(test, targets_NA=1 - study.model.decisions(test.logits_NA).astype(np.uint8))
    caption = features.activations(replace(study, predictions={"test": wrong})).data["caption"]
    assert "wrongly" in caption


def test_each_mosaic_has_its_tiles_in_their_places(study: FinishedRun, shown: Finding) -> None:
    row = study.table.names.index(shown.data["file"])
    maps = activation_maps(study.model.net, study.pictures([row]), study.config.explain.modules)
    modules = {module["name"]: module for module in shown.data["modules"]}
    assert list(modules) == list(study.config.explain.modules)
    for name, module in modules.items():
        _, channels, height, width = maps[name].shape
        assert (module["channels"], module["size"]) == (channels, [height, width])
        mosaic = decode(module["image"])
        assert mosaic.shape == (8 * (height + 1) - 1, 8 * (width + 1) - 1, 4)
        assert len(module["image"]) < 150_000
        assert len(set(module["shown"])) == 64
        for place, channel in enumerate(module["shown"]):
            colours = tile(mosaic, place, height, width)
            assert (colours[..., 3] == 255).all()
            brightness = colours[..., :3] @ np.array([0.2126, 0.7152, 0.0722])  # viridis grows brighter throughout
            values = maps[name][0, channel].numpy()
            if np.ptp(values) > 0:
                assert brightness[np.unravel_index(values.argmax(), values.shape)] == brightness.max()
                assert brightness[np.unravel_index(values.argmin(), values.shape)] == brightness.min()
                assert brightness.max() - brightness.min() > 150
        assert (mosaic[height] == 0).all(), "between tiles there is nothing"
        assert (mosaic[:, width] == 0).all()
    assert len({module["image"] for module in modules.values()}) == len(modules)
    json.dumps(shown.data)


def test_of_many_channels_the_strongest_are_shown_and_it_is_said(study: FinishedRun, shown: Finding) -> None:
    modules = {module["name"]: module for module in shown.data["modules"]}
    assert modules["layer1"]["shown"] == list(range(64))
    assert "all 64 channels" in modules["layer1"]["caption"]
    assert "the 64 of 512 channels" in modules["layer4"]["caption"]
    row = study.table.names.index(shown.data["file"])
    (maps_BCHW,) = activation_maps(study.model.net, study.pictures([row]), ["layer4"]).values()
    strength = maps_BCHW[0].abs().mean(dim=(1, 2))
    assert modules["layer4"]["shown"] == strength.argsort(descending=True)[:64].tolist()


def test_maps_of_large_pictures_are_made_small_for_the_page(faces: Path, study: FinishedRun) -> None:
    description = study.model.description.model_copy(update={"image_size": (300, 260)})
    large = replace(study, model=replace(study.model, description=description))
    (module,) = features.activations(with_options(large, modules=("conv1",))).data["modules"]
    assert module["size"] == [150, 130]
    assert decode(module["image"]).shape[:2] == (8 * 51 - 1, 8 * 45 - 1), "means over 3 x 3 pixels"
    assert len(module["image"]) < 150_000


def test_a_channel_without_contrast_is_dark_and_warns_of_nothing(study: FinishedRun) -> None:
    dead = AttributeClassifier(len(ATTRIBUTES)).eval()
    dead.load_state_dict(study.model.net.state_dict())
    with torch.no_grad():
        dead.net.layer2[1].bn2.weight[5] = 0.0
        dead.net.conv1.weight.zero_()
    study = with_options(replace(study, model=replace(study.model, net=dead)), modules=("conv1",), filters=("conv1",))
    with np.errstate(all="raise"):
        (maps,), (weights,) = (job(study).data["modules"] for job in (features.activations, features.filters))
    for module, height, width in ((maps, 36, 28), (weights, 7, 7)):
        assert len(np.unique(tile(decode(module["image"]), 0, height, width).reshape(-1, 4), axis=0)) == 1


@pytest.mark.parametrize("name", ["fc", "avgpool", "maxpool", "layer3.1.bn2", "layer2.0.downsample"])
def test_any_module_makes_a_mosaic(study: FinishedRun, name: str) -> None:
    (module,) = features.activations(with_options(study, modules=(name,))).data["modules"]
    colours = decode(module["image"])
    opaque = colours[colours[..., 3] > 0]
    assert len(opaque) == len(module["shown"]) * module["size"][0] * module["size"][1]
    assert len(np.unique(opaque, axis=0)) > 2, "maps of one pixel share a scale, so that they differ too"


def test_filters_on_three_channels_are_colours(study: FinishedRun) -> None:
    (module,) = features.filters(with_options(study, filters=("conv1",))).data["modules"]
    assert module["shape"] == [64, 3, 7, 7]
    mosaic = decode(module["image"])
    assert mosaic.shape == (63, 63, 4)
    for place, filter_Ihw in enumerate(filters_of(study.model.net, "conv1")):
        wanted = (filter_Ihw / filter_Ihw.abs().max() + 1) * 127.5
        found = tile(mosaic, place, 7, 7)
        assert np.abs(found[..., :3] - wanted.permute(1, 2, 0).numpy()).max() < 1
        assert (found[..., 3] == 255).all()
    assert (mosaic[7] == 0).all()


@pytest.mark.parametrize("name", ["layer1.0.conv1", "layer4.0.conv1"])
def test_a_filter_on_many_channels_is_its_strongest_kernel(study: FinishedRun, name: str) -> None:
    (module,) = features.filters(with_options(study, filters=(name,))).data["modules"]
    weights_OIhw = filters_of(study.model.net, name)
    assert module["shape"] == list(weights_OIhw.shape)
    assert "kernel" in module["caption"]
    mosaic = decode(module["image"]).astype(int)
    assert mosaic.shape == (31, 31, 4)
    assert len(set(module["shown"])) == len(module["inputs"]) == 64
    for place, (out, into) in enumerate(zip(module["shown"], module["inputs"], strict=True)):
        kernel_hw = weights_OIhw[out, into]
        assert kernel_hw.norm() == max(other.norm() for other in weights_OIhw[out])
        redness = (tile(mosaic, place, 3, 3)[..., 0] - tile(mosaic, place, 3, 3)[..., 2]).ravel()
        clear = (kernel_hw.abs() > 0.1 * kernel_hw.abs().max()).ravel().numpy()
        assert ((redness > 0) == (kernel_hw > 0).ravel().numpy())[clear].all(), "red is positive, blue negative"


def test_kernels_of_one_weight_share_a_scale(study: FinishedRun) -> None:
    (module,) = features.filters(with_options(study, filters=("layer2.0.downsample.0",))).data["modules"]
    colours = decode(module["image"])
    assert colours.shape == (15, 15, 4)
    assert len(np.unique(colours[colours[..., 3] > 0], axis=0)) > 2


def test_each_module_has_a_figure(study: FinishedRun, shown: Finding, tmp_path: Path) -> None:
    assert list(shown.figures) == [f"activations-{name}" for name in study.config.explain.modules]
    figures = features.filters(study).figures
    assert list(figures) == [f"filters-{name}" for name in study.config.explain.filters]
    for name, figure in {**shown.figures, **figures}.items():
        figure.savefig(tmp_path / f"{name}.png")
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 10


def test_a_wrong_name_stops_the_job_with_the_same_sentence(study: FinishedRun) -> None:
    refusal(lambda: features.activations(with_options(study, modules=("layer9",))), "explain.modules", "layer9")
    refusal(lambda: features.filters(with_options(study, filters=("layer1",))), "explain.filters", "layer1")


def test_no_module_is_no_mosaic(study: FinishedRun) -> None:
    assert features.activations(with_options(study, modules=())).data["modules"] == []
    assert features.filters(with_options(study, filters=())).data["modules"] == []
