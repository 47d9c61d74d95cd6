import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from image_files import encoded, exif, smooth
from launching import ROOT, clean_environment
from onnx import TensorProto, helper
from PIL import Image
from sentences import refusal
from torchvision.models import resnet18

import distrib
from distrib.base.json import to_json
from distrib.config import TUNED_SCORES, DataConfig
from distrib.data.batch import Crop
from distrib.data.decoders import TorchDecoder
from distrib.data.images import decode
from distrib.data.plan import evaluation_batches
from distrib.data.table import read_table
from distrib.model.network import AttributeClassifier
from distrib.model.trained import ONNX_KEY, Description, TrainedModel, load
from distrib.runs.folder import RunFolder

ATTRIBUTES = ("Smiling", "Eyeglasses", "Male")
SIZE = (40, 32)


def description(**changes: Any) -> Description:
    values: dict[str, Any] = {
        "architecture": "resnet18", "attributes": ATTRIBUTES, "image_size": SIZE, "crop": "full",
        "temperature": (1.0, 2.0, 0.5), "thresholds": (0.5, 0.8, 0.2), "epoch": 3,
    }  # fmt: skip
    return Description(**{**values, **changes})


@pytest.fixture(scope="module")
def trained() -> AttributeClassifier:
    torch.manual_seed(11)
    net = AttributeClassifier(len(ATTRIBUTES))
    net(torch.from_numpy(pictures(16)))  # BatchNorm's statistics
    return net.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, trained: AttributeClassifier) -> Path:
    """A run folder with best/, as training leaves it."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    folder.make()
    undefined = {"Smiling": {"roc_auc": float("nan")}}
    about = description(validation={"images": 4, "loss": float("nan")}, validation_by_attribute=undefined)
    folder.save_best(trained.net.state_dict(), np.zeros((4, 3), np.float32), about.model_dump(mode="json"), "# Card\n")
    return folder.path


def pictures(count: int = 3, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, *size, 3), np.uint8)


def copy(run: Path, target: Path) -> Path:
    shutil.copytree(run / "best", target)
    return target


# --- loading


def test_a_model_is_loaded_from_wherever_it_lies(run: Path, trained: AttributeClassifier, tmp_path: Path) -> None:
    with torch.inference_mode():
        wanted = trained(torch.from_numpy(pictures())).numpy()
    moved = copy(run, tmp_path / "a copy of it")
    for path in (run, run / "best", moved, str(run), str(moved)):
        model = load(path)
        assert model.attributes == ATTRIBUTES
        assert model.description.epoch == 3
        assert model.source == Path(path)
        np.testing.assert_allclose(model.logits(pictures()), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_undefined_in_training_is_undefined_when_loaded(run: Path) -> None:
    found = load(run).description
    assert found.validation == {"images": 4, "loss": None}
    assert found.validation_by_attribute == {"Smiling": {"roc_auc": None}}


def test_the_package_loads_models_and_imports_torch_only_then(run: Path) -> None:
    assert distrib.load(run).attributes == ATTRIBUTES
    program = "import sys, distrib; assert 'torch' not in sys.modules; print(distrib.load(sys.argv[1]).attributes)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(ATTRIBUTES)), done.stderr


def test_the_network_is_ready_for_use(run: Path) -> None:
    net = load(run).net
    assert not any(module.training for module in net.modules())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    load(run).logits(pictures())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_loading_leaves_the_random_numbers_of_its_caller_alone(run: Path) -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    load(run)
    assert torch.equal(torch.rand(3), wanted)


def test_plain_torchvision_reads_the_weights(run: Path) -> None:
    plain = resnet18(num_classes=len(ATTRIBUTES))
    plain.load_state_dict(safetensors.torch.load_file(run / "best/model.safetensors"), strict=True)
    about = json.loads((run / "best/model.json").read_text())
    x_BCHW = torch.from_numpy(pictures()).permute(0, 3, 1, 2).float()
    x_BCHW = (x_BCHW - torch.tensor(about["mean"]).view(3, 1, 1)) / torch.tensor(about["std"]).view(3, 1, 1)
    with torch.inference_mode():
        wanted = plain.eval()(x_BCHW).numpy()
    np.testing.assert_allclose(load(run).logits(pictures()), wanted, rtol=1e-4, atol=1e-4)


def test_the_normalisation_is_that_of_the_description(run: Path, tmp_path: Path) -> None:
    folder = copy(run, tmp_path / "model")
    changed = load(run).description.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)})
    (folder / "model.json").write_text(to_json(changed.model_dump(mode="json")))
    found = load(folder).logits(pictures())
    assert np.abs(found - load(run).logits(pictures())).max() > 1e-2
    mean, std = load(run).description.mean, load(run).description.std
    as_before = load(folder)
    as_before.net.mean.copy_(torch.tensor(mean).view(1, 3, 1, 1))
    as_before.net.std.copy_(torch.tensor(std).view(1, 3, 1, 1))
    np.testing.assert_array_equal(as_before.logits(pictures()), load(run).logits(pictures()))


@pytest.mark.gpu
def test_a_model_works_on_a_gpu(run: Path) -> None:
    model = load(run, "cuda")
    assert model.device.type == "cuda"
    np.testing.assert_allclose(model.logits(pictures()), load(run).logits(pictures()), rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused(run: Path) -> None:
    refusal(lambda: load(run, "cuda"), "cuda", "cpu")


# --- what is no model


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "picture", "weights"])
def test_what_holds_no_model_is_refused(run: Path, tmp_path: Path, kind: str) -> None:
    path = {
        "nothing": tmp_path / "nothing", "empty folder": tmp_path, "picture": tmp_path / "picture.png",
        "weights": run / "best/model.safetensors",
    }[kind]  # fmt: skip
    if kind == "picture":
        Image.fromarray(pictures()[0]).save(path)
    refusal(lambda: load(path), str(path), "holds no model", "model.json")


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("model.json", b"", "JSON"),
        ("model.json", b"{", "JSON"),
        ("model.json", b"\xff\xfe", "model.json"),
        ("model.json", b"[1, 2]", "model.json"),
        ("model.json", b"{}", "architecture"),
        ("model.safetensors", None, "missing"),
        ("model.safetensors", b"", "cannot be read"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 44\n",
            "cannot be read",
        ),
    ],
)
def test_a_damaged_model_is_refused(run: Path, tmp_path: Path, file: str, content: bytes | None, part: str) -> None:
    folder = copy(run, tmp_path / "model")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    refusal(lambda: load(folder), str(folder / file), part)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", "resnet50"),
        ("attributes", []),
        ("image_size", [0, 32]),
        ("image_size", [40]),
        ("crop", "round"),
        ("crop", 0.0),
        ("crop", 1.5),
        ("eval_zoom", 0.0),
        ("eval_zoom", 1.5),
        ("mean", [1.0, 2.0]),
        ("std", [58.0, 0.0, 57.0]),
        ("temperature", [1.0, 2.0]),
        ("temperature", [1.0, 0.0, 1.0]),
        ("temperature", [1.0, -1.0, 1.0]),
        ("temperature", [1.0, None, 1.0]),
        ("temperature", [1.0, float("inf"), 1.0]),
        ("thresholds", [0.5]),
        ("other_thresholds", {"accuracy": [0.5]}),
        ("other_thresholds", {"recall": [0.5, 0.5, 0.5]}),
        ("tuned_for", "recall"),
        ("thresholds", [0.5, 0.5, float("nan")]),
        ("thresholds", [0.5, 0.5, 1.5]),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(run: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = copy(run, tmp_path / "model")
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, key: value}))
    refusal(lambda: load(folder), str(folder / "model.json"), key)


def test_weights_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    folder = copy(run, tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    others = {
        "another head": resnet18(num_classes=5).state_dict(),
        "one missing": {name: tensor for name, tensor in weights.items() if name != "conv1.weight"},
        "one too many": {**weights, "layer5.weight": torch.zeros(1)},
    }
    for other in others.values():
        safetensors.torch.save_file(other, folder / "model.safetensors")
        refusal(lambda: load(folder), str(folder / "model.safetensors"), "does not fit")


def test_an_earlier_version_s_model_is_given_the_whole_crop(run: Path, tmp_path: Path) -> None:
    folder = copy(run, tmp_path / "model")
    about = json.loads((folder / "model.json").read_text())
    del about["eval_zoom"]
    (folder / "model.json").write_text(json.dumps(about))
    assert load(folder).description.region(*SIZE) == (0, 0, *SIZE)


def test_a_later_version_s_description_may_say_more(run: Path, tmp_path: Path) -> None:
    folder = copy(run, tmp_path / "model")
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, "wings": 2}))
    assert load(folder).attributes == ATTRIBUTES


# --- images in


@pytest.mark.parametrize("zoom", [1.0, 0.925])
@pytest.mark.parametrize(
    ("crop", "size"), [("full", SIZE), ("square", (48, 48)), (0.83, (48, 48)), ("full", (218, 178))]
)
def test_a_picture_is_fitted_as_the_decoder_fits_it(faces: Path, crop: Any, size: tuple[int, int], zoom: float) -> None:
    table = read_table(faces)
    config = DataConfig(root=faces, image_size=size, crop=crop, decoder="torch")
    about = description(crop=crop, image_size=size, eval_zoom=zoom)
    model = TrainedModel(AttributeClassifier(3).eval(), about, faces)
    rows = np.array([0, 17, 42])
    (batch,) = TorchDecoder(config, table, torch.device("cpu")).batches(evaluation_batches(rows, 3, 0, 1, zoom))
    for row, wanted in zip(rows, batch.images_BHWC, strict=True):
        found = model.fit(decode(table.store.path(row).read_bytes()))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, wanted.numpy())


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), SIZE, (1000, 1500)])
@pytest.mark.parametrize("crop", ["full", "square", 0.1])
def test_a_picture_of_any_size_fits(run: Path, shape: tuple[int, int], crop: Crop) -> None:
    model = load(run)
    model = TrainedModel(model.net, model.description.model_copy(update={"crop": crop}), model.source)
    (picture,) = pictures(1, shape)
    before = picture.copy()
    assert model.fit(picture).shape == (*SIZE, 3)
    assert model.logits(model.fit(picture)[None]).shape == (1, 3)
    np.testing.assert_array_equal(picture, before)


def test_a_picture_of_the_right_size_is_left_as_it_is(run: Path) -> None:
    np.testing.assert_array_equal(load(run).fit(pictures()[0]), pictures()[0])


def test_pixels_of_all_kinds_are_fitted_as_their_files_are(run: Path) -> None:
    model = load(run)
    rgb = smooth(60, 44)
    layer = np.dstack((rgb, np.full((60, 44), 255, np.uint8)))
    layer[:20, :, 3] = 100
    for pixels in (rgb, layer, rgb[..., 0], np.asfortranarray(rgb), rgb[:, ::-1], layer[::2]):
        wanted = model.fit(decode(encoded(np.ascontiguousarray(pixels), "PNG")))
        np.testing.assert_array_equal(model.fit(pixels), wanted)
        np.testing.assert_array_equal(model.fit(Image.fromarray(np.ascontiguousarray(pixels))), wanted)
    np.testing.assert_array_equal(model.fit(rgb[..., :1]), model.fit(rgb[..., 0]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_images_of_pillow_are_fitted_as_their_files_are(run: Path, mode: str) -> None:
    model = load(run)
    whole = Image.fromarray(smooth(60, 44)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        whole = Image.fromarray(np.asarray(whole).astype(np.uint16) * 257)
    data = encoded(whole, "TIFF" if mode == "CMYK" else "PNG", exif=exif(8))
    wanted = model.fit(decode(data))
    np.testing.assert_array_equal(model.fit(Image.open(io.BytesIO(data))), wanted)


def test_a_turned_jpeg_that_pillow_has_opened_is_upright(run: Path) -> None:
    model = load(run)
    data = encoded(smooth(60, 44), quality=95, exif=exif(6))
    for opened in (Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data)).convert("RGB")):
        np.testing.assert_array_equal(model.fit(opened), model.fit(decode(data)))
    refusal(lambda: model.fit(Image.open(io.BytesIO(data[:-100]))), "cannot be read", "truncated")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (smooth(9, 9) / 255, ["float64 [9, 9, 3]", "* 255"]),
        ((smooth(9, 9) / 255).astype(np.float16), ["float16", "* 255"]),
        (smooth(9, 9).astype(np.float32), ["float32", "image.round().astype(np.uint8)"]),
        ((smooth(60, 44) - 127.5) / 127.5, ["float64", "normalised"]),
        (np.full((9, 9, 3), np.nan), ["float64"]),
        (smooth(9, 9).astype(np.int64), ["int64", "astype(np.uint8)"]),
        (smooth(9, 9).astype(np.uint16) * 257, ["uint16", ">> 8"]),
        (smooth(9, 9) > 100, ["bool", "255"]),
        (smooth(9, 7).transpose(2, 0, 1), ["uint8 [3, 9, 7]", "np.moveaxis(image, 0, -1)"]),
        (smooth(9, 7)[..., 0][None], ["[1, 9, 7]", "np.moveaxis(image, 0, -1)"]),
        (np.stack([smooth(9, 9)] * 2), ["[2, 9, 9, 3]", "each image"]),
        (smooth(9, 9)[..., :2], ["[9, 9, 2]", "RGB"]),
        (smooth(9, 9)[0, 0], ["[3]", "RGB"]),
        (smooth(9, 9)[:0], ["[0, 9, 3]", "no pixels"]),
        (torch.from_numpy(smooth(9, 9)), ["Tensor", ".numpy()"]),
        (smooth(2, 2).tolist(), ["list", "np.asarray"]),
        ("face.jpg", ["str", "PIL.Image.open"]),
        (Path("face.jpg"), ["Path", "PIL.Image.open"]),
        (b"\xff\xd8", ["bytes", "PIL.Image.open"]),
        (None, ["NoneType"]),
        (Image.fromarray(np.zeros((9, 9), np.float32)), ["8 or 16 bits"]),
    ],
)
def test_fit_says_what_it_does_not_take(run: Path, given: Any, parts: list[str]) -> None:
    model = load(run)
    sentence = refusal(lambda: model.fit(given), *parts)
    if not isinstance(given, Image.Image):
        assert "uint8 [H, W, 3 or 4]" in sentence


def test_logits_do_not_depend_on_how_pictures_come(run: Path) -> None:
    model, images_BHWC = load(run), pictures(7)
    wanted = model.logits(images_BHWC)
    assert (wanted.shape, wanted.dtype) == ((7, 3), np.float32)
    frozen = images_BHWC.copy()
    frozen.flags.writeable = False  # as Pillow hands images out
    mirrored_in_memory = np.ascontiguousarray(images_BHWC[:, :, ::-1])[:, :, ::-1]
    for other in (torch.from_numpy(images_BHWC), frozen, mirrored_in_memory, np.asfortranarray(images_BHWC)):
        np.testing.assert_array_equal(model.logits(other), wanted)
    for batch_size in (1, 2, 7, 100):
        np.testing.assert_allclose(model.logits(images_BHWC, batch_size), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error:.*not writable")
def test_read_only_pictures_give_no_warning(run: Path) -> None:
    images_BHWC = pictures()
    images_BHWC.flags.writeable = False
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else once a process
    try:
        load(run).logits(images_BHWC)
    finally:
        torch.set_warn_always(before)


def test_no_picture_has_no_logits(run: Path) -> None:
    found = load(run).logits(pictures(0))
    assert (found.shape, found.dtype) == ((0, 3), np.float32)


@pytest.mark.parametrize(
    "images",
    [pictures()[0], pictures(2, (32, 40)), pictures()[..., :1], pictures() / 255, pictures().astype(np.int64)],
    ids=["one image", "other size", "grey", "float", "int"],
)
def test_other_than_fitted_pictures_are_refused(run: Path, images: np.ndarray) -> None:
    refusal(lambda: load(run).logits(images), "uint8", str(list(images.shape)), "fit")


# --- probabilities and decisions


def test_probabilities_are_calibrated_and_decisions_follow_their_thresholds(run: Path) -> None:
    model = load(run)
    logits_BA = np.array([[0.0, 2 * np.log(4), 0.5 * np.log(0.25)], [-1e-6, 2.7, -0.7]], np.float64)
    found = model.probabilities(logits_BA)
    np.testing.assert_allclose(found[0], [0.5, 0.8, 0.2])
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits_BA / np.array([1.0, 2.0, 0.5]))))
    assert model.decisions(np.array([[1e-6, 2.8, -0.69]])).tolist() == [[True, True, True]]
    assert model.decisions(logits_BA[1:]).tolist() == [[False, False, False]]
    assert model.decisions(np.zeros((1, 3), np.float32)).tolist() == [[True, False, True]], (
        "a probability of 1/2 is one"
    )


def test_other_thresholds_are_exchanged_for_those_in_use(run: Path) -> None:
    others = {"accuracy": (0.9, 0.9, 0.9), "balanced_accuracy": (0.1, 0.1, 0.1)}
    model = load(run)
    model = replace(model, description=description(other_thresholds=others))
    careful = model.with_thresholds("accuracy")
    assert (careful.description.thresholds, careful.description.tuned_for) == (others["accuracy"], "accuracy")
    logits = np.zeros((1, 3), np.float32)
    assert model.decisions(logits).tolist() == [[True, False, True]]
    assert careful.decisions(logits).tolist() == [[False, False, False]]
    assert model.with_thresholds("balanced_accuracy").decisions(logits).all()
    for score in TUNED_SCORES:
        assert careful.with_thresholds(score).with_thresholds("f1").description == model.description


def test_probabilities_have_the_shape_of_the_logits(run: Path) -> None:
    model = load(run)
    for shape in ((3,), (0, 3), (5, 3), (2, 5, 3)):
        logits = np.zeros(shape, np.float32)
        assert model.probabilities(logits).shape == model.decisions(logits).shape == shape
    with np.errstate(over="raise"):
        extreme = model.probabilities(np.full((1, 3), -1e4, np.float32))
    assert extreme.dtype == np.float64
    assert (extreme == 0).all()


# --- ONNX


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A network of three attributes: how red, green and blue an image is."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pictures"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["x", "axes"], ["logits"], keepdims=0),
        ],
        "colours",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", *SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(made, {ONNX_KEY: description().model_dump_json()})
    onnx.save(made, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_an_onnx_file_is_a_model_like_any_other(onnx_file: Path) -> None:
    model = load(onnx_file)
    assert model.attributes == ATTRIBUTES
    assert model.device.type == "cpu"
    np.testing.assert_allclose(model.logits(pictures(5), batch_size=2), pictures(5).mean(axis=(1, 2)), rtol=1e-5)
    assert model.logits(pictures(0)).shape == (0, 3)
    refusal(lambda: model.logits(pictures(1, (32, 40))), "uint8")


@pytest.mark.parametrize("damage", ["empty", "text", "half", "foreign", "odd"])
def test_an_onnx_file_that_is_no_model_is_refused(onnx_file: Path, damage: str) -> None:
    content, made = onnx_file.read_bytes(), onnx.load(onnx_file)
    if damage == "foreign":
        del made.metadata_props[:]
        onnx.save(made, onnx_file)
    elif damage == "odd":
        made.metadata_props[0].value = '{"attributes": []}'
        onnx.save(made, onnx_file)
    else:
        onnx_file.write_bytes({"empty": b"", "text": b"hello\n" * 99, "half": content[: len(content) // 2]}[damage])
    refusal(lambda: load(onnx_file), str(onnx_file))
