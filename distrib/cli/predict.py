"""`distrib predict`: the attributes of the faces in photographs.

distrib predict runs/celeba photo.jpg holidays/ --occlusion Arched_Eyebrows
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from distrib.base.collection import no_collection
from distrib.base.errors import UserError
from distrib.base.program import program
from distrib.model.options import PredictOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distrib.model.trained import TrainedModel


@program
def main(argv: Sequence[str]) -> int:
    """Run the program; returns the exit status: 0, 1 if a photograph failed."""
    options = tyro.cli(PredictOptions, prog="distrib predict", args=argv)
    check(options)
    with no_collection():
        from distrib.model.prediction import predict  # takes seconds, for which no --help and no refusal waits

    return predict(options, heat_overlays)


def check(options: PredictOptions) -> None:
    """Refuse options that do not fit each other.

    Raises:
        UserError: naming them.
    """
    if not options.photographs:
        raise UserError(
            "no photograph is named: name files, folders, patterns, or - for standard input, right after the model and "
            "before options that take several names, such as --occlusion"
        )
    if options.json and options.csv:
        raise UserError("--json and --csv were both given: choose one")


def heat_overlays(
    model: "TrainedModel", image_HWC: "NDArray[np.uint8]", attributes: Sequence[int]
) -> "list[NDArray[np.uint8]]":
    """See `distrib.explaining.occlusion.heat_overlays`, which is imported by those alone who ask for heat maps."""
    from distrib.explaining.occlusion import heat_overlays

    return heat_overlays(model, image_HWC, attributes)
