"""A trained model as one ONNX file: uint8 image in, probabilities out.

Legend: B images, H height, W width, A attributes.
"""

import copy
import statistics
import timeit
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from distrib.base.errors import UserError
from distrib.base.files import check_output, written_whole
from distrib.base.paths import is_text
from distrib.model.network import AttributeClassifier
from distrib.model.trained import ONNX_KEY, TrainedModel, open_session

# The largest difference between a probability by torch and by onnxruntime.
TOLERANCE = 1e-4
WARM_UP, TIMED = 3, 20


@dataclass(frozen=True)
class Export:
    """What was written, and how it fared.

    Attributes:
        file: the ONNX file.
        difference: the largest between a probability by torch and by onnxruntime.
        torch_ms: median time of one image in milliseconds, by torch on this CPU.
        onnxruntime_ms: the same by onnxruntime.
    """

    file: Path
    difference: float
    torch_ms: float
    onnxruntime_ms: float


class Exported(nn.Module):
    """What the file computes: the network with its normalisation, and the calibrated probabilities."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: AttributeClassifier, temperature: tuple[float, ...]) -> None:
        super().__init__()
        # In NHWC memory the exporter would write out how torch strides over it.
        self.net = copy.deepcopy(net.net).to("cpu", memory_format=torch.contiguous_format)
        self.register_buffer("mean", net.mean.cpu().clone())
        self.register_buffer("std", net.std.cpu().clone())
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))

    def forward(self, pictures_BHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities and logits, float32 [B, A] each, of uint8 RGB images [B, H, W, 3]."""
        logits_BA = self.net((pictures_BHWC.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        return torch.sigmoid(logits_BA / self.temperature), logits_BA


def export_onnx(model: TrainedModel, file: Path) -> Export:
    """Write a model as an ONNX file, once onnxruntime has computed the same from it as torch from the model.

    The file has one input, "pictures" uint8 [B, H, W, 3] (RGB, cropped and resized as `TrainedModel.fit` does, B free),
    and two outputs, "probabilities" (calibrated) and "logits", float32 [B, A]. The weights are inside it, and so is
    model.json, under the metadata key "distrib".

    Args:
        model: of torch, not an ONNX file.
        file: to write, as --out names it; an older one is replaced.

    Raises:
        UserError: if the model is an ONNX file already, the file cannot be written, or a probability differs by more
            than 1e-4; no file is left then.
    """
    if not isinstance(model.net, AttributeClassifier):
        raise UserError(f"{model.source} is an ONNX file already: export the model folder that it was made from")
    check_output(file, "--out")
    if not is_text(file.absolute()):
        raise UserError(f"--out {file} has bytes in its name that are not UTF-8: name another place")
    model = replace(model, net=copy.deepcopy(model.net).cpu())
    proto = _to_onnx(model)
    with written_whole(file, "--out") as staged:
        staged.write_bytes(proto.SerializeToString())
        session = open_session(staged)
        difference = max(_difference(model, session, pictures) for pictures in _pictures(model.description.image_size))
        if not difference <= TOLERANCE:  # so that NaN is refused as well
            raise UserError(
                f"{file} is not written: its probabilities by onnxruntime {onnxruntime.__version__} differ from those "
                f"by torch {torch.__version__} by up to {difference:.2g}, expected at most {TOLERANCE:g}; look at the "
                "model's weights, or export with other versions of the two"
            )
        picture_BHWC = _pictures(model.description.image_size)[0][:1]
        torch_ms = _median_ms(lambda: model.logits(picture_BHWC))
        onnxruntime_ms = _median_ms(lambda: session.run(["probabilities"], {"pictures": picture_BHWC}))
    return Export(file, difference, torch_ms, onnxruntime_ms)


def _to_onnx(model: TrainedModel) -> onnx.ModelProto:
    assert isinstance(model.net, AttributeClassifier)
    description = model.description
    example_BHWC = torch.zeros(2, *description.image_size, 3, dtype=torch.uint8)  # a batch of 1 would be taken as fixed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and onnxscript warn of each other's deprecations
        program = torch.onnx.export(
            Exported(model.net, description.temperature).eval(),
            (example_BHWC,),
            dynamo=True,
            verbose=False,
            input_names=["pictures"],
            output_names=["probabilities", "logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    proto = program.model_proto
    # The exporter notes where each operation stands in the source, by the paths of this machine.
    for each in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del each.metadata_props[:]
    onnx.helper.set_model_props(proto, {ONNX_KEY: description.model_dump_json()})
    onnx.checker.check_model(proto)
    return proto


def _pictures(image_size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Images to compare on, uint8 [B, H, W, 3]: a batch of 5 and of 1, noise and smooth ones each."""
    generator = np.random.default_rng(0)
    batches = []
    for count in (5, 1):
        noise_BCHW = torch.from_numpy(generator.integers(0, 256, (count, 3, *image_size), dtype=np.uint8))
        blobs_BCHW = torch.from_numpy(generator.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8))
        smooth_BCHW = F.interpolate(blobs_BCHW, size=image_size, mode="bilinear")
        batches += [each.permute(0, 2, 3, 1).contiguous().numpy() for each in (noise_BCHW, smooth_BCHW)]
    return batches


def _difference(model: TrainedModel, session: onnxruntime.InferenceSession, pictures_BHWC: NDArray[np.uint8]) -> float:
    (found_BA,) = session.run(["probabilities"], {"pictures": pictures_BHWC})
    with np.errstate(invalid="ignore"):  # what is not a number differs from everything
        wanted_BA = model.probabilities(model.logits(pictures_BHWC))
    return float(np.max(np.abs(np.asarray(found_BA) - wanted_BA)))


def _median_ms(compute: Callable[[], object]) -> float:
    times = timeit.repeat(compute, number=1, repeat=WARM_UP + TIMED)
    return statistics.median(times[WARM_UP:]) * 1000
