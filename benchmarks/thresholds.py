r"""What thresholds do without training: accuracy and balanced accuracy of runs at 1/2 and at other thresholds.

    python benchmarks/thresholds.py studies/screening/trials/screening-0000 studies/screening/trials/screening-0010 \
        --root data/celeba

Of each run the probabilities of its validation images, at the epoch that it has kept, are judged on one half of the
people, at thresholds that were tuned on the other half; both ways, in many random divisions, of which the mean is told.
A half has fewer people than a validation split, and tells less of where a rare attribute's threshold lies. One kind of
threshold is not tuned: each attribute's share of the training images. What is likelier there than in general counts as
present, which is what a loss with balanced weights moves to 1/2.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from measure import write
from numpy.typing import NDArray

from distrib.config import TUNED_SCORES, read_yaml
from distrib.data.splits import make_splits
from distrib.data.table import read_table
from distrib.scoring.calibration import sigmoid, tune_thresholds
from distrib.scoring.metrics import score_decisions

DIVISIONS = 20
SCORES = ("accuracy", "balanced_accuracy")
HALF, SHARE = "1/2", "share of positives in training"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--root", type=Path, required=True, help="their data set, with identities")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = read_table(options.root)
    if table.identity is None:
        parser.error(f"{options.root} has no identities, by whom validation is divided: name another folder")
    result = {}
    for run in options.runs:
        config = read_yaml(run / "config.yaml").replace("data", root=options.root)
        splits = make_splits(table, config.data)
        rows, share_A = splits.valid, table.targets[splits.train].mean(axis=0)
        logits = safetensors.numpy.load_file(run / "best/validation.safetensors")["logits"]
        result[str(run)] = judged(sigmoid(logits), table.targets[rows], table.identity[rows], share_A)
        print(in_markdown(run.name, result[str(run)]), flush=True)
    if options.json is not None:
        write(result, options.json)


def judged(
    probabilities_NA: NDArray[np.float64],
    targets_NA: NDArray[np.uint8],
    identity_N: NDArray[np.int64],
    share_A: NDArray[np.float64],
) -> dict[str, dict[str, float]]:
    """Each kind of thresholds -> the scores of the decisions, their mean over attributes."""
    attributes = tuple(map(str, range(targets_NA.shape[1])))
    found: dict[str, list[list[float]]] = {kind: [] for kind in (HALF, SHARE, *TUNED_SCORES)}
    for tuned, rest in divisions(identity_N):
        thresholds = {HALF: 0.5, SHARE: share_A, **tune_thresholds(probabilities_NA[tuned], targets_NA[tuned])}
        for kind, each in thresholds.items():
            means = score_decisions(attributes, probabilities_NA[rest] >= each, targets_NA[rest]).mean()
            found[kind].append([means[score] for score in SCORES])
    means = {kind: np.mean(values, axis=0).tolist() for kind, values in found.items()}
    return {kind: dict(zip(SCORES, values, strict=True)) for kind, values in means.items()}


def divisions(identity_N: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """The images of one half of the people, and those of the others, each way, bool [N] each."""
    people, random = np.unique(identity_N), np.random.default_rng(0)
    for _ in range(DIVISIONS):
        half = np.isin(identity_N, random.permutation(people)[: len(people) // 2])
        yield half, ~half
        yield ~half, half


def in_markdown(name: str, found: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"| {name}: thresholds | accuracy | balanced accuracy |", "|---|--:|--:|"]
    for kind, scores in found.items():
        what = kind if kind in (HALF, SHARE) else f"tuned for {'F1' if kind == 'f1' else kind.replace('_', ' ')}"
        lines.append(f"| {what} | {' | '.join(f'{100 * scores[score]:.1f} %' for score in SCORES)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
