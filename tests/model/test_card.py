import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from random_model import write_model

import distrib
from distrib.config import Config
from distrib.data.batch import Crop
from distrib.data.kind import data_kind
from distrib.model.card import model_card
from distrib.model.trained import Description

NASTY = "<script>alert(1)</script>|`a``b`_*x*\n# big"


def description(**changes: Any) -> Description:
    values: dict[str, Any] = {
        "architecture": "resnet18", "attributes": ("Smiling", "Male"), "image_size": (64, 48), "crop": "square",
        "temperature": (1.25, 0.75), "thresholds": (0.375, 0.625), "epoch": 4,
        "validation": {"images": 1867, "accuracy": 0.9125, "roc_auc": float("nan")},
        "validation_by_attribute": {
            "Smiling": {"accuracy": 0.8875, "roc_auc": None}, "Male": {"accuracy": 0.9375, "roc_auc": 0.5},
        },
        "training": {
            "data_kind": "celeba", "images": {"train": 16277}, "date": "2025-01-02", "device": "H200",
            "config": Config().model_dump(mode="json"), "versions": {"torch": "2.15.0+cu132"},
        },
    }  # fmt: skip
    return Description(**{**values, **changes})


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def html(card: str) -> str:
    """The card as a browser gets it."""
    return MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])


def table_rows(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_the_scores_stand_beside_each_attribute() -> None:
    rows = table_rows(html(model_card(description())))
    assert ["attribute", "accuracy", "ROC AUC", "temperature", "threshold"] in rows
    assert ["<strong>mean</strong>", "0.9125", "-", "", ""] in rows
    assert ["<code>Smiling</code>", "0.8875", "-", "1.2500", "0.3750"] in rows
    assert ["<code>Male</code>", "0.9375", "0.5000", "0.7500", "0.6250"] in rows


def test_what_it_was_trained_by_is_there() -> None:
    rows = table_rows(html(model_card(description())))
    for row in (
        ["images", "16,277 train"],
        ["device", "H200"],
        ["learning rate", "0.001"],
        ["first weights", "none"],
        ["precision", "auto"],
    ):
        assert row in rows
    assert "1,867 images, epoch 4" in model_card(description())


@pytest.mark.parametrize(
    ("kind", "licence", "said"),
    [
        ("celeba", "other", "non-commercial research only"),
        ("synthetic", "mit", "knows nothing of photographs"),
        ("own", "unknown", "find it out"),
        (None, "unknown", "find it out"),
    ],
)
def test_the_licence_is_that_of_the_data(kind: str | None, licence: str, said: str) -> None:
    card = model_card(description(training={} if kind is None else {"data_kind": kind}))
    assert front_matter(card)["license"] == licence
    assert said in card
    assert ("commercial" in card) == (kind == "celeba")
    assert "Not for decisions about people" in card


def test_the_front_matter_has_the_defined_scores() -> None:
    (model,) = front_matter(model_card(description()))["model-index"]
    assert [(each["type"], each["value"]) for each in model["results"][0]["metrics"]] == [("accuracy", 0.9125)]


def test_the_folder_is_a_model_of_the_hub(tmp_path: Path) -> None:
    """huggingface_hub reads the card of best/ and finds nothing wrong with its metadata; without a network."""
    folder = write_model(tmp_path / "best")
    (folder / "README.md").write_text(model_card(description()), encoding="utf-8")
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_name, result.dataset_split) == (
        "image-classification",
        "CelebA",
        "validation",
    )
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9125)
    folded = description(training={"config": {"data": {"fold": "2/5"}}})
    (result,) = ModelCard(model_card(folded)).data.eval_results
    assert result.dataset_split == "train"
    assert (card.data.pipeline_tag, card.data.license) == ("image-classification", "other")
    assert card.data.model_name == "resnet18-face-attributes"
    assert (folder / "model.safetensors").is_file()


def test_a_model_without_a_defined_score_has_a_card(tmp_path: Path) -> None:
    card = model_card(description(validation={"images": 3, "roc_auc": float("nan")}))
    assert "model-index" not in front_matter(card)
    assert ["<strong>mean</strong>", "-", "", ""] in table_rows(html(card))


def test_the_kind_of_data_is_seen(faces: Path, tmp_path: Path) -> None:
    assert data_kind(faces) == "synthetic"
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/archive.parquet").touch()
    assert data_kind(tmp_path / "packed") == "own"  # it may be anybody's
    (tmp_path / "list_attr_celeba.txt").touch()
    assert data_kind(tmp_path) == "celeba"
    (tmp_path / "table.csv").touch()
    assert data_kind(tmp_path) == "own"


def test_names_show_as_they_are() -> None:
    known = {"data_kind": "own", "device": NASTY, "config": {"data": {"root": f"/{NASTY}"}}}
    plain = html(model_card(description()))
    page = html(model_card(description(attributes=(NASTY, "Male"), training=known)))
    assert "<script" not in page
    shown = "&lt;script&gt;alert(1)&lt;/script&gt;|`a``b`_*x* # big"
    rows = table_rows(page)
    assert [f"<code>{shown}</code>", "-", "-", "1.2500", "0.3750"] in rows
    assert ["device", shown] in rows
    assert ["data", f"/{shown}"] in rows
    assert page.count("<h1>") == plain.count("<h1>") == 1
    assert page.count("<em>") == 0


@pytest.mark.parametrize(
    ("crop", "zoom", "stem"),
    [
        ("square", 1, "imagenet"),
        (0.83, 1, "imagenet"),
        (0.83, 0.925, "imagenet"),
        ("full", 1, "imagenet"),
        ("full", 0.9, "imagenet"),
        ("square", 1, "small"),
    ],
)
def test_the_ways_to_load_it_work_and_agree(
    crop: Crop,
    zoom: float,
    stem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the card tells the reader to run is run, beside an upright image of odd size."""
    folder = write_model(tmp_path / "best", crop=crop, eval_zoom=zoom, stem=stem)
    monkeypatch.chdir(folder)
    noise = np.random.default_rng(3).integers(0, 256, (11, 7, 3), np.uint8)
    Image.fromarray(noise).resize((75, 102), Image.Resampling.BICUBIC).save("face.jpg", quality=95)
    snippets = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    capsys.readouterr()
    printed = []
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
        printed.append([line.split() for line in capsys.readouterr().out.splitlines()])
    model = distrib.load(folder)
    for rows in printed:
        assert [row[0] for row in rows] == list(model.attributes)
    values = [[float(row[1]) for row in rows] for rows in printed]
    assert values[0] == pytest.approx(values[1], abs=2e-3)  # the two may round the resized image differently
    assert [row[2] for row in printed[0]] == [row[2] for row in printed[1]]
    with Image.open("face.jpg") as picture:
        logits = model.logits(model.fit(np.array(picture))[None])
    assert values[0] == pytest.approx(model.probabilities(logits)[0].tolist(), abs=1e-6)
