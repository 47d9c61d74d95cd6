"""Occlusion maps against captum's own loop, in one run, on one machine.

    python benchmarks/occlusion.py --json benchmarks/results/occlusion-cpu.json

Peers, with the same ResNet18 (random weights), drawn faces, window, stride and fill:
    captum       captum.attr.Occlusion as it comes (perturbations_per_eval 1), image by image, one attribute, fp32
    captum_many  the same with all images in one call: each of its passes covers one place in all of them
    fp32         distrib.explaining.occlusion, all images in one call, one attribute
    fp32_all     the same with all attributes, for which captum would go through its loop once each
    bf16         the same as fp32 in bfloat16
A position is a place of the window in one image. The differences from captum are taken over all maps.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from captum.attr import Occlusion
from measure import alternate, machine, report, spread
from scipy.stats import spearmanr

from distrib.data.batch import Request, cut
from distrib.explaining.grid import make_grid
from distrib.explaining.occlusion import OcclusionMaps, covering, occlusion_maps
from distrib.faces import draw_face, sample_face
from distrib.model.network import AttributeClassifier
from distrib.model.trained import load


def drawn_faces(count: int, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [B, H, W, 3]."""
    centred = Request.centred(np.zeros(1, np.int64))
    pictures = [np.asarray(draw_face(sample_face(seed=0, index=index)).image) for index in range(count)]
    return torch.from_numpy(np.stack([cut(pixels_HWC, centred, "square", size) for pixels_HWC in pictures]))


def make_network(attributes: int, images_BHWC: torch.Tensor) -> AttributeClassifier:
    """An untrained network whose BatchNorm knows the images, so that its activations have ordinary sizes."""
    torch.manual_seed(0)
    net = AttributeClassifier(attributes)
    with torch.no_grad():
        for _ in range(10):
            net(images_BHWC)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a trained model, in place of random weights")
    parser.add_argument("--image-size", type=int, nargs=2, default=(178, 178))
    parser.add_argument("--attributes", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; left out: as torch chooses")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    trained = load(options.model) if options.model else None
    size = tuple(trained.description.image_size if trained else options.image_size)
    images_BHWC = drawn_faces(options.pictures, size)
    net = trained.net if trained else make_network(options.attributes, images_BHWC)
    attributes = len(trained.attributes) if trained else options.attributes
    grid = make_grid(size)
    covers_BCHW = covering(images_BHWC, "mean", grid.window).permute(0, 3, 1, 2).float()
    x_BCHW = images_BHWC.permute(0, 3, 1, 2).float()
    method = Occlusion(lambda x_BCHW: net(x_BCHW.permute(0, 2, 3, 1)))
    found: dict[str, torch.Tensor | OcclusionMaps] = {}

    @torch.inference_mode()
    def captum(x_BCHW: torch.Tensor, covers_BCHW: torch.Tensor) -> torch.Tensor:
        window, stride = (3, *grid.window), (3, *grid.stride)
        return method.attribute(x_BCHW, sliding_window_shapes=window, strides=stride, baselines=covers_BCHW, target=0)[
            :, 0
        ]

    def captum_one_by_one() -> None:
        pairs = zip(x_BCHW.split(1), covers_BCHW.split(1), strict=True)
        found["captum"] = torch.cat([captum(image, cover) for image, cover in pairs])

    def captum_many() -> None:
        found["captum_many"] = captum(x_BCHW, covers_BCHW)

    def ours(name: str, chosen: list[int] | None, precision: torch.dtype | None) -> None:
        found[name] = occlusion_maps(net, images_BHWC, attributes=chosen, precision=precision)

    peers = {
        "captum": captum_one_by_one,
        "captum_many": captum_many,
        "fp32": lambda: ours("fp32", [0], None),
        "fp32_all": lambda: ours("fp32_all", None, None),
        "bf16": lambda: ours("bf16", [0], torch.bfloat16),
    }
    seconds = alternate(peers, options.rounds)
    ours("bf16_all", None, torch.bfloat16)

    positions = options.pictures * len(grid.spans(0)) * len(grid.spans(1))
    exact, rounded = found["fp32_all"].drops_BAyx.flatten(2), found["bf16_all"].drops_BAyx.flatten(2)
    ranks = [
        float(spearmanr(one, other).statistic)
        for one, other in zip(exact.flatten(0, 1), rounded.flatten(0, 1), strict=True)
    ]
    report(
        {
            "machine": machine("torch", "torchvision", "captum"),
            "setting": {
                "weights": "trained" if trained else "random",
                "image_size": list(size),
                "window": list(grid.window),
                "stride": list(grid.stride),
                "pictures": options.pictures,
                "attributes": attributes,
                "positions_of_a_picture": positions // options.pictures,
            },
            "milliseconds_per_position": {
                name: spread([1000 * each / positions for each in values]) for name, values in seconds.items()
            },
            "speed_ratios": {
                f"{ours} / {theirs}": spread([a / b for a, b in zip(seconds[theirs], seconds[ours], strict=True)])
                for ours, theirs in [
                    ("fp32", "captum"),
                    ("fp32", "captum_many"),
                    ("bf16", "captum"),
                    ("bf16", "fp32"),
                    ("fp32_all", "fp32"),
                ]
            },
            "speed_ratio_for_all_attributes": attributes
            * spread([a / b for a, b in zip(seconds["captum"], seconds["fp32_all"], strict=True)])["median"],
            "largest_difference_from_captum_fp32": float(
                (found["fp32"].grid.at_pixels(found["fp32"].drops_BAyx)[:, 0] - found["captum"]).abs().max()
            ),
            "largest_value_of_captum": float(found["captum"].abs().max()),
            "rank_correlation_bf16": spread(ranks),
        },
        options.json,
    )


if __name__ == "__main__":
    main()
