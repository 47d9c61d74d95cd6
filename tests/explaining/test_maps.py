import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from planted import CONFIG, faces_table, planted_study
from seeing import red_seer

from distrib.base.errors import UserError
from distrib.base.json import to_json
from distrib.explaining.finished_run import Finding, FinishedRun
from distrib.explaining.maps import gradcam, occlusion, photograph, truth
from distrib.faces import ATTRIBUTES
from distrib.scoring.calibration import sigmoid

NAMES = ("Smiling", "Arched_Eyebrows", "Attractive")
QUICK = CONFIG.replace("explain", images=3, truth_images=3, window=40, stride=35, fill="black")
QUICK = QUICK.replace("train", precision="no")


@pytest.fixture(scope="module")
def study(faces: Path) -> FinishedRun:
    return planted_study(faces_table(faces, NAMES), QUICK)


@pytest.fixture(scope="module")
def occluded(study: FinishedRun) -> Finding:
    return occlusion(study)


def page_data(finding: Finding) -> Any:
    return json.loads(to_json(finding.data))


def pixels(uri: str, kind: str) -> NDArray[np.uint8]:
    head, _, body = uri.partition(",")
    assert head == f"data:image/{kind};base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def test_the_maps_are_of_the_surest_right_answers_of_either_kind(study: FinishedRun, occluded: Finding) -> None:
    test = study.predictions["test"]
    probabilities = sigmoid(test.logits_NA / 2)
    found = page_data(occluded)
    assert [row["name"] for row in found["attributes"]] == list(NAMES)
    for i, row in enumerate(found["attributes"]):
        truth_N, said_N = test.targets_NA[:, i], probabilities[:, i]
        present = np.sort(said_N[(truth_N == 1) & (said_N >= 0.4)])[::-1][:2]
        absent = np.sort(said_N[(truth_N == 0) & (said_N < 0.4)])[:1]
        assert [each["probability"] for each in row["maps"]] == pytest.approx([*present, *absent])
        words = NAMES[i].replace("_", " ")
        assert [each["decision"] for each in row["maps"]] == [words, words, f"Not {words}"]
        assert [each["label"] for each in row["maps"]] == [1, 1, 0]
        for each in row["maps"]:
            n = test.names.index(each["file"])
            assert said_N[n] == pytest.approx(each["probability"])


def test_every_map_lies_over_its_picture(study: FinishedRun, occluded: Finding) -> None:
    found = page_data(occluded)
    assert (found["window"], found["stride"], found["fill"]) == ([40, 40], [35, 35], "black")
    shown = [each for row in found["attributes"] for each in row["maps"]]
    assert set(found["pictures"]) == {each["image"] for each in shown}
    for each in shown:
        picture, heat = pixels(found["pictures"][each["image"]], "jpeg"), pixels(each["heat"], "png")
        assert heat.shape[2] == 4
        assert heat.shape[0] / heat.shape[1] == pytest.approx(picture.shape[0] / picture.shape[1], rel=0.03)
        assert each["maximum"] > 0
    columns, rows = occluded.tables["occlusion"]
    assert len(rows) == len(shown)
    assert len(columns) == len(rows[0])
    assert set(occluded.figures) == {"occlusion"}
    occluded.figures["occlusion"].savefig(io.BytesIO())


def test_grad_cam_shows_the_same_pictures_in_the_same_order(study: FinishedRun, occluded: Finding) -> None:
    one, other = page_data(occluded), page_data(gradcam(study))
    assert other["layer"] == "layer4"
    assert other["pictures"] == one["pictures"]
    for left, right in zip(one["attributes"], other["attributes"], strict=True):
        assert [each["file"] for each in left["maps"]] == [each["file"] for each in right["maps"]]
        for each in right["maps"]:
            heat = pixels(each["heat"], "png")
            red = heat[..., 0] > heat[..., 2]
            wrong = ~red if not each["decision"].startswith("Not ") else red
            assert heat[wrong][:, 3].max(initial=0) < 20, "of a decision's Grad-CAM only its own side is shown"


def test_a_model_that_is_never_right_has_no_maps_to_show(study: FinishedRun) -> None:
    test = study.predictions["test"]
    wrong = dataclasses.replace(test, logits_NA=(5 - 10.0 * test.targets_NA).astype(np.float32))
    with pytest.raises(UserError, match="right about no test image"):
        occlusion(dataclasses.replace(study, predictions={"test": wrong}))


def test_forty_attributes_fit_into_the_page(faces: Path) -> None:
    config = QUICK.replace("explain", images=4)
    found = gradcam(planted_study(faces_table(faces, ATTRIBUTES), config))
    assert len(found.data["attributes"]) == 40
    assert len(to_json(found.data)) < 3_000_000


# --- the photograph


def test_without_a_photograph_the_first_test_picture_is_explained(study: FinishedRun) -> None:
    found = page_data(photograph(study))
    row = int(study.splits.test[0])
    assert found["file"] == study.table.names[row]
    assert not found["aligned"]
    logits = study.model.logits(study.pictures([row]))
    for i, each in enumerate(found["attributes"]):
        assert each["label"] == study.table.targets[row, i]
        probability = float(sigmoid(logits[0, i] / 2))
        present = probability >= 0.4
        assert each["probability"] == pytest.approx(probability)
        assert each["decision"] == f"{'' if present else 'Not '}{NAMES[i].replace('_', ' ')}"
        assert each["probability_of_decision"] == pytest.approx(probability if present else 1 - probability)
        assert pixels(each["heat"], "png").shape[2] == 4
    assert pixels(found["image"], "jpeg").shape == (109, 89, 3)


def test_a_photograph_without_a_face_is_taken_whole_and_that_is_said(study: FinishedRun, tmp_path: Path) -> None:
    file = tmp_path / "wall.png"
    Image.new("RGB", (300, 200), (90, 120, 60)).save(file)
    config = study.config.replace("explain", photograph=file)
    found = page_data(photograph(dataclasses.replace(study, config=config)))
    assert not found["aligned"]
    assert "No face was found" in found["note"]
    assert found["file"] == str(file)
    assert {each["label"] for each in found["attributes"]} == {None}


def test_an_unreadable_photograph_is_a_sentence(study: FinishedRun, tmp_path: Path) -> None:
    file = tmp_path / "notes.jpg"
    file.write_text("no image")
    config = study.config.replace("explain", photograph=file)
    with pytest.raises(UserError, match=r"notes\.jpg"):
        photograph(dataclasses.replace(study, config=config))


# --- the truth


def test_a_data_set_without_boxes_has_no_truth(study: FinishedRun, tmp_path: Path) -> None:
    config = study.config.replace("data", root=tmp_path)
    assert "does not say where" in page_data(truth(dataclasses.replace(study, config=config)))["absent"]


def test_the_truth_has_a_row_for_each_attribute_that_can_be_seen(study: FinishedRun) -> None:
    found = page_data(truth(study))
    assert [row["name"] for row in found["attributes"]] == ["Smiling", "Arched_Eyebrows"]  # Attractive is nowhere
    assert [row["parts"] for row in found["attributes"]] == [["mouth"], ["brows"]]
    assert found["images"] == 3
    assert found["test_images"] == len(study.predictions["test"])
    for row in found["attributes"]:
        for method in found["methods"]:
            assert set(row[method]) == {"pointing", "chance", "mass", "ratio", "present", "absent"}
            groups = [row[method][group]["correct"] for group in ("present", "absent")]
            assert sum(groups) == row["correct"] <= 3


def test_a_model_of_which_is_known_where_it_looks_passes_and_its_mirror_image_fails(tmp_path: Path) -> None:
    """Images with a red square in a known place, and a network that sees red alone: the mouth is on the square, the
    forehead where it would be in the image turned upside down."""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    lines, boxes = ["image,Smiling,Bangs"], ["image,part,left,top,right,bottom"]
    for n in range(12):
        pixels_HWC = np.full((96, 80, 3), 124, np.uint8)
        left, top = 2 + 4 * (n % 4), 2 + 3 * (n % 6)
        pixels_HWC[top : top + 24, left : left + 24] = (255, 0, 0)
        Image.fromarray(pixels_HWC).save(root / f"images/{n}.png")
        lines.append(f"{n}.png,1,{n % 2}")
        boxes.append(f"{n}.png,mouth,{left},{top},{left + 24},{top + 24}")
        boxes.append(f"{n}.png,forehead,{56 - left},{72 - top},{80 - left},{96 - top}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    (root / "boxes.csv").write_text("\n".join(boxes) + "\n")
    config = QUICK.replace("explain", truth_images=12, window=16, stride=12, fill="mean")
    table = faces_table(root, ("Smiling", "Bangs"))
    study = planted_study(table, config, np.full((12, 2), 4, np.float32))
    study = dataclasses.replace(
        study, config=config.replace("data", root=root), model=dataclasses.replace(study.model, net=sees_red_twice())
    )
    smiling, bangs = page_data(truth(study))["attributes"]
    assert smiling["occlusion"]["pointing"] == 1
    assert smiling["occlusion"]["ratio"] > 3
    assert smiling["gradcam"]["pointing"] > 0.8
    assert smiling["gradcam"]["ratio"] > bangs["gradcam"]["ratio"]
    assert bangs["occlusion"]["ratio"] < 1


def sees_red_twice() -> torch.nn.Module:
    """Both logits say how much red there is."""
    model = red_seer()
    with torch.no_grad():
        model.net.fc.weight[1] = model.net.fc.weight[0]
    return model
