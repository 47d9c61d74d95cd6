"""A trained model with all that its use needs, from wherever it lies.

Legend: B images, H height, W width, A attributes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pydantic
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from distrib.base.errors import UNPRINTABLE, UserError, first_line
from distrib.base.paths import expanded_path, is_text
from distrib.base.words import few, nearest
from distrib.config import TUNED_SCORES, TunedScore
from distrib.config.schema import Side
from distrib.data.batch import Request, crop_regions, cut
from distrib.data.images import from_array, from_pillow
from distrib.data.table import Table
from distrib.model.network import MEAN, STD, AttributeClassifier
from distrib.scoring.calibration import sigmoid
from distrib.scoring.predictions import Predictions
from distrib.scoring.scorecard import Scorecard

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Under this key an exported ONNX file keeps its model.json.
ONNX_KEY = "distrib"

Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]


class Description(pydantic.BaseModel):
    """What `model.json` says of a model.

    Attributes:
        architecture: "resnet18", torchvision's.
        stem: "imagenet", torchvision's; or "small", a 3x3 convolution without max-pooling.
        attributes: A names, in the order of the logits.
        image_size: height and width of the network's input in pixels.
        crop: "square", the largest centred square of an image; a number, the centred square with this share of that
            side; or "full", all of the image.
        eval_zoom: height and width of the centred part of the crop that the network is given, as a fraction of the
            crop's.
        mean: of the channels, on the scale 0 … 255; normalisation is the network's first operation.
        std: deviations of the channels, on the same scale.
        temperature: A; the probability is sigmoid(logit / temperature), fitted on validation.
        thresholds: A; an attribute is present if its probability reaches this; tuned on validation.
        tuned_for: the score that `thresholds` are tuned for.
        other_thresholds: score -> A thresholds tuned for it; none in the models of earlier versions.
        epoch: of training, from 1.
        validation: "images", and the mean of each score over the attributes (of sigmoid(logit) >= 1/2).
        validation_by_attribute: attribute -> score -> value.
        training: where it comes from: the resolved configuration, the numbers of images, hardware, versions …
    """

    model_config = pydantic.ConfigDict(frozen=True, protected_namespaces=())

    architecture: Literal["resnet18"]
    stem: Literal["imagenet", "small"] = "imagenet"
    attributes: tuple[str, ...] = pydantic.Field(min_length=1)
    image_size: tuple[Side, Side]
    crop: Literal["square", "full"] | Annotated[float, pydantic.Field(ge=0.1, le=1)]
    eval_zoom: float = pydantic.Field(1.0, gt=0, le=1)
    mean: tuple[Finite, Finite, Finite] = MEAN
    std: tuple[Positive, Positive, Positive] = STD
    temperature: tuple[Positive, ...]
    thresholds: tuple[Probability, ...]
    tuned_for: TunedScore = "f1"
    other_thresholds: dict[TunedScore, tuple[Probability, ...]] = {}
    epoch: int = 0
    validation: dict[str, float | None] = {}
    validation_by_attribute: dict[str, dict[str, float | None]] = {}
    training: dict[str, Any] = {}

    @property
    def view(self) -> dict[str, Any]:
        """What of an image the network is given, and at which size: settings of the data by their names."""
        return {"image_size": self.image_size, "crop": self.crop, "eval_zoom": self.eval_zoom}

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The region of an image of this size that the network is given: top, left, height and width in pixels."""
        request = Request.centred(np.zeros(1, np.int64), self.eval_zoom)
        (found,) = crop_regions(request, np.array([height]), np.array([width]), self.crop).tolist()
        return tuple(found)

    @property
    def precision(self) -> str:
        """In which the model was trained; "no", which is float32, where it does not say."""
        try:
            return str(self.training["config"]["train"]["precision"])
        except (KeyError, TypeError):
            return "no"

    @property
    def thresholds_by_score(self) -> dict[TunedScore, tuple[float, ...]]:
        """All thresholds that the model has, A by the score that they are tuned for."""
        known = {**self.other_thresholds, self.tuned_for: self.thresholds}
        return {score: known[score] for score in TUNED_SCORES if score in known}

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Description":
        others = {f"other_thresholds.{score}": values for score, values in self.other_thresholds.items()}
        for name, values in {"temperature": self.temperature, "thresholds": self.thresholds, **others}.items():
            if len(values) != len(self.attributes):
                raise ValueError(f"{name} has {len(values)} values for {len(self.attributes)} attributes")
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError("attributes has the same name twice")
        return self


@dataclass(frozen=True)
class TrainedModel:
    """A network and what it says of itself.

    Attributes:
        net: in evaluation mode; float logits [B, A] of uint8 RGB images [B, H, W, 3].
        description: of the model.
        source: the folder or file it was read from.
    """

    net: nn.Module
    description: Description
    source: Path

    @property
    def attributes(self) -> tuple[str, ...]:
        return self.description.attributes

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU for an ONNX file."""
        return next((tensor.device for tensor in self.net.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> "TrainedModel":
        """This model, moved to a device.

        Raises:
            UserError: if it cannot go there.
        """
        try:
            self.net.to(device)
        except (RuntimeError, AssertionError) as error:  # the second is what a torch without CUDA raises
            raise UserError(
                f"the model cannot go to the device {device} ({first_line(error)}): choose cpu, or check the GPU"
            ) from None
        return self

    def with_thresholds(self, score: TunedScore) -> "TrainedModel":
        """This model, deciding by the thresholds that are tuned for a score.

        Raises:
            UserError: if it has none for it.
        """
        thresholds = self.description.thresholds_by_score
        if score not in thresholds:
            raise UserError(
                f"{self.source} has no thresholds tuned for {score}: it was trained by an earlier version, which tuned "
                f"them for {few(list(thresholds))} only; choose that, or train again"
            )
        others = {name: values for name, values in thresholds.items() if name != score}
        chosen = {"thresholds": thresholds[score], "tuned_for": score, "other_thresholds": others}
        return replace(self, description=self.description.model_copy(update=chosen))

    def labels(self, table: Table, root: Path) -> Table:
        """A data set's table with the model's attributes alone, in the order of the logits.

        Args:
            table: with all of the attributes of the data set.
            root: folder of the data set, for the sentence.

        Raises:
            UserError: if it lacks one of them.
        """
        there = [*table.attributes, *table.flaws]
        lacking = [name for name in self.attributes if name not in there]
        if lacking:
            hint = nearest(lacking[0], there)
            column = f"rename its column{hint}, or add one for each" if hint else "add a column for each"
            raise UserError(
                f"{root} has no labels for {few(lacking)}, which {self.source} predicts: {column}, or name another "
                f"data set by --data.root; its columns are {', '.join(there)}"
            )
        return table.select(self.attributes)

    def fit(self, image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
        """An image as the network takes it, uint8 [height, width, 3]: cropped and resized as in validation.

        Args:
            image: one that Pillow has opened, which is read as training reads its file (turned upright by its EXIF,
                what is transparent over white); or its pixels, uint8 in 0 … 255: RGB [H, W, 3], RGBA [H, W, 4], or
                grey [H, W] or [H, W, 1].

        Raises:
            UserError: if it is something else, such as floats or a batch; with the remedy.
        """
        about = self.description
        request = Request.centred(np.zeros(1, np.int64), about.eval_zoom)
        return np.ascontiguousarray(cut(_pixels(image), request, about.crop, about.image_size))

    @torch.inference_mode()
    def logits(self, images_BHWC: NDArray[np.uint8] | torch.Tensor, batch_size: int = 64) -> NDArray[np.float32]:
        """Logits float32 [B, A] of uint8 images [B, H, W, 3] that `fit` has made.

        Raises:
            UserError: if the images have another shape or type.
        """
        if isinstance(images_BHWC, torch.Tensor):
            images = images_BHWC
        else:  # torch takes no array that is mirrored or read-only: such a one is copied
            images = torch.from_numpy(np.require(images_BHWC, requirements=("C", "W")))
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1:] != (*self.description.image_size, 3):
            raise UserError(
                f"the model takes uint8 images of shape {[None, *self.description.image_size, 3]}, found "
                f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}: let `fit` prepare each image"
            )
        parts = [self.net(part.to(self.device)).float().cpu() for part in torch.split(images, batch_size)]
        return torch.cat(parts).numpy()

    def probabilities(self, logits_BA: NDArray[np.floating]) -> NDArray[np.float64]:
        """Calibrated probabilities float64 [B, A] of logits [B, A]."""
        return sigmoid(logits_BA.astype(np.float64) / np.array(self.description.temperature))

    def decisions(self, logits_BA: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each attribute is present, bool [B, A]: its probability reaches its threshold."""
        present: NDArray[np.bool_] = self.probabilities(logits_BA) >= np.array(self.description.thresholds)
        return present

    def scorecard(self, found: Predictions) -> Scorecard:
        """The scores of what this model said of some images, at all thresholds that it has."""
        thresholds, decides_by = self.description.thresholds_by_score, self.description.tuned_for
        return Scorecard.of(found, self.probabilities(found.logits_NA), thresholds, decides_by)


def open_session(file: Path) -> "InferenceSession":
    """What computes an ONNX file, on the CPU."""
    import onnxruntime  # by those alone who have such a file: it takes a while

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised as well
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class OnnxClassifier(nn.Module):
    """An exported model behind the interface of a network; onnxruntime computes it on the CPU."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file, self._session = file, open_session(file)
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B, A] of uint8 RGB images [B, H, W, 3].

        Raises:
            UserError: if the file computes something else.
        """
        try:
            (logits_BA,) = self._session.run(["logits"], {"pictures": images_BHWC.cpu().numpy()})
            if logits_BA.shape[0] != len(images_BHWC) or logits_BA.ndim != 2:
                raise ValueError(f"it gives {list(logits_BA.shape)} for {list(images_BHWC.shape)}")
            return torch.from_numpy(logits_BA)
        except Exception as error:  # onnxruntime has one for each kind of failure, without a common base
            raise UserError(
                f"{self._file} does not compute logits of images ({first_line(error)}): export it again"
            ) from None


def load(path: Path | str, device: torch.device | str = "cpu") -> TrainedModel:
    """A trained model, ready to use.

    Args:
        path: a run folder (its best epoch), a model folder such as best/, a checkpoint, or an exported .onnx file.
        device: where the network goes; an ONNX file is computed on the CPU.

    Raises:
        UserError: if there is no model, or it is damaged.
    """
    path = expanded_path(path)
    if not is_text(path):
        raise UserError(f"{path} has bytes in its name that are not UTF-8, by which no model can be opened: rename it")
    try:
        if path.is_file() and path.suffix == ".onnx":
            return _load_onnx(path)
        folder = model_folder(path)
    except OSError as error:  # such as a name too long for the file system
        raise UserError(f"{path} cannot be read ({first_line(error)}): check the name") from None
    if folder is None and (path / "checkpoints").is_dir():
        raise UserError(
            f"{path} has no best/ yet, which its first epoch makes, or with data.grow the first one that ends at "
            "data.image_size: resume the run, or name one of its checkpoints"
        )
    if folder is None:
        raise UserError(
            f"{path} holds no model: expected a run with best/, a folder with model.json and "
            "model.safetensors, or an .onnx file"
        )
    description = read_description(folder / "model.json")
    file = folder / "model.safetensors"
    try:
        weights = safetensors.torch.load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: copy the whole folder, or train again") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}): copy it again from where it came") from None
    return TrainedModel(make_net(description, weights, file), description, path).to(device)


def model_folder(path: Path) -> Path | None:
    """The folder of the model of a run or of a model folder; None where there is no model.

    Raises:
        OSError: if that cannot be seen.
    """
    return next((each for each in (path, path / "best") if (each / "model.json").is_file()), None)


def make_net(description: Description, weights: dict[str, torch.Tensor], file: Path) -> AttributeClassifier:
    """The network with these weights, in evaluation mode.

    Raises:
        UserError: if they do not fit; it names the file.
    """
    with torch.device("meta"):  # without first weights, which would be drawn for nothing
        net = AttributeClassifier(len(description.attributes), stem=description.stem)
    net.to_empty(device="cpu")
    net.mean.copy_(torch.tensor(description.mean).view(1, 3, 1, 1))
    net.std.copy_(torch.tensor(description.std).view(1, 3, 1, 1))
    try:
        net.net.load_state_dict(weights)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:160]
        raise UserError(
            f"{file} does not fit its model.json, a {description.architecture} with {len(description.attributes)} "
            f"attributes ({problem}): keep the two files of one model together"
        ) from None
    return net.eval()


def read_description(file: Path) -> Description:
    """What a model.json says.

    Raises:
        UserError: if it cannot be read or lacks something.
    """
    try:
        return _parse(file.read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}): copy it again from where it came") from None


def _pixels(image: object) -> NDArray[np.uint8]:
    """What `TrainedModel.fit` is given as uint8 [H, W, 3], RGB.

    Raises:
        UserError: if it takes no such thing.
    """
    takes = "fit takes one Pillow image, or its pixels as a NumPy array, uint8 [H, W, 3 or 4] or [H, W]"
    if isinstance(image, Image.Image):
        try:
            return from_pillow(image)
        except ValueError as error:
            raise UserError(f"the image cannot be read ({error}): replace the file") from None
    if not isinstance(image, np.ndarray):
        remedy = {
            torch.Tensor: "call .numpy() on it, with the channels last",
            str: "open the file with PIL.Image.open",
            Path: "open the file with PIL.Image.open",
            bytes: "open them with PIL.Image.open(io.BytesIO(…))",
        }
        how = next((said for kind, said in remedy.items() if isinstance(image, kind)), "convert it with np.asarray")
        raise UserError(f"{takes}, found {type(image).__name__}: {how}")
    found = f"{takes}, found {image.dtype} {list(image.shape)}"
    if image.ndim == 4:
        raise UserError(f"{found}: call it for each image of the batch, and give the stacked results to logits")
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4):
        if image.ndim == 3 and image.shape[0] in (1, 3, 4):
            raise UserError(f"{found}: the channels come last, as np.moveaxis(image, 0, -1) puts them")
        raise UserError(f"{found}: give it grey, RGB or RGBA pixels")
    if image.size == 0:
        raise UserError(f"{found}, which has no pixels: look at where it was cut")
    if image.dtype != np.uint8:
        raise UserError(f"{found}: {_to_uint8(image)}")
    return from_array(image)


def _to_uint8(image: NDArray[Any]) -> str:
    """How pixels of another type become uint8."""
    if image.dtype == np.bool_:
        return "give it image * np.uint8(255)"
    if image.dtype.kind in "fiu":
        least, most = image.min(), image.max()
        if image.dtype.kind == "f" and least >= 0 and most <= 1:
            return "convert them from 0 … 1 with (image * 255).round().astype(np.uint8)"
        if least >= 0 and most <= 255:
            return "convert them from 0 … 255 with image.round().astype(np.uint8)"
        if image.dtype == np.uint16:
            return "convert them from 16 bits with (image >> 8).astype(np.uint8)"
    return "bring them back to 0 … 255 first (if they were normalised: the network does that itself)"


def _load_onnx(file: Path) -> TrainedModel:
    try:
        net = OnnxClassifier(file)
    except Exception as error:  # onnxruntime has one for each kind of damage, without a common base
        raise UserError(f"{file} cannot be read as ONNX ({first_line(error)}): export it again") from None
    if ONNX_KEY not in net.metadata:
        raise UserError(f"{file} was not made by `distrib export`: it lacks the description of its input and output")
    model = TrainedModel(net.eval(), _parse(net.metadata[ONNX_KEY], file), file)
    found = model.logits(np.zeros((1, *model.description.image_size, 3), np.uint8)).shape[1]
    if found != len(model.attributes):
        raise UserError(f"{file} gives {found} logits for its {len(model.attributes)} attributes: export it again")
    return model


def _parse(text: str, file: Path) -> Description:
    try:
        description = Description.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:160]
        raise UserError(
            f"{file} is not a description of a model ({where + ': ' if where else ''}{first['msg']}): copy it again "
            "from where it came, or train again"
        ) from None
    wrong = next((name for name in description.attributes if not name or UNPRINTABLE.search(name)), None)
    if wrong is not None:  # it would be printed with every prediction, and do to the terminal what it says
        raise UserError(
            f"{file} names an attribute {wrong!r}, which no table has: copy it again from where it came, or train again"
        )
    return description
