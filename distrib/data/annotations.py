"""Annotation files, from text to arrays: CelebA's own (.txt, and .csv as in the common archive) and table.csv.

Legend: N rows, A attributes.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distrib.errors import UserError, printable

# CelebA's own files write "absent" as -1, many copies of them as 0; no file gives the two a different meaning.
_VALUES = {"-1": 0, "0": 0, "1": 1}
_SPLITS = {"0": 0, "1": 1, "2": 2, "train": 0, "valid": 1, "val": 1, "validation": 1, "test": 2}
_EXPECTED_SPLIT = "train, valid or test, or 0, 1 or 2"
_FILE_COLUMNS = ("image", "file", "image_id")
# No table has these: where one stands, the file is damaged, or is to look other than it is.
_CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\r")) + b"\x7f"
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Annotations:
    """What one file says, a row per image in the order of the file.

    Attributes:
        names: N file names, none twice.
        attributes: A names, none twice.
        targets: uint8 [N, A] in {0, 1}.
        split: int8 [N], 0 train, 1 validation, 2 test; None where the file has no such column.
        identity: int64 [N], number of the group; None where the file has no such column.
    """

    names: list[str]
    attributes: tuple[str, ...]
    targets: NDArray[np.uint8]
    split: NDArray[np.int8] | None = None
    identity: NDArray[np.int64] | None = None


def read_attributes(file: Path) -> Annotations:
    """CelebA's table of attributes: list_attr_celeba.txt, or .csv with the header image_id,5_o_Clock_Shadow,...

    Raises:
        UserError: if the file cannot be read, or a line of it is not as expected.
    """
    lines = _read_lines(file)
    if file.suffix == ".csv":
        header = _csv_header(file, lines)
        start, separator = 1, ","
    else:
        header = ["image_id", *(lines[1].split() if len(lines) > 1 else [])]
        start, separator = 2, " "
        _check_row_count(file, lines[0].strip(), len(lines) - start)
    _check_header(file, start, header, attributes=range(1, len(header)))
    if len(lines) == start:
        raise UserError(f"{file} has a header but no rows: expected a row per image; get the whole file again")
    quick = parse_regular(lines[start:], separator, len(header) - 1)
    if quick is None:
        names, targets, _ = _parse_rows(file, lines, start, header, 0, range(1, len(header)))
    else:
        names, targets = quick
    _check_names(file, names)
    return Annotations(names, tuple(header[1:]), targets)


def read_table_csv(file: Path) -> Annotations:
    """A table of one's own: a header, then per image its file name, its attributes, and where known split and group.

    The file name stands in the column called image, file or image_id, else in the first one. `split` (train, valid or
    test; 0, 1 or 2) and `group` (any text or number: rows with the same one belong together, such as the pictures of
    one person) are optional. Every other column is an attribute, 1 present, 0 or -1 absent.

    Raises:
        UserError: if the file cannot be read, or a line of it is not as expected.
    """
    lines = _read_lines(file)
    header = _csv_header(file, lines)
    name = next((header.index(column) for column in _FILE_COLUMNS if column in header), 0)
    attributes = [i for i, column in enumerate(header) if i != name and column not in ("split", "group")]
    _check_header(file, 1, header, attributes)
    if len(lines) == 1:
        raise UserError(f"{file} has a header but no rows: add a row per image")
    names, targets, rows = _parse_rows(file, lines, 1, header, name, attributes)
    _check_names(file, names)
    split = identity = None
    if "split" in header:
        column = header.index("split")
        wrong = next((where for where in rows if where[1][column] not in _SPLITS), None)
        if wrong is not None:
            line, row = wrong
            raise UserError(f"{file}, line {line} has {_shown(row[column])} for split: expected {_EXPECTED_SPLIT}")
        split = np.array([_SPLITS[row[column]] for _, row in rows], dtype=np.int8)
    if "group" in header:
        column = header.index("group")
        empty = next((line for line, row in rows if not row[column]), None)
        if empty is not None:
            raise UserError(f"{file}, line {empty} has no group: fill it in, or remove the column group")
        numbers = {group: number for number, group in enumerate(sorted({row[column] for _, row in rows}))}
        identity = np.array([numbers[row[column]] for _, row in rows], dtype=np.int64)
    return Annotations(names, tuple(header[i] for i in attributes), targets, split, identity)


def read_partition(file: Path, names: list[str]) -> tuple[NDArray[np.int8], list[str]]:
    """CelebA's own split: int8 [N] for these names (0 train, 1 validation, 2 test), and notes for the user.

    Raises:
        UserError: if the file cannot be read, a line is not as expected, or a name is missing or there twice.
    """
    numbers, notes = _read_pairs(file, names, _SPLITS.get, _EXPECTED_SPLIT)
    return np.array(numbers, dtype=np.int8), notes


def read_identity(file: Path, names: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Who is in the picture: int64 [N] for these names, and notes for the user.

    Raises:
        UserError: if the file cannot be read, a line is not as expected, or a name is missing or there twice.
    """
    numbers, notes = _read_pairs(file, names, _identity_number, "a whole number of at most 18 digits")
    return np.array(numbers, dtype=np.int64), notes


def few(names: Sequence[str]) -> str:
    """The first three of these names for a sentence."""
    # Names on disk may hold line ends and bytes that are no text.
    shown = ", ".join(printable(name) for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def parse_regular(lines: Sequence[str], separator: str, width: int) -> tuple[list[str], NDArray[np.uint8]] | None:
    """Names and targets of rows that all look like `NAME -1  1 ...`, by whole-file operations.

    Args:
        lines: the rows, without the header.
        separator: a comma, or a blank, which stands for any number of them.
        width: number of attributes A.

    Returns:
        N names and uint8 [N, A], or None if anything at all is out of the ordinary. The row-by-row parser then
        decides, which is 10 times slower and knows what to say to the user.
    """
    names, values_of = _halves(lines, separator)
    heads = "\n".join(names)
    if heads.split() != names or '"' in heads or len(set(names)) != len(names):
        return None
    body = separator + f"\n{separator}".join(values_of) + "\n"
    # With -1 as 0 every regular row has the same length, so that the file is a grid of bytes.
    body = body.replace("-1", "0")
    if separator == " ":
        while "  " in body:
            body = body.replace("  ", " ")
        body = body.replace(" \n", "\n")
    cells = np.frombuffer(body.encode(), dtype=np.uint8)
    if len(cells) != len(names) * (2 * width + 1):
        return None
    grid = cells.reshape(len(names), 2 * width + 1)
    values = grid[:, 1::2]
    regular = (
        (grid[:, 0:-1:2] == ord(separator)).all()
        and (grid[:, -1] == ord("\n")).all()
        and ((values | 1) == ord("1")).all()  # 0 and 1 differ in the last bit alone
    )
    return (names, values - np.uint8(ord("0"))) if regular else None


def _parse_rows(
    file: Path, lines: Sequence[str], start: int, header: Sequence[str], name: int, attributes: Sequence[int]
) -> tuple[list[str], NDArray[np.uint8], list[tuple[int, list[str]]]]:
    """Names, targets uint8 [N, A], and the fields of each row after its line number, from any valid rows."""
    values = bytearray()
    line_of: dict[str, int] = {}
    rows = [row for row in _fields(file, lines) if row[0] > start]
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{file}, line {line} has the wrong number of fields: found {len(row)}, expected {len(header)}, a file "
                f"name and the columns of the header; correct the line, or get the file again"
            )
        image = row[name]
        if not image:
            raise UserError(f"{file}, line {line} has no file name: fill it in, or remove the line")
        if image in line_of:
            raise UserError(
                f"{file}, line {line} names {_shown(image)}, as line {line_of[image]} does: remove one of the two"
            )
        line_of[image] = line
        try:
            values.extend([_VALUES[row[i]] for i in attributes])
        except KeyError:
            wrong = next(i for i in attributes if row[i] not in _VALUES)
            raise UserError(
                f"{file}, line {line} has {_shown(row[wrong])} for {header[wrong]}: expected 1 (present), or 0 or -1 "
                f"(absent)"
            ) from None
    targets = np.frombuffer(values, dtype=np.uint8).reshape(len(rows), len(attributes))
    return list(line_of), targets, rows


def _read_pairs(
    file: Path, names: list[str], decode: Callable[[str], int | None], expected: str
) -> tuple[list[int], list[str]]:
    """The number that a file of two columns gives to each of these names, and notes for the user."""
    lines = _read_lines(file)
    start, separator = (1, ",") if file.suffix == ".csv" else (0, " ")
    # CelebA's files list the same images in the same order; then nothing has to be looked up.
    listed, texts = _halves(lines[start:], separator)
    if listed == names:
        quick = {text: decode(text) for text in set(texts)}
        regular = {text: number for text, number in quick.items() if number is not None}
        if len(regular) == len(quick):
            return [regular[text] for text in texts], []
    number_of: dict[str, int] = {}
    for line, row in _fields(file, lines):
        if line <= start:
            continue
        if len(row) != 2:
            raise UserError(
                f"{file}, line {line} has the wrong number of fields: found {len(row)}, expected 2, a file name and a "
                f"number; correct the line, or get the file again"
            )
        name, text = row
        if name in number_of:
            raise UserError(f"{file}, line {line} names {_shown(name)} a second time: keep one of its lines")
        number = decode(text)
        if number is None:
            raise UserError(f"{file}, line {line} has {_shown(text)} for {_shown(name)}: expected {expected}")
        number_of[name] = number
    absent = [name for name in names if name not in number_of]
    if absent:
        raise UserError(
            f"{file} has no line for {len(absent)} of the {len(names)} images in the table ({few(absent)}): get the "
            f"file that belongs to this table"
        )
    notes = []
    if len(number_of) > len(names):
        known = set(names)
        extra = [name for name in number_of if name not in known]
        notes = [
            f"{file} also names images that are not in the table: {len(extra)} ({few(extra)}), which are left out."
        ]
    return [number_of[name] for name in names], notes


def _halves(lines: Sequence[str], separator: str) -> tuple[list[str], list[str]]:
    """What stands before and after the first separator of each line."""
    # Cutting twice is faster than keeping the pairs, among which the garbage collector would search again and again.
    return [line.partition(separator)[0] for line in lines], [line.partition(separator)[2] for line in lines]


def _identity_number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _read_lines(file: Path) -> list[str]:
    """The lines of a text file without their ends, be they LF, CRLF or CR, and without blank lines at the end."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check the file and its permissions") from None
    try:
        text = raw.decode("utf-8-sig")  # spreadsheets put a byte-order mark in front of their CSV files
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line} is not UTF-8 text: save the file as UTF-8, or get it again") from None
    if not raw.isascii() or len(raw.translate(None, _CONTROL_BYTES)) < len(raw):
        flaw = _CONTROL_CHARACTERS.search(text)
        if flaw is not None:
            line = text.count("\n", 0, flaw.start()) + 1
            raise UserError(
                f"{file}, line {line} is not UTF-8 text, but has the control character {flaw[0]!r}: save the file as "
                f"UTF-8, or get it again"
            )
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{file} is empty: get the file again")
    return lines


def _fields(file: Path, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line; commas separate them in .csv files, white space in others."""
    if file.suffix != ".csv":
        yield from enumerate(map(str.split, lines), 1)
        return
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num} is not valid CSV ({error}): correct the line") from None


def _csv_header(file: Path, lines: Sequence[str]) -> list[str]:
    _, header = next(_fields(file, lines))
    return [column.strip() for column in header]


def _check_row_count(file: Path, count: str, rows: int) -> None:
    if not re.fullmatch("[0-9]+", count):
        raise UserError(
            f"{file}, line 1 reads {_shown(count)} where the number of rows is expected, as in CelebA's own file: get "
            f"the file again, or give it the ending .csv if it is one"
        )
    if count.lstrip("0") != str(max(rows, 0)).lstrip("0"):
        raise UserError(
            f"{file}, line 1 announces {count[:20]} rows but {max(rows, 0)} follow: the file is incomplete or was "
            f"edited; get it again, or correct line 1"
        )


def _check_header(file: Path, line: int, header: Sequence[str], attributes: Sequence[int]) -> None:
    if not attributes:
        raise UserError(f"{file}, line {line} names no attribute: expected a header with the attributes' names")
    unnamed = next((i for i, column in enumerate(header) if not column), None)
    if unnamed is not None:
        raise UserError(f"{file}, line {line} has no name for column {unnamed + 1}: name or remove the column")
    twice = next((column for i, column in enumerate(header) if column in header[:i]), None)
    if twice is not None:
        raise UserError(f"{file}, line {line} names {_shown(twice)} twice: give every column a name of its own")


def _check_names(file: Path, names: Sequence[str]) -> None:
    """Refuse names that lead out of the folder of the images."""
    if "/" not in "\n".join(names):
        return
    out = next((name for name in names if name.startswith("/") or ".." in name.split("/")), None)
    if out is not None:
        raise UserError(
            f"{file} names {_shown(out)}, which lies outside of the folder of the images: name it from that folder on "
            f"(a link in the folder may lead to it)"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
