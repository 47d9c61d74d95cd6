"""A folder of drawn faces, in CelebA's own file formats."""

import csv
import signal
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

from distrib.base.errors import UserError
from distrib.base.files import folder_written_whole
from distrib.faces.attributes import ATTRIBUTES, Face, sample_face
from distrib.faces.canvas import Box
from distrib.faces.drawing import draw_face

MINIMUM_COUNT = 50  # enough for one identity in each split, whatever the seed
MAXIMUM_COUNT = 999_999  # CelebA's file names have six digits
_CHUNK = 50  # images that a worker draws before it reports


def write_faces(out: Path, count: int, seed: int, workers: int, report: Callable[[int], None] = lambda _: None) -> None:
    """Write `count` drawn faces with their annotations to the folder `out`, all or nothing.

    The folder's bytes depend on `count` and `seed` alone. It holds `img_align_celeba/NNNNNN.jpg` (RGB, 178x218),
    `list_attr_celeba.txt`, `list_eval_partition.txt` and `identity_CelebA.txt` as CelebA has them, and `boxes.csv`
    (image, part, left, top, right, bottom; pixels, right and bottom exclusive).

    Args:
        out: a folder that does not exist, or is empty.
        count: number of images.
        seed: not negative.
        workers: number of processes that draw.
        report: called with the number of images finished since the last call.

    Raises:
        UserError: `out` is in use or cannot be written, or a number is out of range.
    """
    if not MINIMUM_COUNT <= count <= MAXIMUM_COUNT:
        raise UserError(
            f"--count is {count}, but a set has {MINIMUM_COUNT} to {MAXIMUM_COUNT} faces: choose a number among these."
        )
    if seed < 0:
        raise UserError(f"--seed is {seed}, but a seed is not negative: choose 0 or more.")
    if workers < 1:
        raise UserError(f"--workers is {workers}, but at least one process has to draw: choose 1 or more.")
    with folder_written_whole(out, "--out") as staged:
        (staged / "img_align_celeba").mkdir()
        _write(staged, count, seed, workers, report)


def _write(folder: Path, count: int, seed: int, workers: int, report: Callable[[int], None]) -> None:
    faces = [sample_face(seed, index) for index in range(count)]
    _write_lines(folder / "list_attr_celeba.txt", [str(count), " ".join(ATTRIBUTES) + " ", *map(_attribute_row, faces)])
    partition = splits([face.identity for face in faces])
    _write_lines(
        folder / "list_eval_partition.txt",
        [f"{file_name(face.index)} {split}" for face, split in zip(faces, partition, strict=True)],
    )
    _write_lines(folder / "identity_CelebA.txt", [f"{file_name(face.index)} {face.identity + 1}" for face in faces])

    chunks = [(folder, seed, range(start, min(start + _CHUNK, count))) for start in range(0, count, _CHUNK)]
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "part", "left", "top", "right", "bottom"])
        with closing(_drawn(chunks, workers)) as drawn:
            for boxes in drawn:
                for name, parts in boxes:
                    writer.writerows((name, part, *box) for part, box in sorted(parts.items()))
                report(len(boxes))


_Job = tuple[Path, int, range]  # folder, seed, indices
_Boxes = list[tuple[str, dict[str, Box]]]  # of each image, by file name


def _drawn(jobs: list[_Job], workers: int) -> Generator[_Boxes, None, None]:
    """Draw all jobs and yield their boxes in order; closing it gives up what has not begun."""
    if workers == 1:
        yield from map(_draw_chunk, jobs)
        return
    # Spawned, not forked: a fork of a process with threads (torch, a progress bar) may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_interrupts) as pool:
        try:
            yield from pool.map(_draw_chunk, jobs)
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches the workers too; the process that started them ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _draw_chunk(job: _Job) -> _Boxes:
    folder, seed, indices = job
    return [(file_name(index), _draw_file(folder, sample_face(seed, index))) for index in indices]


def _draw_file(folder: Path, face: Face) -> dict[str, Box]:
    drawing = draw_face(face)
    quality = int(face.passing("jpeg").integers(80, 96))
    drawing.image.save(folder / "img_align_celeba" / file_name(face.index), format="JPEG", quality=quality)
    return drawing.boxes


def file_name(index: int) -> str:
    """CelebA's name of image `index` (from 0)."""
    return f"{index + 1:06}.jpg"


def splits(identities: list[int]) -> list[int]:
    """The split of each image: 0 train, 1 valid, 2 test, about 80, 10 and 10 %, no identity in two of them.

    Args:
        identities: of each image, each identity's images together, at least three identities.
    """
    count = len(identities)
    starts = [place for place in range(count) if place == 0 or identities[place] != identities[place - 1]]
    # The last two identities open the smaller splits at the latest.
    valid = min(bisect_left(starts, 0.8 * count), len(starts) - 2)
    test = min(max(bisect_left(starts, 0.9 * count), valid + 1), len(starts) - 1)
    return [(place >= starts[valid]) + (place >= starts[test]) for place in range(count)]


def _attribute_row(face: Face) -> str:
    # CelebA sets off the first value with one space and pads the others to two characters.
    first, *others = (1 if face.attributes[name] else -1 for name in ATTRIBUTES)
    return f"{file_name(face.index)} {first}" + "".join(f" {value:2}" for value in others)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    # CelebA's files end their lines as DOS does.
    path.write_text("".join(f"{line}\r\n" for line in lines), encoding="ascii", newline="")
