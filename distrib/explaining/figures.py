"""How every figure looks; none of it touches pyplot, so nothing is kept open and no window is needed."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distrib.base.words import words

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart
# (M. Okabe and K. Ito, "Color Universal Design", 2008).
BLUE, ORANGE, GREEN, RED, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
GREY = "#8C8C8C"

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, SKY, PURPLE]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#E4E4E4",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


class _StyledFigure(Figure):
    """Its axes come in the style of the project; the style of the process is left alone."""

    def add_subplot(self, *args: Any, **options: Any) -> Any:
        with matplotlib.rc_context(_STYLE):
            return super().add_subplot(*args, **options)


def new(width: float, height: float) -> Figure:
    """An empty figure of so many inches; `subplots` puts axes into it, and its layout makes room for all text."""
    return _StyledFigure(figsize=(width, height), dpi=150, layout="constrained")


def label(attribute: str, longest: int = 32) -> str:
    """An attribute as text in a figure: spaces for underscores, and a dollar sign begins no formula."""
    text = words(attribute)
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return text.replace("$", r"\$")


def rows_of_attributes(axes: Axes, attributes: Sequence[str]) -> NDArray[np.int64]:
    """Give the vertical axis a row for each attribute, the first on top; returns the rows' heights on it, [A]."""
    rows = np.arange(len(attributes))
    axes.set_yticks(rows, [label(name) for name in attributes])
    axes.set_ylim(len(attributes) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    return rows


def height_of_rows(attributes: int, least: float = 5.0) -> float:
    """Inches that a figure with a row for each attribute needs."""
    return max(least, 1.2 + 0.21 * attributes)


# Of a title, at the least.
LETTERS_PER_INCH = 12


def sheet(
    title: str,
    cards: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8] | None, str]],
    columns: int,
    card: tuple[float, float],
) -> Figure:
    """Images side by side, each with a caption.

    Args:
        title: above them, in as many lines as it needs.
        cards: one or more of image uint8 [H, W, 3], what lies over it (RGBA; None: nothing), and caption.
        columns: at most.
        card: width and height of each in inches.
    """
    columns = min(columns, len(cards))
    rows = -(-len(cards) // columns)
    width = max(4, card[0] * columns)
    lines = textwrap.wrap(title, int(LETTERS_PER_INCH * width))
    figure = new(width, card[1] * rows + 0.2 + 0.2 * len(lines))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (picture_HWC, overlay_HW4, caption) in zip(axes.flat, cards, strict=False):
        axis.imshow(picture_HWC)
        if overlay_HW4 is not None:
            pixels_high, pixels_wide, _ = picture_HWC.shape
            extent = (-0.5, pixels_wide - 0.5, pixels_high - 0.5, -0.5)
            axis.imshow(overlay_HW4, extent=extent, interpolation="bilinear")
        axis.set_title(caption, fontsize=8)
    figure.suptitle("\n".join(lines), fontsize=11)
    return figure
