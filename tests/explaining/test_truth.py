import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.config import read_yaml
from distrib.data.batch import Crop, Request, cut
from distrib.explaining.maps import truth
from distrib.explaining.report import open_run
from distrib.explaining.truth import in_input, inside, judge, mass_within, measure, points_into, read_boxes
from distrib.model.network import AttributeClassifier
from distrib.model.trained import Description, TrainedModel
from distrib.scoring.predictions import Predictions

BOX = np.array([[20.0, 10, 30, 14]])  # left, top, right, bottom
SIZE = (40, 50)


def peak(y: int, x: int, value: float = 1.0) -> NDArray[np.float32]:
    map_HW = np.zeros(SIZE, np.float32)
    map_HW[y, x] = value
    return map_HW


# --- boxes


def of(crop: Crop, zoom: float = 1) -> tuple[int, int, int, int]:
    """What a model with this crop is given of an image of CelebA's size."""
    about = Description(
        architecture="resnet18", attributes=("A",), image_size=(8, 8), crop=crop, eval_zoom=zoom, temperature=(1,),
        thresholds=(0.5,),
    )  # fmt: skip
    return about.region(218, 178)


def test_the_boxes_of_drawn_faces_are_read(faces: Path) -> None:
    boxes = read_boxes(faces / "boxes.csv")
    assert len(boxes) == 200
    left, top, right, bottom = boxes["000001.jpg"]["brows"]
    assert 0 <= left < right <= 178
    assert 0 <= top < bottom <= 218


@pytest.mark.parametrize(
    "text",
    ["", "image,part,left,top,right\n1.jpg,brows,1,2,3\n", "image,part,left,top,right,bottom\n1.jpg,brows,1,2,3,x\n",
     "image,part,left,top,right,bottom\n1.jpg,brows,1,2\n", "\0\n", "image;part\n1;2\n"],
)  # fmt: skip
def test_a_file_that_is_no_table_of_boxes_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "boxes.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=r"boxes\.csv") as error:
        read_boxes(file)
    assert "left, top, right, bottom" in str(error.value)


@pytest.mark.parametrize(
    ("crop", "zoom", "size"),
    [
        ("full", 1, (110, 90)),
        ("square", 1, (89, 89)),
        ("square", 1, (178, 178)),
        (0.83, 1, (89, 89)),
        (0.83, 0.925, (89, 89)),
        ("full", 0.9, (110, 90)),
    ],
)
def test_a_box_goes_where_its_pixels_go(crop: Crop, zoom: float, size: tuple[int, int]) -> None:
    for left, top, right, bottom in [(50, 88, 126, 102), (20, 30, 100, 110), (100, 120, 178, 218)]:
        pixels_HWC = np.zeros((218, 178, 3), np.uint8)
        pixels_HWC[top:bottom, left:right] = 255
        fitted = cut(pixels_HWC, Request.centred(np.zeros(1, np.int64), zoom), crop, size)[..., 0] > 127
        box = np.array([[left, top, right, bottom]], float)
        mask = inside(in_input(box, of(crop, zoom), size), size)
        both, either = (fitted & mask).sum(), (fitted | mask).sum()
        assert both / either > 0.93


def test_a_part_outside_of_the_crop_is_nowhere() -> None:
    collar = np.array([[60.0, 205, 120, 218]])
    assert not inside(in_input(collar, of("square"), (178, 178)), (178, 178), (30, 30)).any()


# --- the measures


def test_inside_is_the_union_of_the_boxes_and_their_margins() -> None:
    assert inside(BOX, SIZE).sum() == 4 * 10
    assert inside(BOX, SIZE)[10:14, 20:30].all()
    assert inside(BOX, SIZE, (2, 3)).sum() == 8 * 16
    assert inside(BOX, SIZE, (100, 100)).all()
    two = np.array([[0.0, 0, 10, 10], [5, 5, 15, 15]])
    assert inside(two, SIZE).sum() == 100 + 100 - 25


def test_the_pointing_game_asks_for_the_highest_place_alone() -> None:
    mask = inside(BOX, SIZE)
    assert points_into(peak(10, 20) + 0.9 * peak(30, 40), mask)
    assert not points_into(peak(10, 30), mask)
    assert not points_into(0.9 * peak(11, 25) + peak(30, 40), mask)
    assert points_into(-peak(0, 0) + peak(11, 25), mask)


def test_a_map_without_evidence_points_nowhere_and_has_no_mass() -> None:
    everywhere = np.ones(SIZE, bool)
    for map_HW in (np.zeros(SIZE, np.float32), -np.ones(SIZE, np.float32)):
        assert not points_into(map_HW, everywhere)
        assert mass_within(map_HW, everywhere) == 0


def test_an_even_map_has_the_mass_of_the_area() -> None:
    found = measure([np.ones(SIZE, np.float32)], [BOX], (0, 0))
    assert found.area == found.mass == pytest.approx(40 / 2000)
    assert found.ratio == pytest.approx(1)
    assert found.pointing == 0


def test_negative_values_are_no_mass() -> None:
    map_HW = 3 * peak(12, 25) + peak(30, 30) - 50 * peak(31, 31)
    assert mass_within(map_HW, inside(BOX, SIZE)) == pytest.approx(0.75)


def test_a_judgement_is_over_the_right_answers_and_turns_the_sign_where_the_attribute_is_absent() -> None:
    maps = np.stack([peak(11, 22), peak(11, 22, -1.0), peak(35, 40), peak(35, 40), peak(11, 22)])
    boxes = [BOX, BOX, BOX, BOX, np.empty((0, 4))]
    present, right = np.array([True, False, True, True, True]), np.array([True, True, True, False, True])
    both, found = judge(maps, boxes, present, right, margin=(1, 1))
    assert both.pictures == 3  # the fourth answer is wrong, and the fifth image does not show the part
    assert found["pointing"] == pytest.approx(2 / 3)
    assert found["mass"] == pytest.approx(2 / 3)
    assert found["chance"] == pytest.approx(6 * 12 / 2000)
    assert found["present"]["correct"] == 2
    assert found["present"]["pointing"] == 0.5
    assert found["absent"]["correct"] == 1
    assert found["absent"]["ratio"] == pytest.approx(2000 / 40)


def test_without_a_right_answer_nothing_is_known() -> None:
    both, found = judge(peak(1, 1)[None], [BOX], np.array([True]), np.array([False]), (1, 1))
    assert both.pictures == 0
    assert np.isnan(both.area)
    assert np.isnan(found["pointing"])
    assert np.isnan(found["ratio"])


# --- the truth of a real model


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_trained_model_looks_at_the_brows_and_a_random_one_does_not(demo: Path) -> None:
    """After `make demo`: the maximum on the brows in 80 % of the images, and three times the mass of chance."""
    found = {
        row["name"]: row for row in json.loads((demo / "report/data/truth.json").read_text())["data"]["attributes"]
    }
    brows = found["Arched_Eyebrows"]
    assert brows["correct"] >= 80
    assert brows["occlusion"]["pointing"] >= 0.8
    assert brows["occlusion"]["ratio"] >= 3

    config = read_yaml(demo / "config.yaml").replace("explain", truth_images=40)
    study = open_run(demo, config)
    assert set(found) == set(study.model.attributes)
    torch.manual_seed(0)
    net = AttributeClassifier(len(study.model.attributes))
    with torch.no_grad():
        net(study.pictures(study.splits.valid[:64]))  # statistics for BatchNorm
    random = TrainedModel(net.eval(), study.model.description, study.model.source)
    logits = random.logits(study.pictures(study.splits.test))
    predictions = {"test": Predictions.of("test", study.table, study.splits.test, logits)}
    other = dataclasses.replace(study, model=random, predictions=predictions)
    brows = next(row for row in truth(other).data["attributes"] if row["name"] == "Arched_Eyebrows")
    assert brows["correct"] > 0
    assert brows["occlusion"]["pointing"] < 0.8
    assert brows["occlusion"]["ratio"] < 3
