"""What the layers of the network make of an image, and the filters they do it with.

Modules go by their names in torchvision's ResNet18, such as `layer2.0.conv1`.

Legend: B images, C channels, H height, W width; O filters, I input channels; N tiles of a mosaic; h and w the sides
of a filter or a tile.
"""

import math
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from distrib.base.words import words
from distrib.explaining.figures import new
from distrib.explaining.finished_run import Finding, FinishedRun, data_uri, data_uri_jpeg, data_uri_png
from distrib.explaining.modules import convolution, module
from distrib.model.network import AttributeClassifier

# A mosaic shows at most so many channels or filters.
SHOWN = 64
# For the page a map is at most so many pixels high and wide, in so many colours: a mosaic of conv1's maps is 90 kB
# then, and 500 kB as it is. The number of colours is odd, so that zero has one of its own in the middle.
SIDE = 56
COLOURS = 63


@torch.inference_mode()
def activation_maps(
    net: AttributeClassifier, images_BHWC: torch.Tensor, modules: Sequence[str]
) -> dict[str, torch.Tensor]:
    """What modules of the network put out for these images.

    Args:
        net: in evaluation mode.
        images_BHWC: uint8 RGB, on the network's device.
        modules: names; of a module that is used several times in a pass (a block's `relu`), the last time counts.

    Returns:
        For each name float32 [B, C, H, W] on the CPU; a module that puts out vectors, such as `fc`, has maps of 1 x 1.

    Raises:
        UserError: if there is no such module; it lists those that are.
    """
    assert not net.training, "a look at the network must not move its statistics"
    maps: dict[str, torch.Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        output_BCHW = output if output.ndim == 4 else output[:, :, None, None]
        # A copy even on the CPU, because later ReLUs and additions work in place.
        maps[name] = output_BCHW.to("cpu", torch.float32, copy=True)

    with ExitStack() as hooks:
        for name in modules:
            hooks.enter_context(module(net.net, name).register_forward_hook(partial(keep, name)))
        net(images_BHWC)
    return {name: maps[name] for name in modules}


def filters_of(net: AttributeClassifier, name: str) -> torch.Tensor:
    """The filters of a convolution, a copy: float32 [O, I, h, w] on the CPU.

    Raises:
        UserError: if there is no such convolution; it lists those that are.
    """
    return convolution(net.net, name).weight.detach().to("cpu", torch.float32, copy=True)


def activations(run: FinishedRun) -> Finding:
    """Job: the activation maps of the modules in `explain.modules`, of one test image.

    It is the one whose first attribute the model decides rightly with the greatest confidence.

    Raises:
        UserError: if there is no such module, or the image cannot be read.
    """
    place, about = _surest(run)
    test = run.predictions["test"]
    images_BHWC = run.pictures(test.rows[[place]])
    found: dict[str, Any] = {
        "picture": data_uri_jpeg(images_BHWC[0].cpu().numpy()),
        "file": test.names[place],
        "caption": about,
        "modules": [],
    }
    figures = {}
    colours = _colours("viridis")
    for name, maps_BCHW in activation_maps(run.net, images_BHWC, run.config.explain.modules).items():
        maps_CHW = maps_BCHW[0]
        channels, height, width = maps_CHW.shape
        shown = _strongest(maps_CHW.abs().mean(dim=(1, 2)))
        caption = (
            f"{_which(channels, 'channels', 'the largest mean absolute activation')}, each {height} x {width} and "
            "coloured from its own lowest value (dark) to its highest (bright)"
        )
        figures[f"activations-{name}"] = _figure(name, caption, colours[mosaic(_number(_rise(maps_CHW[shown])))])
        found["modules"].append(
            {
                "name": name,
                "channels": channels,
                "shown": shown.tolist(),
                "size": [height, width],
                "image": _png(mosaic(_number(_rise(_shrink(maps_CHW[shown])))), colours),
                "caption": caption,
            }
        )
    return Finding(found, figures)


def filters(run: FinishedRun) -> Finding:
    """Job: the filters of the convolutions in `explain.filters`.

    Filters on three channels are shown as colours. A filter on more is shown by its strongest kernel, the one on the
    input channel that it listens to most; a mean over hundreds of kernels would show next to nothing.

    Raises:
        UserError: if there is no such convolution.
    """
    found: list[dict[str, Any]] = []
    figures = {}
    for name in run.config.explain.filters:
        weights_OIhw = filters_of(run.net, name)
        shown = _strongest(weights_OIhw.flatten(1).norm(dim=1))
        which = _which(len(weights_OIhw), "filters", "the largest norm")
        module: dict[str, Any] = {"name": name, "shape": list(weights_OIhw.shape), "shown": shown.tolist()}
        if weights_OIhw.shape[1] == 3:
            tiles_NhwC = _around_zero(weights_OIhw[shown]).permute(0, 2, 3, 1)
            opaque = F.pad(tiles_NhwC, (0, 1), value=1.0)
            pixels_HWC = mosaic(opaque.mul(255).round().byte().numpy())
            module["image"] = data_uri_png(pixels_HWC)
            caption = f"{which}, as red, green and blue; grey is zero, and each filter is scaled for itself"
        else:
            kernels_OIx = weights_OIhw[shown].flatten(2)
            inputs = kernels_OIx.norm(dim=2).argmax(dim=1)
            numbers = mosaic(_number(_around_zero(weights_OIhw[shown, inputs])))
            colours = _colours("coolwarm")
            pixels_HWC = colours[numbers]
            module["image"] = _png(numbers, colours)
            module["inputs"] = inputs.tolist()
            caption = (
                f"{which}, of each the strongest of its {weights_OIhw.shape[1]} kernels; blue is negative, grey zero, "
                "red positive, and each kernel is scaled for itself"
            )
        figures[f"filters-{name}"] = _figure(name, caption, pixels_HWC)
        found.append({**module, "caption": caption})
    return Finding({"modules": found}, figures)


def mosaic(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles [N, h, w] or [N, h, w, channels] side by side, as near to a square of tiles as can be.

    Between them, and where the last row is not full, is a pixel of 0, which every image here shows as transparent.
    """
    count, height, width, *channels = tiles.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height + 1, width + 1, *channels), np.uint8)
    cells[:count, :height, :width] = tiles
    grid = cells.reshape(rows, columns, height + 1, width + 1, *channels).swapaxes(1, 2)
    return grid.reshape(rows * (height + 1), columns * (width + 1), *channels)[:-1, :-1]


def _surest(run: FinishedRun) -> tuple[int, str]:
    """The place in the test split of the right decision on the first attribute that is surest, and a caption of it."""
    test, model = run.predictions["test"], run.model
    probability_N = model.probabilities(test.logits_NA)[:, 0]
    present_N = model.decisions(test.logits_NA)[:, 0]
    right_N = present_N == test.targets_NA[:, 0]
    confidence_N = np.where(present_N, probability_N, 1 - probability_N)
    place = int(np.argmax(confidence_N + right_N))  # one that is right before any that is wrong
    decision = words(model.attributes[0], bool(present_N[place]))
    verdict = "rightly" if right_N[place] else "wrongly, as no test image is decided rightly"
    return place, f"{test.names[place]}: {decision}, with a probability of {confidence_N[place]:.1%}, {verdict}"


def _strongest(strength_N: torch.Tensor) -> torch.Tensor:
    """Numbers of the strongest, strongest first; all in their own order where there is room for all."""
    if len(strength_N) <= SHOWN:
        return torch.arange(len(strength_N))
    return strength_N.topk(SHOWN).indices


def _which(count: int, what: str, by: str) -> str:
    return f"all {count} {what}" if count <= SHOWN else f"the {SHOWN} of {count} {what} with {by}"


def _shrink(maps_NHW: torch.Tensor) -> torch.Tensor:
    """Maps small enough for the page: means over squares of pixels."""
    square = math.ceil(max(maps_NHW.shape[1:]) / SIDE)
    return F.avg_pool2d(maps_NHW, square, ceil_mode=True, count_include_pad=False)


def _rise(tiles_Nhw: torch.Tensor) -> torch.Tensor:
    """Each tile from its lowest value, 0, to its highest, 1."""
    lowest = tiles_Nhw.amin(_own(tiles_Nhw), keepdim=True)
    highest = tiles_Nhw.amax(_own(tiles_Nhw), keepdim=True)
    return (tiles_Nhw - lowest) / (highest - lowest).clamp_min(torch.finfo(torch.float32).tiny)


def _around_zero(tiles: torch.Tensor) -> torch.Tensor:
    """Each tile [N, …] from 0 to 1 such that zero is 1/2."""
    largest = tiles.abs().amax(_own(tiles), keepdim=True)
    return (tiles / largest.clamp_min(torch.finfo(torch.float32).tiny) + 1) / 2


def _own(tiles: torch.Tensor) -> tuple[int, ...]:
    """The dimensions that share a scale: those of a tile; all of them where a tile is one number."""
    return tuple(range(1 if tiles[0].numel() > 1 else 0, tiles.ndim))


def _colours(name: str) -> NDArray[np.uint8]:
    """Red, green, blue and opacity of number 0, which is transparent, and of a colour map's steps 1 … COLOURS."""
    steps = colormaps[name](np.linspace(0, 1, COLOURS), bytes=True)
    return np.vstack((np.zeros((1, 4), np.uint8), steps))


def _number(tiles: torch.Tensor) -> NDArray[np.uint8]:
    """Values in [0, 1] as numbers of colours."""
    return (tiles * COLOURS).floor().clamp(0, COLOURS - 1).add(1).byte().numpy()


def _png(numbers_HW: NDArray[np.uint8], colours: NDArray[np.uint8]) -> str:
    """An image with a palette, a third of the size of one without, in a data URI."""
    picture = Image.fromarray(numbers_HW)
    picture.putpalette(colours[:, :3].tobytes())
    return data_uri(picture, "PNG", transparency=0, optimize=True)


def _figure(name: str, caption: str, pixels_HWC: NDArray[np.uint8]) -> Figure:
    figure = new(8, 8.6)
    axes = figure.subplots()
    axes.imshow(pixels_HWC, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("\n".join((name, *textwrap.wrap(caption, 90))), fontsize=9)
    return figure
