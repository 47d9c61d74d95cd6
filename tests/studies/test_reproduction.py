"""What is said of the report follows from the numbers; the numbers here are made up."""

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from launching import ROOT

from distrib.errors import UserError
from distrib.reporting.reproduction import headline, render_reproduction, to_markdown
from distrib.reproduce import main
from distrib.studies.definition import Study, read_study
from distrib.studies.evidence import Section, apart, around, gather, report_epochs
from distrib.studies.record import Setting, StudyRecord, TrialRecord
from distrib.studies.reproduction import SECTIONS, make_section
from distrib.studies.scale import Scale
from distrib.training.run_folder import METRICS

REPORT = ROOT / "configs/report"
NUMBERS = REPORT / "numbers"
Curve = Callable[[int, int], Mapping[str, float]]
# Columns that no verdict goes by.
PLAIN = dict.fromkeys(METRICS, 0.5)


def finding(folder: Path, name: str, points: Mapping[Setting, Curve], epochs: int = 4, seeds: int = 3) -> Section:
    """A section of made-up runs: for each value of the first parameter, seed and epoch the columns that count."""
    study = read_study(REPORT / f"{name}.yaml")
    trials = []
    for number, (value, curve) in enumerate(points.items()):
        runs = []
        for seed in range(seeds):
            run = folder / name / f"trials/{number}-{seed}"
            run.mkdir(parents=True)
            with (run / "metrics.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, METRICS)
                writer.writeheader()
                for epoch in range(1, epochs + 1):
                    writer.writerow({**PLAIN, **curve(seed, epoch), "epoch": epoch})
            runs.append(f"trials/{number}-{seed}")
        settings = {study.parameters[0].name: value}
        trials.append(TrialRecord(number, "finished", settings, (0.5,), (0.1,), (), epochs, 9.0, tuple(runs), ""))
    return make_section(gather(study, a_record(study, folder / name, trials), NUMBERS))


def a_record(study: Study, folder: Path, trials: Sequence[TrialRecord]) -> StudyRecord:
    return StudyRecord(study.name, folder, study.objectives, study.parameters, tuple(trials), None, ({},), (0,))


def turning(accuracy: float, f1: float = 0.7) -> Curve:
    """A validation loss that is lowest after the third epoch, and scores that differ a little from seed to seed."""
    return lambda seed, epoch: {
        "val_loss": 0.4 + 0.1 * abs(epoch - 3), "train_loss": 1 / epoch, "val_accuracy": accuracy + 0.001 * seed,
        "val_f1": f1 + 0.001 * seed, "val_roc_auc": accuracy + 0.001 * seed,
    }  # fmt: skip


def spread_out(accuracy: float) -> Curve:
    return lambda seed, epoch: {
        **turning(accuracy, accuracy)(seed, epoch),
        "val_accuracy": accuracy + 0.05 * (seed - 1),
    }


def test_batch_sizes_hold_where_64_is_ahead_by_little(tmp_path: Path) -> None:
    ahead = finding(tmp_path / "a", "batch-size", {16: turning(0.840), 32: turning(0.841), 64: turning(0.846, 0.72)})
    assert ahead.holds == "holds"
    assert "Batch size 64 is the most accurate (0.8470 ± 0.0010)" in ahead.verdict
    assert "0.60 points" in ahead.verdict
    behind = finding(tmp_path / "b", "batch-size", {16: turning(0.846), 32: turning(0.841), 64: turning(0.840)})
    assert behind.holds == "undecided"
    noisy = finding(tmp_path / "d", "batch-size", {16: spread_out(0.80), 32: turning(0.81), 64: spread_out(0.82)})
    assert noisy.holds == "undecided"
    assert "not told from chance" in noisy.verdict
    far = finding(tmp_path / "c", "batch-size", {16: turning(0.80), 32: turning(0.81), 64: turning(0.86, 0.72)})
    assert far.holds == "does not hold"
    assert "more than marginal" in far.verdict


def test_each_table_of_the_report_stands_beside_the_measured_one(tmp_path: Path) -> None:
    section = finding(tmp_path, "batch-size", {16: turning(0.84), 32: turning(0.84), 64: turning(0.84)})
    table = section.tables[2]
    assert table.caption == "Table 3, batch size 64"
    assert len(table.rows) == 15
    fourth = dict(zip(table.header[1::2], table.rows[3][1::2], strict=True))
    assert fourth["accuracy, report"] == "0.8500"
    assert table.rows[3][6] == "0.8410 ± 0.0010"
    assert table.rows[14][6] == "–"  # noqa: RUF001 - no run had 15 epochs


def test_a_learning_rate_is_unstable_where_its_loss_jumps(tmp_path: Path) -> None:
    def jumping(seed: int, epoch: int) -> Mapping[str, float]:
        return {**turning(0.8)(seed, epoch), "val_loss": 0.5 + 0.4 * (epoch % 2)}

    def slow(seed: int, epoch: int) -> Mapping[str, float]:
        return {**turning(0.85)(seed, epoch), "val_loss": 1.0 - 0.1 * epoch}

    held = finding(tmp_path / "a", "learning-rate", {0.01: jumping, 0.001: turning(0.84), 0.0003: slow})
    assert held.holds == "holds"
    assert "less stable" in held.verdict
    level = {0.01: turning(0.84), 0.001: turning(0.84), 0.0003: turning(0.83)}
    assert finding(tmp_path / "b", "learning-rate", level).holds == "does not hold"


def test_the_robust_fit_is_where_validation_turns(tmp_path: Path) -> None:
    assert finding(tmp_path / "a", "epochs", {20: turning(0.84)}, epochs=8).holds == "holds"

    def falling(seed: int, epoch: int) -> Mapping[str, float]:
        return {"val_loss": 1 / epoch, "train_loss": 1 / epoch}

    still = finding(tmp_path / "b", "epochs", {20: falling}, epochs=8)
    assert still.holds == "does not hold"
    assert "after epoch 8.0 ± 0.0 of 8" in still.verdict


def test_a_subset_of_a_smaller_data_set_says_nothing(tmp_path: Path) -> None:
    assert finding(tmp_path, "subset", {80000: turning(0.84), None: turning(0.842)}).holds == "holds"
    study = replace(read_study(REPORT / "subset.yaml"), scale=Scale(0.9, {"official": 1000}))
    trials = [
        TrialRecord(number, "finished", {"data.subset": size}, (0.5,), None, (), 4, 9.0, (f"trials/{number}-0",), "")
        for number, size in enumerate((80000, None))
    ]
    section = make_section(gather(study, a_record(study, tmp_path / "subset", trials), NUMBERS))
    assert section.holds == "undecided"
    assert "fewer images" in section.verdict


def test_the_leak_is_the_difference_of_the_two_splits(tmp_path: Path) -> None:
    leaky = finding(tmp_path / "a", "split", {"identity": turning(0.88), "image": turning(0.92)})
    assert leaky.holds == "holds"
    assert "+0.0400" in leaky.verdict
    assert finding(tmp_path / "b", "split", {"identity": turning(0.9), "image": turning(0.9)}).holds == "undecided"


def test_a_frozen_backbone_says_what_was_not_measured_and_what_is_refused(tmp_path: Path) -> None:
    study = read_study(REPORT / "frozen-backbone.yaml")
    lost = TrialRecord(
        0, "failed", {"backbone": "ImageNet, frozen"}, None, None, (), 0, 0.0, ("trials/0",), "no way to the store"
    )
    section = make_section(gather(study, a_record(study, tmp_path, [lost]), NUMBERS))
    assert section.holds == "undecided"
    assert "no way to the store" in section.verdict
    assert section.tables[0].rows[0][:2] == ["ImageNet, frozen", "not measured"]
    assert "Not measured: ImageNet, frozen. no way to the store" in section.notes
    assert any("leaves nothing to train" in note for note in section.notes)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_finding_stands_where_nothing_was_finished(name: str, tmp_path: Path) -> None:
    study = read_study(REPORT / f"{name}.yaml")
    section = make_section(gather(study, a_record(study, tmp_path, []), NUMBERS))
    assert section.id == name
    assert "Too few runs" in section.verdict


def test_two_means_are_told_apart_by_their_spread() -> None:
    assert apart([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]) is True
    assert apart([1.0, 1.5, 0.5], [1.2, 1.7, 0.7]) is False
    assert apart([1.0], [2.0]) is None
    assert around([0.5, 0.7]) == f"0.6000 ± {statistics.stdev([0.5, 0.7]):.4f}"
    assert around([0.5]) == "0.5000"


def test_the_numbers_of_the_report_are_whole() -> None:
    assert [len(report_epochs(NUMBERS, table)) for table in ("1", "2", "3", "5")] == [15, 15, 15, 10]
    best = max(report_epochs(NUMBERS, "3"), key=lambda row: row["val_accuracy"])
    assert (best["epoch"], best["val_accuracy"], best["val_roc_auc"]) == (4, 0.85, 0.9132)


def test_page_and_markdown_say_the_same(tmp_path: Path) -> None:
    sections = [
        finding(tmp_path, "split", {"identity": turning(0.88), "image": turning(0.92)}),
        finding(tmp_path, "epochs", {20: turning(0.84)}, epochs=8),
    ]
    sections[0].notes.append("<script>alert(1)</script> | a bar")
    notes = ["This is a small version."]
    text = to_markdown(sections, notes)
    render_reproduction(sections, notes, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert headline(sections) == "Of 2 conclusions of the report 2 hold, 0 do not, 0 are undecided"
    for each in (headline(sections), "This is a small version.", *(section.verdict for section in sections)):
        assert each in text
        assert each.replace("'", "&#39;").replace("+", "+") in page
    assert "<script>alert" not in page
    assert "\\| a bar" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    assert "[the study](studies/split/study/index.html)" in text


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
