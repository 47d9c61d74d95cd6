"""The attributes of the faces in photographs, as `distrib predict` tells them.

Legend: B faces, H height, W width, C channels (RGB), A attributes.
"""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from distrib.base.errors import UserError
from distrib.base.files import written_whole
from distrib.base.json import to_json
from distrib.base.paths import fitting_name
from distrib.base.words import nearest, words
from distrib.model.options import PredictOptions
from distrib.model.trained import Description, TrainedModel, load
from distrib.photographs.alignment import AlignedFace, align, compose, inverse, moved
from distrib.photographs.files import Photograph, expand
from distrib.ranks.printing import warn

FACES_AT_ONCE = 16  # through the network; what is seen of the first photograph is said before the last one is opened
# What a person is told about the alignment of a face.
HOW = {
    "eyes": "",
    "face": " (eyes not found: aligned by the face alone)",
    "size": " (178 x 218 pixels: taken as aligned already)",
    "no": " (the whole photograph, not aligned)",
}
# Occlusion maps, RGBA [H, W, 4], of a model's image [H, W, 3] and of the attributes with these numbers.
HeatOverlays = Callable[[TrainedModel, NDArray[np.uint8], Sequence[int]], list[NDArray[np.uint8]]]
HEAT_MAP_SIDES = (512, 2048)  # the longer side of a heat map's image, at least and at most, in pixels


@dataclass(frozen=True)
class Sight:
    """A face in a photograph, or a whole photograph, before the model has seen it.

    Attributes:
        photograph: where it is.
        number: of the face, from 1.
        count: of the faces in the photograph.
        aligned: how: see `AlignedFace.by`; None: not at all.
        picture_HWC: as the model takes it, uint8.
        heat_maps: attribute -> file of its heat map.
    """

    photograph: Photograph
    number: int
    count: int
    aligned: AlignedFace | None
    picture_HWC: NDArray[np.uint8]
    heat_maps: dict[str, Path] = field(default_factory=dict)


def predict(options: PredictOptions, heat_overlays: HeatOverlays) -> int:
    """Tell the attributes; returns the exit status, 0, or 1 if a photograph failed.

    Args:
        options: of the command line.
        heat_overlays: makes the maps that `options.occlusion` asks for.

    Raises:
        UserError: if there is no such model, or an option does not fit it.
    """
    model = load(options.model, choose_device(options))
    if options.thresholds is not None:
        model = model.with_thresholds(options.thresholds)
    return Prediction(options, model, heat_overlays).run()


def choose_device(options: PredictOptions) -> str:
    """The device for the model.

    Raises:
        UserError: if an ONNX file is to go to a GPU.
    """
    if options.model.suffix == ".onnx":
        if options.device == "cuda":
            raise UserError(f"--device cuda does not go with {options.model}: ONNX files are computed on the CPU")
        return "cpu"
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return options.device


class Prediction:
    """Reads, finds, predicts and says, photograph by photograph."""

    def __init__(self, options: PredictOptions, model: TrainedModel, heat_overlays: HeatOverlays) -> None:
        self._options, self._model, self._heat_overlays = options, model, heat_overlays
        self._told = indices(model, options.attributes, "--attributes") or list(range(len(model.attributes)))
        self._drawn = indices(model, options.occlusion, "--occlusion")
        if self._drawn:
            try:
                options.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                sentence = f"--out {options.out} cannot be made ({error.strerror}): name another folder"
                raise UserError(sentence) from None
        self._report: Output = (JsonOutput if options.json else CsvOutput if options.csv else TextOutput)(
            [model.attributes[i] for i in self._told]
        )
        self._waiting: list[Sight] = []
        self._failed = False
        self._files: set[Path] = set()  # of heat maps, and of photographs

    def run(self) -> int:
        """Returns the exit status, 0, or 1 if a photograph failed."""
        photographs = list(self._expand())
        self._files = {photograph.file.resolve() for photograph in photographs if photograph.file}
        with progress(len(photographs), self._options.json) as advance:
            for photograph in photographs:
                self._look(photograph)
                if self._drawn or len(self._waiting) >= FACES_AT_ONCE:
                    self._predict()
                advance()
            self._predict()
        self._report.end()
        return 1 if self._failed else 0

    def _expand(self) -> Iterator[Photograph]:
        for argument in self._options.photographs:
            try:
                yield from expand(argument)
            except UserError as error:
                self._fail(argument, error)

    def _fail(self, name: str, error: UserError) -> None:
        self._predict()  # so that results stand in the order of the photographs
        self._failed = True
        print(f"distrib: error: {error}", file=sys.stderr, flush=True)
        self._report.failure(name, str(error))

    def _look(self, photograph: Photograph) -> None:
        """Read a photograph and find its faces; draw the heat maps, which need all of its pixels."""
        try:
            pixels_HWC = photograph.read(warn)
        except UserError as error:
            self._fail(photograph.name, error)
            return
        faces: list[AlignedFace | None] = [*align(pixels_HWC)] if self._options.align else [None]
        if not faces:
            sentence = f"no face was found in {photograph.name}: --no-align gives the whole photograph to the model"
            self._fail(photograph.name, UserError(sentence))
        for number, face in enumerate(faces, 1):
            picture_HWC = self._model.fit(pixels_HWC if face is None else face.pixels)
            sight = Sight(photograph, number, len(faces), face, picture_HWC)
            try:
                self._draw(sight, pixels_HWC)
            except UserError as error:
                self._fail(photograph.name, error)
            self._waiting.append(sight)

    def _predict(self) -> None:
        """Tell what waits to be told."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        logits_BA = self._model.logits(np.stack([sight.picture_HWC for sight in waiting]))
        probabilities_BA, present_BA = self._model.probabilities(logits_BA), self._model.decisions(logits_BA)
        for sight, probabilities_A, present_A in zip(waiting, probabilities_BA, present_BA, strict=True):
            attributes = {
                self._model.attributes[i]: {"probability": float(probabilities_A[i]), "present": bool(present_A[i])}
                for i in self._told
            }
            self._report.face(describe(sight) | {"attributes": attributes})

    def _draw(self, sight: Sight, pixels_HWC: NDArray[np.uint8]) -> None:
        """Write the heat maps that are asked for.

        Raises:
            UserError: if one cannot be written.
        """
        if not self._drawn:
            return
        logits_BA = self._model.logits(sight.picture_HWC[None])
        present_A, probability_A = self._model.decisions(logits_BA)[0], self._model.probabilities(logits_BA)[0]
        seen_HWC = pixels_HWC if sight.aligned is None else sight.aligned.pixels
        to_picture = fitting(self._model.description, *seen_HWC.shape[:2])
        if sight.aligned is not None:
            to_picture = compose(to_picture, sight.aligned.transform)
        overlays = self._heat_overlays(self._model, sight.picture_HWC, self._drawn)
        for attribute, heat_HW4 in zip(self._drawn, overlays, strict=True):
            name, present = self._model.attributes[attribute], bool(present_A[attribute])
            probability = float(probability_A[attribute])
            caption = f"{words(name, present)}, {percent(probability if present else 1 - probability)}"
            key = f"red speaks for {words(name)}, blue against it"
            file = self._free_file(sight, name)
            with written_whole(file, "the heat map") as staged:
                draw_heat_map(pixels_HWC, heat_HW4, to_picture, (caption, key)).save(staged, "PNG")
            self._files.add(file.resolve())
            sight.heat_maps[name] = file

    def _free_file(self, sight: Sight, attribute: str) -> Path:
        """NAME.Arched_Eyebrows.png, where no photograph and no other heat map of this run lies."""
        stem = Path(sight.photograph.name).stem + (f".face{sight.number}" if sight.count > 1 else "")
        safe = "".join(character if character.isalnum() else "_" for character in attribute)
        again = 1
        while (
            file := self._options.out / fitting_name(stem, f"{f'-{again}' if again > 1 else ''}.{safe}.png")
        ).resolve() in self._files:
            again += 1
        return file


def indices(model: TrainedModel, names: Sequence[str], option: str) -> list[int]:
    """Where these attributes stand among the model's.

    Raises:
        UserError: if the model does not know one.
    """
    for name in names:
        if name not in model.attributes:
            raise UserError(
                f"{option} {name} is not an attribute of {model.source}{nearest(name, model.attributes)}: choose from "
                f"{', '.join(model.attributes)}"
            )
    return [model.attributes.index(name) for name in dict.fromkeys(names)]


def describe(sight: Sight) -> dict[str, Any]:
    """Which face of which photograph, as JSON has it."""
    face = None if sight.aligned is None else sight.aligned.face
    return {
        "photo": sight.photograph.name,
        "face": sight.number,
        "faces": sight.count,
        "box": None if face is None else list(face.box),
        "eyes": None if face is None or face.left_eye is None else [face.left_eye, face.right_eye],
        "aligned": "no" if sight.aligned is None else sight.aligned.by,
        "heat_maps": {name: str(file) for name, file in sight.heat_maps.items()},
    }


class Output:
    """Says what was found, on standard output."""

    def __init__(self, attributes: Sequence[str]) -> None:
        self._attributes = attributes

    def face(self, row: dict[str, Any]) -> None:
        """A face: what `describe` says of it and its "attributes"."""

    def failure(self, name: str, sentence: str) -> None:
        """A photograph without a prediction; standard error has said it."""

    def end(self) -> None:
        """Nothing follows."""


class JsonOutput(Output):
    """A list of objects."""

    def __init__(self, attributes: Sequence[str]) -> None:
        super().__init__(attributes)
        self._rows: list[dict[str, Any]] = []

    def face(self, row: dict[str, Any]) -> None:
        self._rows.append(row)

    def failure(self, name: str, sentence: str) -> None:
        self._rows.append({"photo": name, "error": sentence})

    def end(self) -> None:
        # JSON is UTF-8, or ASCII where the terminal is something else.
        print(to_json(self._rows, ascii_only=(sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")))


class CsvOutput(Output):
    """A row for each face, at once."""

    PLACE = ("left", "top", "width", "height", "left_eye_x", "left_eye_y", "right_eye_x", "right_eye_y")

    def __init__(self, attributes: Sequence[str]) -> None:
        super().__init__(attributes)
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        columns = [f"{name}_{what}" for name in attributes for what in ("probability", "decision")]
        self._writer.writerow(["photo", "face", "faces", "aligned", *self.PLACE, *columns])

    def face(self, row: dict[str, Any]) -> None:
        eyes = [""] * 4 if row["eyes"] is None else [f"{value:.1f}" for eye in row["eyes"] for value in eye]
        told = [row["attributes"][name] for name in self._attributes]
        values = [value for each in told for value in (each["probability"], int(each["present"]))]
        self._writer.writerow(
            [row["photo"], row["face"], row["faces"], row["aligned"], *(row["box"] or [""] * 4), *eyes, *values]
        )
        sys.stdout.flush()


class TextOutput(Output):
    """For people: a line for each face and one attribute; for several, those present first, the surest first."""

    def __init__(self, attributes: Sequence[str]) -> None:
        super().__init__(attributes)
        self._console = Console(highlight=False)

    def face(self, row: dict[str, Any]) -> None:
        which = f", face {row['face']} of {row['faces']}" if row["faces"] > 1 else ""
        title = f"{row['photo']}{which}{HOW[row['aligned']]}"
        present = self._tell(row["attributes"], present=True)
        absent = self._tell(row["attributes"], present=False)
        if len(self._attributes) == 1:
            self._line(f"{title}: {present or absent}")
        else:
            self._line(title, "bold")
            self._line(present or "none of them", "green", indent=2)
            if absent:
                self._line(absent, "dim", indent=2)
        for name, file in row["heat_maps"].items():
            self._line(f"heat map of {words(name)}: {file}", indent=2)

    def _tell(self, attributes: dict[str, Any], present: bool) -> str:
        """Those that are present, or those that are not, each with the probability of just that."""
        sure = {
            name: each["probability"] if present else 1 - each["probability"]
            for name, each in attributes.items()
            if each["present"] == present
        }
        surest = sorted(sure.items(), key=lambda item: -item[1])
        return ", ".join(f"{words(name, present)} {percent(value)}" for name, value in surest)

    def _line(self, text: str, style: str = "", indent: int = 0) -> None:
        if self._console.is_terminal:
            self._console.print(Padding(Text(text, style), (0, 0, 0, indent)))
        else:
            print(f"{' ' * indent}{text}", flush=True)


def percent(probability: float) -> str:
    """In whole percent; nothing is said to be certain."""
    if probability > 0.995:
        return ">99 %"
    return "<1 %" if probability < 0.005 else f"{100 * probability:.0f} %"


def fitting(about: Description, height: int, width: int) -> NDArray[np.float64]:
    """The transform [2, 3] that `TrainedModel.fit` applies to an image of this size."""
    top, left, crop_height, crop_width = about.region(height, width)
    down, across = about.image_size[0] / crop_height, about.image_size[1] / crop_width
    return np.array([[across, 0, across * (0.5 - left) - 0.5], [0, down, down * (0.5 - top) - 0.5]])


def draw_heat_map(
    pixels_HWC: NDArray[np.uint8],
    heat_HW4: NDArray[np.uint8],
    to_heat: NDArray[np.float64],
    caption: tuple[str, str],
) -> Image.Image:
    """A photograph with a heat map over it where the model looked, that place framed, and two lines below.

    Args:
        pixels_HWC: the photograph, uint8 RGB.
        heat_HW4: the heat map, uint8 RGBA, of another size.
        to_heat: transform [2, 3] from the photograph to the heat map.
        caption: a line in large letters, and one in small ones.
    """
    height, width = pixels_HWC.shape[:2]
    least, most = HEAT_MAP_SIDES
    scale = float(np.clip(max(height, width), least, most)) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    across, down = size[0] / width, size[1] / height
    to_canvas = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2]])
    canvas_HWC = cv2.resize(pixels_HWC, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    from_heat = compose(to_canvas, inverse(to_heat))

    # Colours are weighted by their opacity first: what lies outside of the heat map is black and must not show.
    weighted = heat_HW4.astype(np.float32) / 255
    weighted[..., :3] *= weighted[..., 3:]
    laid = cv2.warpAffine(weighted, from_heat, size)
    canvas_HWC = (canvas_HWC * (1 - laid[..., 3:]) + 255 * laid[..., :3]).round().clip(0, 255).astype(np.uint8)
    bottom, right = np.array(heat_HW4.shape[:2]) - 0.5
    corners = moved(from_heat, np.array([(-0.5, -0.5), (right, -0.5), (right, bottom), (-0.5, bottom)]))
    cv2.polylines(canvas_HWC, [corners.round().astype(np.int32)], isClosed=True, color=(255, 255, 255), thickness=2)

    large, small = (ImageFont.load_default(max(8.0, size[0] / share)) for share in (22, 34))
    margin = size[0] / 44
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    heights = [measure.textbbox((0, 0), line, font)[3] for line, font in zip(caption, (large, small), strict=True)]
    framed = Image.new("RGB", (size[0], round(size[1] + sum(heights) + 3 * margin)), "white")
    framed.paste(Image.fromarray(canvas_HWC))
    pen = ImageDraw.Draw(framed)
    pen.text((margin, size[1] + margin), caption[0], "black", large)
    pen.text((margin, size[1] + heights[0] + 2 * margin), caption[1], "dimgrey", small)
    return framed


@contextmanager
def progress(total: int, silent_output: bool) -> Iterator[Callable[[], None]]:
    """A bar on the terminal, where the results do not stand there as well; yields what moves it by one photograph."""
    console = Console(stderr=True)
    hidden = total < 2 or not console.is_terminal or (sys.stdout.isatty() and not silent_output)
    columns = (TextColumn("photographs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=hidden) as bar:
        yield partial(bar.advance, bar.add_task("photographs", total=total))
