"""A data set of CelebA's size, by the parts of benchmarks/scale.py, with images that are small."""

import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from launching import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from scale import IMAGES, PACK, first_batch, lay_out, run

from distrib.data.shards import read_manifest

HEIGHT, WIDTH = 24, 20


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, float]:
    """202,599 images, hard links of a few, packed; and the most memory that this took, in MiB."""
    few, whole, packed = tmp_path / "few", tmp_path / "whole", tmp_path / "packed"
    few.mkdir()
    rows = ["image," + ",".join(f"attribute_{number}" for number in range(40))]
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        (few / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
        rows.append(f"{number}.jpg" + f",{number % 2}" * 40)
    (few / "table.csv").write_text("\n".join(rows) + "\n")
    lay_out(few, whole)
    return packed, float(run(PACK, whole, packed).splitlines()[-1])


@pytest.mark.slow
def test_a_packed_set_of_celebas_size_starts_at_once_and_does_not_grow(packed: tuple[Path, float]) -> None:
    root, packing = packed
    assert sum(read_manifest(root).images.values()) == IMAGES
    assert packing < 500
    measured = [first_batch(root, 2, HEIGHT, WIDTH), first_batch(root, 600, HEIGHT, WIDTH)]
    assert min(each["seconds"] for each in measured) <= 10  # 2 on a machine that does nothing else
    start, *memory = measured[1]["memory_MiB"]
    assert len(memory) == 12, "nearly an epoch of batches"
    assert max(memory[6:]) < max(start, *memory[:6]) + 64  # 1 KB kept of each image would be 75
