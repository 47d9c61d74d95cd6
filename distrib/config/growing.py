"""Growing images: what `data.grow` says, such as "112@0 144@0.5 178@0.75"."""

import math
import re
from fractions import Fraction
from typing import NamedTuple

from distrib.base.errors import UserError

# Heights and widths are multiples of this, which ResNet18 halves down to whole pixels.
STEP = 16
# A height and a share, each of so few digits that a number made of it is small.
_WORD = re.compile(r"([1-9][0-9]{0,3})@([0-9]{1,9}|[0-9]{0,9}\.[0-9]{1,12})")


class Stage(NamedTuple):
    """A part of a run.

    Attributes:
        share: of the run's steps, at which it begins; exact, as 0.55 of 100 steps are not to be more than 55.
        size: height and width in pixels of the images that are trained on.
    """

    share: Fraction
    size: tuple[int, int]


def stages_of(grow: str, image_size: tuple[int, int]) -> tuple[Stage, ...]:
    """The stages of a run in their order; the last one is of data.image_size.

    Raises:
        UserError: if there are no such stages; it names what is wrong.
    """
    if grow == "none":
        return (Stage(Fraction(0), image_size),)
    height, width = image_size
    example = f"{STEP * max(1, height // (2 * STEP))}@0 {height}@0.5"
    words = grow.split()
    if not words:
        raise UserError(f"data.grow is empty: expected HEIGHT@SHARE each, such as {example}, or none")
    stages: list[tuple[int, Fraction]] = []
    for number, word in enumerate(words):
        parts = _WORD.fullmatch(word)
        if parts is None:
            raise UserError(f"data.grow has {word[:40]}: expected HEIGHT@SHARE each, such as {example}, or none")
        each, share = int(parts[1]), Fraction(parts[2])
        if not stages and share != 0:
            raise UserError(f"data.grow begins with {word}: say first how high images are at 0, as in {example}")
        if share >= 1:
            raise UserError(f"data.grow has {word}: expected a share of the run that is less than 1, as in {example}")
        if stages and share <= stages[-1][1]:
            raise UserError(f"data.grow has {word} after {words[number - 1]}: name shares in ascending order")
        if stages and each <= stages[-1][0]:
            raise UserError(f"data.grow has {word} after {words[number - 1]}: name heights in ascending order")
        if each % STEP and number < len(words) - 1:
            near = STEP * max(1, round(each / STEP))
            raise UserError(
                f"data.grow has {word}: all heights but the last are multiples of {STEP} pixels, such as {near}"
            )
        stages.append((each, share))
    if stages[-1][0] != height:
        raise UserError(
            f"data.grow ends with {words[-1]}, and data.image_size is {height} {width}: let the last height be {height}"
        )
    smaller = [Stage(share, (each, _width(each, image_size))) for each, share in stages[:-1]]
    return (*smaller, Stage(stages[-1][1], image_size))


def growing_epochs(grow: str, epochs: int) -> int:
    """Epochs, from the first one on, that end before images have their full size, in a run of so many.

    A stage begins with the step in which its share of the run lies, so that this does not depend on how many steps an
    epoch has; and the last step of a run is always of the full size.
    """
    return 0 if grow == "none" else math.floor(Fraction(grow.split()[-1].partition("@")[2]) * epochs)


def _width(height: int, image_size: tuple[int, int]) -> int:
    """The width of smaller images: by the aspect of the full ones, to a multiple of 16, and no larger."""
    full_height, full_width = image_size
    nearest = STEP * max(1, math.floor(Fraction(height * full_width, STEP * full_height) + Fraction(1, 2)))
    return min(nearest, full_width - full_width % STEP or full_width)
