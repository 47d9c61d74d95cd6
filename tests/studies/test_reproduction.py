"""What is said of the report follows from the numbers; the numbers here are made up."""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reproduction_data import (
    NUMBERS,
    REPORT,
    Curve,
    a_record,
    a_trial,
    everything,
    finding,
    spread_out,
    turning,
    write_metrics,
)
from sentences import refusal

from distrib.base.errors import UserError
from distrib.cli.reproduce import main
from distrib.data.splits import make_splits
from distrib.data.table import Table, read_table
from distrib.reproduction import run as reproduction
from distrib.reproduction.claims import CAUSES, CLAIMS, freezes, has_diverged
from distrib.reproduction.evidence import ClaimSection, above, around, either, every, gather, holds, report_epochs
from distrib.reproduction.page import headline, render_reproduction, to_markdown
from distrib.reproduction.run import available, describe
from distrib.studies.definition import Study, read_study
from distrib.studies.record import Setting, StudyRecord
from distrib.studies.scale import Scale
from distrib.training.epoch import report_non_finite

SIZES = (16, 32, 64)
NOT_FINITE = "the loss or its gradient was not finite in step 3 (epoch 1); no weight has moved since"


def verdict(section: ClaimSection) -> str:
    return section.verdict.holds


# --- what all verdicts rest on


def test_one_mean_is_above_another_by_their_spread() -> None:
    assert above([2.0, 2.1, 1.9], [1.0, 1.1, 0.9]) is True
    assert above([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]) is False
    assert above([1.2, 1.7, 0.7], [1.0, 1.5, 0.5]) is None
    assert above([2.0], [1.0, 1.1]) is None  # one run has no spread
    assert above([], []) is None
    assert above([2.0, 2.0], [1.0, 1.0]) is True
    assert above([1.0, 1.0], [1.0, 1.0]) is None
    assert above([2.0, 2.1, 1.9], [0.5, 0.5]) is True  # a number
    assert above([float("nan"), 2.0, 2.1], [1.0, 1.1, float("inf")]) is True
    assert around([0.5, 0.7]) == f"0.6000 ± {statistics.stdev([0.5, 0.7]):.4f}"
    assert around([0.5]) == "0.5000"


def test_claims_are_put_together() -> None:
    assert [holds(*each) for each in ([True, True], [True, None], [None, False], [])] == [
        "holds", "undecided", "does not hold", "holds",
    ]  # fmt: skip
    assert [every(*each) for each in ([True, True], [True, None], [None, False])] == [True, None, False]
    assert [either(*each) for each in ([False, True, None], [False, None], [False, False])] == [True, None, False]


@pytest.mark.parametrize("name", CLAIMS)
def test_every_finding_stands_where_nothing_was_finished(name: str, tmp_path: Path) -> None:
    section = finding(tmp_path, name, {})
    assert section.id == name
    assert "Too few runs" in section.verdict.sentence


@pytest.mark.parametrize("name", [name for name in CLAIMS if name not in ("optuna", "visualisations")])
def test_every_finding_stands_where_all_trained_for_one_epoch_or_one_seed(name: str, tmp_path: Path) -> None:
    values = read_study(REPORT / f"{name}.yaml").parameters[0].choices or ()
    short = finding(tmp_path / "a", name, dict.fromkeys(values, turning(0.9)), epochs=1)
    single = finding(tmp_path / "b", name, dict.fromkeys(values, turning(0.9)), epochs=8, seeds=1)
    assert verdict(single) in ("undecided", "no claim"), "one seed tells nothing from chance"
    for section in (short, single):
        assert "Too few" not in section.verdict.sentence
        assert to_markdown([section], [])


@pytest.mark.parametrize("name", CLAIMS)
def test_the_header_of_a_finding_cannot_be_changed(name: str) -> None:
    with pytest.raises(AttributeError):
        CLAIMS[name].claim = ""  # type: ignore[misc]


def test_a_value_that_a_study_has_no_more_is_not_passed_over(tmp_path: Path) -> None:
    study = read_study(REPORT / "batch-size.yaml")
    evidence = gather(study, a_record(study, tmp_path, []), NUMBERS)
    assert not evidence.of(16).runs
    for call in (evidence.of, evidence.trials):
        with pytest.raises(AssertionError, match="48 is not a value of batch-size"):
            call(48)


def test_the_runs_of_a_trial_that_was_not_trained_again_count_once(tmp_path: Path) -> None:
    study = read_study(REPORT / "batch-size.yaml")
    runs = ["trials/0-0", "trials/0-1"]
    for seed, run in enumerate(runs):
        write_metrics(tmp_path / run, turning(0.8), seed, 2)
    trials = [a_trial(study, number, 16, "finished", runs) for number in range(2)]
    assert len(gather(study, a_record(study, tmp_path, trials), NUMBERS).of(16).runs) == 2


def test_a_trial_that_was_made_again_is_not_lost(tmp_path: Path) -> None:
    section = finding(tmp_path, "batch-size", {16: turning(0.8)}, lost=[(16, "the disk"), (32, "x"), (32, "no way")])
    assert section.verdict.sentence == "Too few runs finished to say. Trial 2 is failed: no way."


# --- the findings


def batches(folder: Path, *curves: Curve) -> ClaimSection:
    return finding(folder, "batch-size", dict(zip(SIZES, curves, strict=True)))


def test_batch_sizes_hold_where_64_is_ahead_by_little(tmp_path: Path) -> None:
    ahead = batches(tmp_path / "a", turning(0.840), turning(0.841), turning(0.846, 0.72))
    assert verdict(ahead) == "holds"
    assert "The most accurate is batch size 64 (0.8470 ± 0.0010)" in ahead.verdict.sentence
    assert "0.60 points, which is marginal. 64 is ahead in accuracy, and 64 is ahead in F1." in ahead.verdict.sentence
    behind = batches(tmp_path / "b", turning(0.846), turning(0.841), turning(0.840))
    assert verdict(behind) == "does not hold"
    assert "64 is not ahead in accuracy" in behind.verdict.sentence
    far = batches(tmp_path / "c", turning(0.80), turning(0.81), turning(0.86, 0.72))
    assert verdict(far) == "does not hold"
    assert "more than marginal." in far.verdict.sentence


def test_a_batch_size_that_is_ahead_by_luck_is_not_ahead(tmp_path: Path) -> None:
    lucky = batches(tmp_path / "a", spread_out(0.840), spread_out(0.841), spread_out(0.846, 0.85))
    assert verdict(lucky) == "undecided"
    assert "which is marginal. 64 is not told from chance to be ahead in accuracy" in lucky.verdict.sentence
    half = batches(tmp_path / "b", turning(0.840), turning(0.841), turning(0.846))
    assert verdict(half) == "undecided"
    assert "64 is ahead in accuracy, and 64 is not told from chance to be ahead in F1" in half.verdict.sentence
    wide = batches(tmp_path / "c", spread_out(0.80), turning(0.81), spread_out(0.82))
    assert verdict(wide) == "undecided"
    assert "more than marginal (not told from chance)" in wide.verdict.sentence


def test_each_table_of_the_report_stands_beside_the_measured_one(tmp_path: Path) -> None:
    section = batches(tmp_path, *[turning(0.84)] * 3)
    table = section.tables[2]
    assert table.caption == "Table 3, batch size 64"
    assert len(table.rows) == 15
    fourth = dict(zip(table.header[1::2], table.rows[3][1::2], strict=True))
    assert fourth["accuracy, report"] == "0.8500"
    assert table.rows[3][6] == "0.8410 ± 0.0010"
    assert table.rows[14][6] == "–"  # noqa: RUF001 - no run had 15 epochs


def test_the_figures_of_the_report_are_drawn_with_losses_and_scores(tmp_path: Path) -> None:
    section = batches(tmp_path, *[turning(0.84)] * 3)
    assert [each.title for each in section.charts[:2]] == [
        "Loss, batch size 16 (Figure 1)", "Scores, batch size 16 (Figure 1)",
    ]  # fmt: skip
    assert len(section.charts) == 6
    loss, scores = section.charts[4:]
    assert [each.label for each in loss.lines] == [
        "training, report", "training", "validation, report", "validation",
    ]  # fmt: skip
    assert [each.label for each in scores.lines if not each.dashed] == ["accuracy", "F1", "ROC AUC"]
    assert [len(each.values) for each in scores.lines] == [15, 4] * 3
    assert scores.lines[0].values[3] == 0.85
    figure = finding(tmp_path, "frozen-backbone", {"trained": turning(0.9), "random, frozen": turning(0.6)})
    assert [each.title for each in figure.charts] == [
        "Loss, trained", "Scores, trained", "Loss, random, frozen", "Scores, random, frozen",
    ]  # fmt: skip


def jumping(seed: int, epoch: int) -> Mapping[str, float]:
    return {**turning(0.8)(seed, epoch), "val_loss": 0.5 + (0.4 + 0.01 * seed) * (epoch % 2)}


def slow(seed: int, epoch: int) -> Mapping[str, float]:
    return {**turning(0.85)(seed, epoch), "val_loss": 1.0 - 0.1 * epoch}


def restless(seed: int, epoch: int) -> Mapping[str, float]:
    """As `turning`, with steps that differ from seed to seed."""
    return {**turning(0.84)(seed, epoch), "val_loss": 0.4 + (0.05 + 0.05 * seed) * abs(epoch - 3)}


def test_a_learning_rate_is_unstable_where_its_loss_jumps(tmp_path: Path) -> None:
    held = finding(tmp_path / "a", "learning-rate", {0.01: jumping, 0.001: turning(0.84), 0.0003: slow})
    assert verdict(held) == "holds"
    assert "less stable than 0.001" in held.verdict.sentence
    worse = {0.01: turning(0.84), 0.001: turning(0.84), 0.0003: turning(0.83)}
    assert verdict(finding(tmp_path / "b", "learning-rate", worse)) == "does not hold"

    def once(seed: int, epoch: int) -> Mapping[str, float]:
        return jumping(seed, epoch) if seed == 1 else turning(0.84)(seed, epoch)

    luck = finding(tmp_path / "c", "learning-rate", {0.01: once, 0.001: turning(0.84), 0.0003: slow})
    assert verdict(luck) == "undecided"
    assert "not told to be less stable" in luck.verdict.sentence


def test_leaps_of_every_size_are_unstable_though_they_spread_over_orders_of_magnitude(tmp_path: Path) -> None:
    def leaping(seed: int, epoch: int) -> Mapping[str, float]:
        return {**turning(0.84)(seed, epoch), "val_loss": 0.5 + (1e4, 7e5, 4e5)[seed] * (epoch == 1)}

    leapt = finding(tmp_path, "learning-rate", {0.01: leaping, 0.001: restless, 0.0003: slow})
    assert "0.01 is less stable than 0.001" in leapt.verdict.sentence


def test_a_loss_that_is_no_number_any_more_is_unstable(tmp_path: Path) -> None:
    others: dict[Setting, Curve] = {0.001: turning(0.84), 0.0003: slow}
    diverged = finding(tmp_path / "a", "learning-rate", others, lost=[(0.01, NOT_FINITE)])
    assert verdict(diverged) == "holds"
    assert diverged.verdict.sentence.startswith("At 0.01 the loss became infinite, or no number; 0.0003 has")
    assert f"Learning rate 0.01, trial 0: {NOT_FINITE}" in diverged.notes
    # Made again it was lucky: that is not stable either.
    again = finding(tmp_path / "b", "learning-rate", {0.01: turning(0.84), **others}, lost=[(0.01, NOT_FINITE)])
    assert verdict(again) == "holds"
    undefined = [(0.01, "val_loss is undefined at the epoch that was kept")]
    assert verdict(finding(tmp_path / "c", "learning-rate", others, lost=undefined)) == "holds"
    failed = finding(tmp_path / "d", "learning-rate", others, lost=[(0.01, "no space left on the disk")])
    assert verdict(failed) == "undecided"
    assert "Too few runs finished" in failed.verdict.sentence
    both = [(0.01, NOT_FINITE), (0.001, NOT_FINITE)]
    assert verdict(finding(tmp_path / "e", "learning-rate", {0.0003: slow}, lost=both)) == "does not hold"


def test_training_says_of_a_loss_that_is_not_finite_what_is_looked_for() -> None:
    run: Any = SimpleNamespace(
        plan=SimpleNamespace(steps_per_epoch=4),
        config=SimpleNamespace(train=SimpleNamespace(on_nonfinite="stop")),
        folder=SimpleNamespace(path=Path("run")),
    )
    stats: Any = SimpleNamespace(bad=[], fatal=2, allowed=0)
    said = refusal(lambda: report_non_finite(run, SimpleNamespace(skipped=[]), stats), "epoch 1")  # type: ignore[arg-type]
    study = read_study(REPORT / "learning-rate.yaml")
    assert has_diverged(a_trial(study, 0, 0.01, "failed", reason=said))


def test_the_robust_fit_is_where_validation_turns(tmp_path: Path) -> None:
    held = finding(tmp_path / "a", "epochs", {20: turning(0.84)}, epochs=8)
    assert verdict(held) == "holds"
    assert held.verdict.sentence.endswith("That is the 3rd or 4th epoch.")

    def falling(seed: int, epoch: int) -> Mapping[str, float]:
        return {"val_loss": 1 / epoch, "train_loss": 1 / epoch}

    still = finding(tmp_path / "b", "epochs", {20: falling}, epochs=8)
    assert verdict(still) == "does not hold"
    assert "after epoch 8.0 ± 0.0 of 8" in still.verdict.sentence

    def early_or_late(seed: int, epoch: int) -> Mapping[str, float]:
        return {"val_loss": 0.4 + 0.1 * abs(epoch - (2, 3, 6)[seed]), "train_loss": 1 / epoch}

    assert verdict(finding(tmp_path / "c", "epochs", {20: early_or_late}, epochs=8)) == "undecided"


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_training_too_short_to_turn_says_nothing(count: int, tmp_path: Path) -> None:
    short = finding(tmp_path, "epochs", {20: turning(0.84)}, epochs=count)
    assert verdict(short) == "undecided"
    assert f"{count} epochs are too few" in short.verdict.sentence


def test_a_subset_is_measured_and_no_claim(tmp_path: Path) -> None:
    section = finding(tmp_path / "a", "subset", {80000: turning(0.84), None: turning(0.846)})
    assert verdict(section) == "no claim"
    assert "asked here" in section.finding.claim
    assert section.verdict.sentence.startswith("All images are 0.60 points more accurate than the subset")
    small = finding(tmp_path / "b", "subset", {80000: turning(0.84), None: turning(0.84)},
                    scale=Scale(0.9, {"official": 1000}))  # fmt: skip
    assert verdict(small) == "no claim"
    assert "fewer images" in small.verdict.sentence
    part = finding(tmp_path / "c", "subset", {80000: turning(0.84), None: turning(0.84)},
                   scale=Scale(0.02, {"official": 162_770}))  # fmt: skip
    assert part.tables[0].caption == "Table 5, 80,000 images (measured: 1,600)"
    assert [row[0] for row in part.tables[1].rows] == ["80,000, report", "1,600, measured", "no subset, measured"]


def test_the_leak_is_the_difference_of_the_two_splits(tmp_path: Path) -> None:
    leaky = finding(tmp_path / "a", "split", {"identity": turning(0.88), "image": turning(0.92)})
    assert verdict(leaky) == "no claim"
    assert "asked here" in leaky.finding.claim
    assert leaky.verdict.sentence.endswith("the leak is worth +0.0400.")
    level = finding(tmp_path / "b", "split", {"identity": turning(0.9), "image": turning(0.9)})
    assert level.verdict.sentence.endswith("+0.0000 (not told from chance).")


LOST = {label: turning(0.52, 0.01, val_recall=0.0) for label in CAUSES}


def test_frozen_candidates_are_absurd_or_not_and_none_is_listed_twice(tmp_path: Path) -> None:
    points = {
        "trained": turning(0.9),
        "ImageNet, frozen": turning(0.85),
        "ImageNet, frozen, BatchNorm in training mode": spread_out(0.7),
        "random, frozen": turning(0.6),  # keeps a quarter of 0.4
        "nothing trained, BatchNorm in training mode": turning(0.8, val_recall=0.02),  # ranks well, and finds none
    }
    lost = [
        ("ImageNet, frozen", "no way to the store"),  # and made again
        ("random, frozen, BatchNorm in training mode", "x"),
        ("random, frozen, BatchNorm in training mode", "the disk is full"),
    ]
    section = finding(tmp_path, "frozen-backbone", points, lost=lost)
    assert verdict(section) == "holds"
    assert section.verdict.sentence == (
        "Absurd: random, frozen (ROC AUC 0.601 ± 0.001, positives found 0.500 ± 0.000); nothing trained, BatchNorm in "
        "training mode (ROC AUC 0.801 ± 0.001, positives found 0.020 ± 0.000). "
        "Not absurd: ImageNet, frozen (ROC AUC 0.851 ± 0.001, positives found 0.500 ± 0.000). "
        "Not told from chance: ImageNet, frozen, BatchNorm in training mode (ROC AUC 0.700 ± 0.050, positives found "
        "0.500 ± 0.000). "
        "Not measured: random, frozen, BatchNorm in training mode. "
        "The cause may have been that there was nothing but a random backbone under the head or that the head was "
        "frozen too."
    )
    labels = [row[0] for row in section.tables[0].rows]
    assert sorted(labels) == sorted(["trained", *CAUSES])
    missing = [row[0] for row in section.tables[0].rows if row[1] == "not measured"]
    assert missing == ["random, frozen, BatchNorm in training mode"]
    assert [note for note in section.notes if note.startswith("Not measured is")] == [
        "Not measured is random, frozen, BatchNorm in training mode: the disk is full"
    ]
    assert any("more than half" in note and "one positive in ten" in note for note in section.notes)
    assert any("leaves nothing to train" in note for note in section.notes)


def test_frozen_backbones_that_are_all_as_they_should_be_refute_the_report(tmp_path: Path) -> None:
    study = read_study(REPORT / "frozen-backbone.yaml")
    sound = {label: turning(0.85) if freezes(gather(study, a_record(study, tmp_path, []), NUMBERS), label) else curve
             for label, curve in LOST.items()}  # fmt: skip
    assert sum(curve is not LOST[label] for label, curve in sound.items()) == 4
    section = finding(tmp_path / "a", "frozen-backbone", {"trained": turning(0.9), **sound})
    assert verdict(section) == "does not hold"
    # A head that is frozen too is absurd all the same, and a cause.
    assert section.verdict.sentence.endswith("The cause may have been that the head was frozen too.")
    del sound["random, frozen"]
    section = finding(tmp_path / "b", "frozen-backbone", {"trained": turning(0.9), **sound})
    assert verdict(section) == "undecided"


def test_beside_a_network_that_guesses_nothing_is_absurd(tmp_path: Path) -> None:
    section = finding(tmp_path, "frozen-backbone", {"trained": spread_out(0.51), **LOST})
    assert verdict(section) == "undecided"
    assert "not told from guessing" in section.verdict.sentence


def test_what_is_not_measured_of_a_frozen_backbone_is_said_with_its_reason(tmp_path: Path) -> None:
    section = finding(tmp_path, "frozen-backbone", {}, lost=[("ImageNet, frozen", "no way to the store")])
    assert verdict(section) == "undecided"
    assert "no way to the store" in section.verdict.sentence
    assert [row[1] for row in section.tables[0].rows] == ["not measured"] * 6
    assert "Not measured is ImageNet, frozen: no way to the store" in section.notes
    assert "Not measured is trained: no trial has ended" in section.notes


def test_the_best_of_adam_is_set_against_the_best_of_sgd(tmp_path: Path) -> None:
    points = {"Adam, constant": turning(0.84), "Adam, one-cycle": turning(0.86), "SGD, constant": turning(0.80),
              "SGD, one-cycle": turning(0.85)}  # fmt: skip
    held = finding(tmp_path / "a", "optimizers", points)
    assert verdict(held) == "holds"
    assert "The best of Adam (Adam, one-cycle) has a ROC AUC of 0.8610 ± 0.0010" in held.verdict.sentence
    refuted = finding(tmp_path / "b", "optimizers", {**points, "SGD, constant": turning(0.88)})
    assert verdict(refuted) == "does not hold"
    assert "the best of SGD (SGD, constant) of 0.8810" in refuted.verdict.sentence
    luck = finding(tmp_path / "c", "optimizers", {**points, "SGD, constant": spread_out(0.865)})
    assert verdict(luck) == "undecided"
    assert "not told from chance" in luck.verdict.sentence
    names = read_study(REPORT / "optimizers.yaml").parameters[0].choices or ()
    assert {str(name).partition(",")[0] for name in names} == {"Adam", "SGD"}


def test_a_search_names_its_best_trial_and_draws_no_conclusion(tmp_path: Path) -> None:
    lost = [(0.009, "after epoch 2")]
    section = finding(tmp_path, "optuna", {0.002: turning(0.8), 0.0005: turning(0.9)}, lost=lost)
    assert verdict(section) == "no claim"
    assert (
        "Of 3 trials (2 trained to the end) the best has a learning rate of 0.000500 and batches of 32: 0.8200, "
        in (section.verdict.sentence)
    )
    rows = section.tables[0].rows
    assert [row[0] for row in rows] == ["0, report", "1, report", "0, measured", "1, measured", "2, measured"]
    assert rows[2][3:] == ["–", "9 s", "failed"]  # noqa: RUF001


def test_visualisations_are_linked_where_they_are(tmp_path: Path) -> None:
    assert "Too few" in finding(tmp_path / "a", "visualisations", {64: turning(0.8)}, seeds=1).verdict.sentence
    page = tmp_path / "b/studies/visualisations/trials/0-0/report/index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    section = finding(tmp_path / "b", "visualisations", {64: turning(0.8)}, seeds=1)
    assert verdict(section) == "no claim"
    files = {(tmp_path / "b" / link.partition("#")[0]) for label, link in section.links.items() if "Figure" in label}
    assert files == {page}


def test_the_numbers_of_the_report_are_whole() -> None:
    assert [len(report_epochs(NUMBERS, table)) for table in ("1", "2", "3", "5")] == [15, 15, 15, 10]
    best = max(report_epochs(NUMBERS, "3"), key=lambda row: row["val_accuracy"])
    assert (best["epoch"], best["val_accuracy"], best["val_roc_auc"]) == (4, 0.85, 0.9132)


# --- what is done differently from the report


def differences(
    *names: str, scale: float = 1.0, whole: bool = True, images: int = 162_770, **options: object
) -> list[str]:
    options = {key.replace("__", "."): value for key, value in options.items()}
    scaled = Scale(scale, {"official": images, "image": images - 691, "identity": images - 692})
    pairs = [
        (replace(read_study(REPORT / f"{name}.yaml", options), scale=scaled), read_study(REPORT / f"{name}.yaml"))
        for name in names
    ]
    return describe(pairs, scaled, whole)


def test_nothing_is_said_of_all_of_celeba() -> None:
    assert differences(*CLAIMS) == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            differences("subset", scale=0.02),
            "This is a small version of the report (--scale 0.02): 3,255 training images where it had 162,770, 1,600 "
            "training images where it had 80,000, 4 epochs where it had 10, images of 64 x 64 pixels where it had "
            "178 x 178.",
        ),
        (
            differences("split", images=4_464, whole=False),
            "This is done differently from the report: 3,772 to 3,773 training images where it had 162,770.",
        ),
        (
            differences("batch-size", data__image_size=[64, 64]),
            "This is done differently from the report: images of 64 x 64 pixels where it had 178 x 178.",
        ),
        (
            differences("batch-size", "subset", train__epochs=3),
            "This is done differently from the report: 3 epochs where it had 15, 3 epochs where it had 10.",
        ),
        (
            differences("batch-size", data__subset=5000),
            "This is done differently from the report: 5,000 training images where it had 162,770.",
        ),
    ],
)
def test_whatever_is_done_otherwise_is_said(said: list[str], told: str) -> None:
    assert said == [f"{told} What it says of the report is an indication, not a verdict."]


def test_no_picture_and_no_training_is_made_larger_than_asked_for() -> None:
    config = read_study(REPORT / "batch-size.yaml", {"data.image_size": [32, 48], "train.epochs": 1}).base
    small = Scale(0.5, {"official": 162_770})(config)
    assert (small.data.image_size, small.train.epochs) == ((32, 48), 1)


def test_a_split_of_identities_counts_as_small_as_any_of_its_seeds(faces: Path) -> None:
    table: Table = read_table(faces)
    options = {"data.root": str(faces), "data.attributes": ["Smiling"]}
    studies = [read_study(REPORT / f"{name}.yaml", options) for name in ("split", "batch-size")]
    data = studies[0].base.data
    sizes = {
        split: [
            len(make_splits(table, data.model_copy(update={"split": split, "split_seed": seed})).train)
            for seed in range(3)
        ]
        for split in ("identity", "image", "official")
    }
    assert len(set(sizes["identity"])) > 1
    found = available(table, studies)
    assert found == {split: min(each) for split, each in sizes.items()}
    # At whatever scale, no subset is larger than what it is drawn from.
    for share in np.arange(0.9, 1.0, 0.01):
        scaled = replace(studies[0], scale=Scale(float(share) * min(sizes["identity"]) / 162_770, found))
        for point in scaled.points():
            make_splits(table, scaled.config(point, {}, None).data)


# --- the page and the Markdown


def test_the_headline_counts_claims_alone(tmp_path: Path) -> None:
    sections = everything(tmp_path)
    count = sum(verdict(each) != "no claim" for each in sections)
    assert [each.id for each in sections if verdict(each) == "no claim"] == [
        "subset", "optuna", "split", "visualisations",
    ]  # fmt: skip
    assert headline(sections).startswith(f"Of {count} conclusions of the report ")
    for wanted in ("holds", "undecided"):
        only = next(each for each in sections if verdict(each) == wanted)
        said = "is undecided" if wanted == "undecided" else wanted
        assert headline([only, sections[3]]) == f"The conclusion of the report {said}"
    nothing = [finding(tmp_path / "none", name, {}) for name in ("subset", "split", "optuna", "visualisations")]
    assert headline(nothing) == "What the report draws no conclusion on, made again"


def test_page_and_markdown_say_the_same(tmp_path: Path) -> None:
    sections = [
        finding(tmp_path, "optimizers", {}),
        finding(tmp_path, "epochs", {20: turning(0.84)}, epochs=8),
    ]
    sections[0].notes.append("<script>alert(1)</script> | a\nbar")
    notes = ["This is a small version."]
    text = to_markdown(sections, notes)
    render_reproduction(sections, notes, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert headline(sections) == "Of 2 conclusions of the report 1 holds, 0 do not, 1 is undecided"
    for each in (headline(sections), "This is a small version.", *(each.verdict.sentence for each in sections)):
        assert each in text
        assert each.replace("'", "&#39;") in page
    assert "<script>alert" not in page
    assert "\\<script>alert(1)\\</script> \\| a bar" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_markdown_links_to_nothing_outside_itself(tmp_path: Path) -> None:
    text = to_markdown(everything(tmp_path), [])
    headings = {line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")}
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert len(links) == len(headings) == len(CLAIMS)
    assert all(link.startswith("#") for link in links)
    for name in CLAIMS:
        assert f"Study: `configs/report/{name}.yaml`" in text


def test_each_study_is_read_once_and_without_what_no_section_shows(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, bool]] = []

    def record(study: Study, _found: object, place: Path, importance: bool = True) -> StudyRecord:
        read.append((study.name, importance))
        return a_record(study, place, [])

    monkeypatch.setattr(reproduction, "Stop", lambda: SimpleNamespace(reason=None))
    monkeypatch.setattr(reproduction, "run_study", lambda *_, **__: tmp_path.mkdir(exist_ok=True) or 0)
    monkeypatch.setattr(reproduction, "open_study", lambda *_: None)
    monkeypatch.setattr(reproduction, "read_record", record)
    names = ["batch-size", "epochs", "split"]
    assert main(["--only", *names, "--folder", str(tmp_path), "--data.root", str(faces),
                 "--data.attributes", "Smiling"]) == 0  # fmt: skip
    assert read == [(name, False) for name in names]
    assert "The leak-free split" in (tmp_path / "reproduction.md").read_text()


def test_what_is_no_finding_or_no_share_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "batchsize", "--folder", str(tmp_path / "out")]) == 2
    assert "batch-size" in capsys.readouterr().err
    assert main(["--scale", "1.5", "--folder", str(tmp_path / "out")]) == 2
    assert "--scale is 1.5" in capsys.readouterr().err
    assert main(["--only", "epochs", "--folder", str(tmp_path / "out"), "--data.root", "/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError):
        read_study(tmp_path / "nothing.yaml")
