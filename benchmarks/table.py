"""Time to read CelebA's three annotation files, beside a plain csv loop as torchvision.datasets.CelebA has it.

    python benchmarks/table.py --root FOLDER

Without --root it makes a table of CelebA's size, in CelebA's format, in a temporary folder.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import alternate, machine, report, spread

from distrib.data.annotations import read_attributes, read_identity, read_partition

ROWS, ATTRIBUTES, PEOPLE = 202_599, 40, 10_177
FILES = ("list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt")


def ours(root: Path) -> np.ndarray:
    attributes, partition, identity = (root / file for file in FILES)
    found = read_attributes(attributes)
    read_partition(partition, found.names)
    read_identity(identity, found.names)
    return found.targets


def plain_csv(root: Path) -> np.ndarray:
    """What torchvision's CelebA does with these files; it checks nothing."""
    columns = []
    for file, header in zip(FILES, (1, None, None), strict=True):
        with (root / file).open() as stream:
            rows = list(csv.reader(stream, delimiter=" ", skipinitialspace=True))
        if header is not None:
            rows = rows[header + 1 :]
        columns.append(torch.tensor([[int(value) for value in row[1:] if value] for row in rows]))
    return torch.div(columns[0] + 1, 2, rounding_mode="floor").numpy()


def synthesise(root: Path) -> None:
    generator = np.random.default_rng(0)
    names = [f"{row:06}.jpg" for row in range(1, ROWS + 1)]
    cells = np.where(generator.random((ROWS, ATTRIBUTES)) < 0.23, " 1", "-1").tolist()
    rows = [f"{name} {' '.join(row)}" for name, row in zip(names, cells, strict=True)]
    header = " ".join(f"Attribute_{column}" for column in range(ATTRIBUTES)) + " "
    people = generator.integers(1, PEOPLE + 1, ROWS).tolist()
    texts = (
        [str(ROWS), header, *rows],
        [f"{name} {0 if row < 162_770 else 1 if row < 182_637 else 2}" for row, name in enumerate(names)],
        [f"{name} {person}" for name, person in zip(names, people, strict=True)],
    )
    for file, lines in zip(FILES, texts, strict=True):
        (root / file).write_bytes("".join(f"{line}\r\n" for line in lines).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help=f"folder with {', '.join(FILES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        if options.root is None:
            synthesise(root)
        targets = ours(root)
        assert (targets == plain_csv(root)).all(), "both read the same"
        seconds = alternate({"distrib": lambda: ours(root), "plain_csv": lambda: plain_csv(root)}, options.rounds)
    report(
        {
            "machine": machine("numpy", "torch"),
            "setting": {"rows": len(targets), "table": "synthetic" if options.root is None else "CelebA's own"},
            "seconds": {name: spread(values) for name, values in seconds.items()},
        },
        options.json,
    )


if __name__ == "__main__":
    main()
