"""The jobs on where the network looks: occlusion maps, Grad-CAM, their truth on drawn faces, and one photograph.

The colours mean the same in every image: red speaks for the attribute, blue against it.

Legend: N test images, H height, W width, A attributes; y and x count a map's cells.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.words import words
from distrib.data.images import decode
from distrib.data.reader import ImageReader
from distrib.explaining import figures
from distrib.explaining.finished_run import Finding, FinishedRun, data_uri_jpeg, data_uri_png, thumbnail
from distrib.explaining.gradcam import LAYER, at_pixels, grad_cam
from distrib.explaining.occlusion import OcclusionMaps, heat, occlusion_maps
from distrib.explaining.truth import Boxes, in_input, judge, read_boxes
from distrib.faces import VISIBLE
from distrib.photographs.files import Photograph, shown
from distrib.ranks.printing import warn
from distrib.runs.terminal import time_left
from distrib.scoring.evaluation import AUTOCAST
from distrib.scoring.metrics import mean_of_defined

# Images on the page are at most so many pixels high, and fewer where many attributes make hundreds of them. The maps
# over them are smooth, so they need fewer still.
HEIGHT, HEIGHT_OF_MANY, MANY = 160, 112, 10
HEAT_HEIGHT = 48
# Attributes in a figure, and inches of each image with its caption.
DRAWN, CARD = 8, (1.8, 2.4)


def occlusion(run: FinishedRun) -> Finding:
    """Occlusion maps of the test images that the model is surest of and right about, for every attribute."""
    began = time.monotonic()
    gallery = _Gallery(run)
    maps = _occlude(run, gallery.pictures_NHWC, "occlusion")
    data = {
        "window": list(maps.grid.window),
        "stride": list(maps.grid.stride),
        "fill": run.config.explain.fill,
        "precision": run.config.train.precision,
        "seconds": time.monotonic() - began,
    }

    def cells(place: int, attribute: int) -> torch.Tensor:
        return maps.grid.cells(maps.drops_BAyx[place, attribute])

    return gallery.finding("occlusion", "Occlusion: red speaks for the attribute, blue against it", data, cells)


def gradcam(run: FinishedRun) -> Finding:
    """Grad-CAM maps of the same images: what speaks for the decision."""
    began = time.monotonic()
    gallery = _Gallery(run)
    maps_NAHW = at_pixels(grad_cam(run.net, gallery.pictures_NHWC), run.model.description.image_size)
    data = {"layer": LAYER, "seconds": time.monotonic() - began}

    def cells(place: int, attribute: int) -> torch.Tensor:
        map_HW = maps_NAHW[place, attribute]
        return map_HW.clamp(min=0) if gallery.present_NA[place, attribute] else map_HW.clamp(max=0)

    return gallery.finding(
        "gradcam", f"Grad-CAM of the decision, at {LAYER}: red for the attribute, blue against it", data, cells
    )


def photograph(run: FinishedRun) -> Finding:
    """One image: what the model says of it without occlusion, how sure it is, and what that rests on."""
    model, named = run.model, run.config.explain.photograph
    labels: list[int | None] = [None] * len(model.attributes)
    if named is not None:
        file = shown(named)
        image_HWC, aligned, note = _aligned(run, Photograph(file, named).read(warn))
    else:
        first = int(run.splits.test[0])
        file, labels = run.table.names[first], run.table.targets[first].tolist()
        image_HWC, aligned, note = run.picture(first), False, "It is the first image of the test split."
    images_NHWC = torch.from_numpy(image_HWC)[None].to(model.device)
    logits_NA = model.logits(images_NHWC)
    probabilities, present = model.probabilities(logits_NA)[0], model.decisions(logits_NA)[0]
    maps = _occlude(run, images_NHWC, "photograph")
    cards, drawn = [], _evenly(len(model.attributes), 2 * DRAWN)
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(model.attributes):
        overlay_HW4 = _small_heat(maps.grid.cells(maps.drops_BAyx[0, i]), maps.grid.size)
        row: dict[str, Any] = {
            "name": name,
            "label": labels[i],
            "probability": float(probabilities[i]),
            "decision": words(name, bool(present[i])),
            "probability_of_decision": float(probabilities[i] if present[i] else 1 - probabilities[i]),
        }
        rows.append(row | {"heat": data_uri_png(overlay_HW4)})
        if i in drawn:
            cards.append((image_HWC, overlay_HW4, _caption(row["decision"], f"{row['probability_of_decision']:.1%}")))
    data = {"file": file, "image": data_uri_jpeg(image_HWC), "aligned": aligned, "attributes": rows, "note": note}
    columns = ["name", "label", "probability", "decision", "probability_of_decision"]
    table = [[row[column] for column in columns] for row in rows]
    title = "What the model says of the photograph: red speaks for the attribute, blue against it"
    return Finding(
        data, {"photograph": figures.sheet(title, cards, columns=4, card=CARD)}, {"photograph": (columns, table)}
    )


def truth(run: FinishedRun) -> Finding:
    """On drawn faces: whether the maps point where an attribute is drawn, for each that can be seen."""
    file = run.config.data.root / "boxes.csv"
    if not file.exists():
        return Finding({"absent": "This data set does not say where its attributes are; drawn faces do (boxes.csv)."})
    visible = [i for i, name in enumerate(run.model.attributes) if name in VISIBLE]
    if not visible:
        return Finding({"absent": "The model has learnt no attribute whose place is in boxes.csv."})
    test = run.predictions["test"]
    chosen = _evenly(len(test.rows), run.config.explain.truth_images)
    parts = _parts_in_input(run, read_boxes(file), test.rows[chosen])
    images_NHWC = run.pictures(test.rows[chosen])
    maps, cams_NAyx = _occlude(run, images_NHWC, "truth"), grad_cam(run.net, images_NHWC)
    present_NA = run.model.decisions(test.logits_NA[chosen])
    right_NA = present_NA == test.targets_NA[chosen].astype(bool)
    rows: list[dict[str, Any]] = []
    for i in visible:
        name = run.model.attributes[i]
        boxes = [np.array([each[part] for part in VISIBLE[name] if part in each]).reshape(-1, 4) for each in parts]
        maps_NHW = {
            "occlusion": maps.grid.at_pixels(maps.drops_BAyx[:, i]),
            "gradcam": at_pixels(cams_NAyx[:, i : i + 1], maps.grid.size)[:, 0],
        }
        row: dict[str, Any] = {"name": name, "parts": list(VISIBLE[name])}
        for method, of_method in maps_NHW.items():
            both, row[method] = judge(
                of_method.numpy(), boxes, present_NA[:, i], right_NA[:, i], margin=maps.grid.window
            )
            row |= {"area": both.area, "correct": both.pictures}
        rows.append(row)
    methods, scores = ["occlusion", "gradcam"], ["pointing", "chance", "mass", "ratio"]
    means = {
        each: {score: float(mean_of_defined([row[each][score] for row in rows])) for score in scores}
        for each in methods
    }
    columns = ["attribute", "parts", "area", "correct", *(f"{each}_{score}" for each in methods for score in scores)]
    table = [
        [row["name"], " ".join(row["parts"]), row["area"], row["correct"]]
        + [row[each][score] for each in methods for score in scores]
        for row in rows
    ]
    data = {
        "images": len(chosen),
        "test_images": len(test.rows),
        "methods": methods,
        "attributes": rows,
        "means": means,
    }
    return Finding(data, {"truth": _truth_figure(rows, methods)}, {"truth": (columns, table)})


class _Gallery:
    """The test images that the model is surest of and right about, some with each attribute and some without.

    Attributes:
        pictures_NHWC: uint8, each once, whatever the number of attributes it is shown for.
        present_NA: bool, what the model says of these images.
    """

    def __init__(self, run: FinishedRun) -> None:
        test, model, each = run.predictions["test"], run.model, run.config.explain.images
        probabilities_NA, present_NA = model.probabilities(test.logits_NA), model.decisions(test.logits_NA)
        right_NA = present_NA == test.targets_NA.astype(bool)
        surest = [
            _surest(probabilities_NA[:, i], present_NA[:, i], right_NA[:, i], each) for i in range(len(test.attributes))
        ]
        chosen = sorted({n for of_attribute in surest for n in of_attribute})
        if not chosen:
            raise UserError("the model is right about no test image, so there is no map to show: train it for longer")
        self._attributes, self._columns = test.attributes, each
        self._places = [[chosen.index(n) for n in of_attribute] for of_attribute in surest]
        self._files = [test.names[n] for n in chosen]
        self._targets_NA, self._probabilities_NA = test.targets_NA[chosen], probabilities_NA[chosen]
        self.present_NA = present_NA[chosen]
        self.pictures_NHWC = run.pictures(test.rows[chosen])

    def finding(
        self, name: str, title: str, data: dict[str, Any], cells: Callable[[int, int], torch.Tensor]
    ) -> Finding:
        """What a job gives back.

        Args:
            name: of the job.
            title: of its figure.
            data: what the page is told beside maps and images.
            cells: the map [y, x] of the n-th image and an attribute.
        """
        pictures_NHWC = self.pictures_NHWC.cpu().numpy()
        height = HEIGHT if len(self._attributes) <= MANY else HEIGHT_OF_MANY
        pictures = {
            file: data_uri_jpeg(thumbnail(picture, height))
            for file, picture in zip(self._files, pictures_NHWC, strict=True)
        }
        drawn = _evenly(len(self._attributes), DRAWN)
        attributes, table, cards = [], [], []
        for i, attribute in enumerate(self._attributes):
            maps = []
            for place in self._places[i]:
                map_yx = cells(place, i)
                overlay_HW4 = _small_heat(map_yx, pictures_NHWC.shape[1:3])
                row: dict[str, Any] = {
                    "file": self._files[place],
                    "label": int(self._targets_NA[place, i]),
                    "probability": float(self._probabilities_NA[place, i]),
                    "decision": words(attribute, bool(self.present_NA[place, i])),
                    "maximum": float(map_yx.abs().max()),
                }
                table.append([attribute, *row.values()])
                maps.append(row | {"image": self._files[place], "heat": data_uri_png(overlay_HW4)})
                if i in drawn:
                    cards.append((pictures_NHWC[place], overlay_HW4, _caption(row["decision"], row["file"])))
            attributes.append({"name": attribute, "maps": maps})
        data = data | {"attributes": attributes, "pictures": pictures}
        columns = ["attribute", "file", "label", "probability", "decision", "maximum"]
        return Finding(data, {name: figures.sheet(title, cards, self._columns, CARD)}, {name: (columns, table)})


def _caption(decision: str, below: str) -> str:
    return f"{figures.label(decision)}\n{below.replace('$', '')}"


def _occlude(run: FinishedRun, images_NHWC: torch.Tensor, job: str) -> OcclusionMaps:
    """Occlusion maps by the options of the run, in the precision of its training; a terminal shows the time left."""
    options = run.config.explain
    window, stride = ((side, side) if side is not None else None for side in (options.window, options.stride))
    with time_left(f"report:  {job}", len(images_NHWC)) as report:
        return occlusion_maps(
            run.model.net,
            images_NHWC,
            window,
            stride,
            options.fill,
            precision=AUTOCAST[run.config.train.precision],
            batch=64 if images_NHWC.device.type == "cpu" else 1024,
            report=report,
        )


def _surest(
    probability_N: NDArray[np.float64], present_N: NDArray[np.bool_], right_N: NDArray[np.bool_], count: int
) -> list[int]:
    """The likeliest images with an attribute, then the unlikeliest without it, half and half."""
    rising = np.argsort(probability_N, kind="stable")
    present, absent = rising[(present_N & right_N)[rising]][::-1], rising[(~present_N & right_N)[rising]]
    return [*present[: (count + 1) // 2].tolist(), *absent[: count // 2].tolist()]


def _aligned(run: FinishedRun, pixels_HWC: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool, str]:
    """The largest face of a photograph as the model takes it, whether one was found, and a sentence on that."""
    from distrib.photographs.alignment import align  # OpenCV, which takes a while and which no other job needs

    faces = align(pixels_HWC)
    if not faces:
        return run.model.fit(pixels_HWC), False, "No face was found in it, so the model was given it as it is."
    largest = max(faces, key=lambda each: 0 if each.face is None else each.face.box[2] * each.face.box[3])
    note = f"The largest of its {len(faces)} faces." if len(faces) > 1 else ""
    return run.model.fit(largest.pixels), largest.face is not None, note


def _parts_in_input(run: FinishedRun, boxes: Boxes, rows: NDArray[np.int64]) -> list[dict[str, NDArray[np.float64]]]:
    """Part -> box, in pixels of the network's input, of the images of some rows."""
    reader, about = ImageReader(run.table), run.model.description
    found = []
    for row in rows.tolist():
        of_picture = boxes.get(run.table.names[row], {})
        corners = np.array(list(of_picture.values())).reshape(-1, 4)
        height, width = decode(reader.read(row)).shape[:2]
        moved = in_input(corners, about.region(height, width), about.image_size)
        found.append(dict(zip(of_picture, moved, strict=True)))
    return found


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the numbers 0 … count - 1, evenly spread."""
    return [int(number) for number in np.linspace(0, count - 1, min(count, most))]


def _small_heat(cells_yx: torch.Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A map in colours, as small as the page needs it, in the shape of an image of this height and width."""
    return heat(cells_yx, (HEAT_HEIGHT, max(1, round(HEAT_HEIGHT * size[1] / size[0]))))


def _truth_figure(rows: list[dict[str, Any]], methods: list[str]) -> Figure:
    """Both measures of each attribute, one beside the other."""
    figure = figures.new(9, figures.height_of_rows(len(rows)))
    pointing, focus = figure.subplots(1, 2, sharey=True)
    heights = figures.rows_of_attributes(pointing, [row["name"] for row in rows])
    for method, colour, name in zip(methods, (figures.RED, figures.BLUE), ("occlusion", "Grad-CAM"), strict=True):
        pointing.plot([row[method]["pointing"] for row in rows], heights, "o", color=colour, label=name)
        focus.plot([row[method]["ratio"] for row in rows], heights, "o", color=colour, label=name)
    chance = [row["occlusion"]["chance"] for row in rows]
    pointing.plot(chance, heights, "|", color=figures.GREY, markersize=9, label="a place at random")
    focus.axvline(1, color=figures.GREY, linewidth=1, label="an even map")
    pointing.set(xlim=(-0.03, 1.03), xlabel="maximum on the part, share of the images")
    focus.set(xlim=(0, None), xlabel="evidence on the part, as a multiple of its area")
    handles = [*pointing.get_legend_handles_labels()[0], *focus.get_legend_handles_labels()[0][-1:]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=9)
    return figure
