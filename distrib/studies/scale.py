"""The report's experiments made smaller: fewer images, fewer epochs, smaller images."""

from collections.abc import Mapping
from dataclasses import dataclass

from distrib.config import Config

# What the report had: CelebA, its official training split, and images of 178 x 178 pixels.
ALL_IMAGES, TRAINING_IMAGES = 202_599, 162_770
# Images get no smaller, and trainings no shorter: less shows nothing of a network of this depth.
LEAST_SIDE, LEAST_EPOCHS = 64, 2
# Sides are multiples of this, which ResNet18 halves down to whole pixels.
STEP = 16


@dataclass(frozen=True)
class Scale:
    """How much of the report's work is done.

    Images are scaled by the share itself, epochs and the side of an image by its fourth root: both matter more than
    the number of images does.

    Attributes:
        share: of the images, in (0, 1].
        available: split's name -> how many training images the data set has by it, whatever its seed.
    """

    share: float
    available: Mapping[str, int]

    def __call__(self, config: Config) -> Config:
        """The configuration, made smaller; and no larger than the data set, even where the share is 1."""
        available = self.available[config.data.split]
        wanted = round(self.share * min(config.data.subset or TRAINING_IMAGES, TRAINING_IMAGES))
        subset = config.data.subset if self.share == 1 else max(wanted, config.train.batch_size)
        config = config.replace("data", subset=None if subset is None or subset >= available else subset)
        if self.share == 1:
            return config
        root = self.share**0.25
        # What a configuration has below the least stays as it is.
        height, width = (
            min(side, max(LEAST_SIDE, STEP * round(root * side / STEP))) for side in config.data.image_size
        )
        epochs = min(config.train.epochs, max(LEAST_EPOCHS, round(root * config.train.epochs)))
        return config.replace("data", image_size=(height, width)).replace("train", epochs=epochs)
