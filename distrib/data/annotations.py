"""Annotation files, from text to arrays: CelebA's own, copies of them as CSV, and a table.csv of one's own.

What a file is, its content says and not its name's ending. Legend: N rows, A attributes.
"""

import csv
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.words import few
from distrib.data.images import ENDINGS

# CelebA's own files write "absent" as -1, many copies of them as 0. A column with both means something else by one.
_VALUES = {"-1": 0, "0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}
EXPECTED_VALUE = "expected 1 (present), or 0 or -1 (absent), or true and false, or yes and no"
SPLIT_NUMBERS = {
    "0": 0, "1": 1, "2": 2, "train": 0, "training": 0, "valid": 1, "val": 1, "validation": 1, "dev": 1, "test": 2,
    "testing": 2,
}  # fmt: skip
_EXPECTED_SPLIT = "train, valid or test, or 0, 1 or 2"
# What spreadsheets and pandas write where there is nothing.
_NOTHING = {"", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"}
# A column's name in lower case, without blanks and underscores.
_FILE_COLUMNS = (
    "image", "file", "imageid", "filename", "imagename", "imagefile", "imagepath", "path", "filepath", "fullpath",
    "img", "imgname", "imgfile", "imgpath", "imgid",
)  # fmt: skip
_SEPARATORS = ",;\t|"
_WORDS = re.compile(r'"([^"]*)"|(\S+)')
# What comes in place of a table, by its first bytes in lower case.
_OTHER_KINDS = {
    b"pk\x03\x04": ("a workbook or a zip archive", "save it as CSV, or unpack it"),
    b"<!doctype": ("a web page", "fetch the file itself"),
    b"<html": ("a web page", "fetch the file itself"),
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
}
# No table has these: where one stands, the file is damaged, or is to look other than it is.
_CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\r")) + b"\x7f"
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Flaw:
    """Why a column is no attribute.

    Attributes:
        what: a clause that names file, line and column.
        remedy: what makes it one; empty where the column is of another kind, such as an age.
    """

    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Annotations:
    """What one file says, a row per image in the order of the file.

    Attributes:
        file: it.
        names: N file names, none twice.
        attributes: A names, none twice: the columns that say of every image whether something is present.
        targets: uint8 [N, A] in {0, 1}.
        split: int8 [N], 0 train, 1 validation, 2 test; None where the file has no such column.
        identity: int64 [N], number of the group; None where the file has no such column.
        flaws: the other columns, by name.
    """

    file: Path
    names: list[str]
    attributes: tuple[str, ...]
    targets: NDArray[np.uint8]
    split: NDArray[np.int8] | None = None
    identity: NDArray[np.int64] | None = None
    flaws: Mapping[str, Flaw] = field(default_factory=dict)


@dataclass(frozen=True)
class _Head:
    """How a file is to be read.

    Attributes:
        columns: their names; empty for one without a name.
        start: number of lines before the first row.
        separator: one of `_SEPARATORS`, or a blank, which stands for any white space.
        celeba: whether it is in CelebA's own format, which has a file name and then nothing but attributes.
    """

    columns: list[str]
    start: int
    separator: str
    celeba: bool


def read_attributes(file: Path) -> Annotations:
    """A table of attributes: CelebA's list_attr_celeba, or a header and a row per image.

    CelebA's own format is the number of rows, a line with the attributes' names, and then per image its file name and
    its attributes, separated by blanks.

    Any other table has a header, and commas, semicolons, tabs, bars or blanks between its columns. The file name stands
    in the column that is called image, file, image_id, filename, path or the like, else in the first one that holds
    names of images, else in the first one. `split` (train, valid or test; 0, 1 or 2) and `group` (any text or number:
    rows with the same one belong together, such as the images of one person) are optional. Every other column that
    holds nothing but labels is an attribute: 1, 1.0, True or yes for present; 0, -1, 0.0, -1.0, False or no for absent.
    Upper and lower case are the same in all of these. The numbers of the rows, as pandas writes them, are passed over.
    What is wrong with a column is a flaw of that column, which matters to those alone who ask for it.

    Raises:
        UserError: if the file cannot be read, a line of it is not as expected, or there is no column for labels.
    """
    lines = _read_lines(file)
    head = _read_head(file, lines)
    columns, start = head.columns, head.start
    if len(lines) <= start:
        raise UserError(f"{file} has a header but no rows: add a row per image, or get the whole file again")
    name, split, group = 0, None, None
    if not head.celeba:
        split, group = (_column(file, head, word) for word in ("split", "group"))
        sample = [row for _, row in islice(_rows(file, lines, head), 20)]
        name = _file_column(columns, sample, {split, group})
    labels = [i for i in range(len(columns)) if i not in (name, split, group)]
    if not labels:
        raise UserError(
            f"{file}, line {start} names no attribute: expected a header with the attributes' names after the file "
            f"name, separated by commas"
        )
    quick = None
    if name == 0 and len(labels) == len(set(columns[1:]) - {""}) == len(columns) - 1 and head.separator in ", ":
        quick = parse_regular(lines[start:], head.separator, len(labels))
    if quick is not None:
        names, targets = quick
        check_names(file, names)
        return Annotations(file, names, tuple(columns[1:]), targets)
    numbers, cells = _parse_rows(file, lines, head, name)
    names = list(cells[name])
    check_names(file, names)
    found, flaws = _attributes(file, head, labels, numbers, cells)
    if not found and not flaws:
        raise UserError(f"{file}, line {start} names no attribute; add a column of 1 and 0 for each")
    return Annotations(
        file,
        names,
        tuple(found),
        np.stack(list(found.values()), axis=1) if found else np.empty((len(names), 0), np.uint8),
        None if split is None else _splits(file, numbers, cells[split]),
        None if group is None else _groups(file, numbers, cells[group]),
        flaws,
    )


def read_partition(file: Path, names: list[str]) -> tuple[NDArray[np.int8], list[str]]:
    """CelebA's own split: int8 [N] for these names (0 train, 1 validation, 2 test), and notes for the user.

    Raises:
        UserError: if the file cannot be read, a line is not as expected, or a name is missing or there twice.
    """
    numbers, notes = _read_pairs(file, names, _split, _EXPECTED_SPLIT)
    return np.array(numbers, dtype=np.int8), notes


def read_identity(file: Path, names: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Who is in the image: int64 [N] for these names, and notes for the user.

    Raises:
        UserError: if the file cannot be read, a line is not as expected, or a name is missing or there twice.
    """
    numbers, notes = _read_pairs(file, names, _identity_number, "a whole number of at most 18 digits")
    return np.array(numbers, dtype=np.int64), notes


def spelling(name: str) -> str:
    """What is the same in all ways to write one file's name; the ending of an image is left out."""
    name = name.replace("\\", "/").strip()
    if "./" in name or "//" in name:
        name = posixpath.normpath(name)
    name = name.lower() if name.isascii() else _folded(name)
    stem, _, ending = name.rpartition(".")
    return stem if stem and ending in ENDINGS else name


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
    if "-" in body and "0" in body:
        return None  # one column may have both
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


def _read_head(file: Path, lines: Sequence[str]) -> _Head:
    first = lines[0].strip(" \t" + _SEPARATORS)
    if re.fullmatch("[0-9]+", first):
        separator = _separator(lines[1:]) if len(lines) > 1 and lines[0].strip() != first else " "
        attributes = next(_fields(file, lines[1:], separator))[1] if len(lines) > 1 else []
        attributes = [column.strip() for column in attributes if column.strip()]
        _check_row_count(file, first, len(lines) - 2)
        return _Head(["image_id", *attributes], 2, separator, celeba=True)
    # How spreadsheets are told the separator.
    hint = re.fullmatch(f'"?sep=([{_SEPARATORS}])"?[{_SEPARATORS}]*', lines[0])
    start = 2 if hint else 1
    separator = hint[1] if hint else _separator(lines)
    # Spreadsheets may break a line within a cell.
    start, header = next(_fields(file, lines[start - 1 :], separator, start - 1), (start, []))
    header = [column.replace("\n", " ") for column in header]
    columns = [re.sub(r"Unnamed: [0-9]+(\.[0-9]+)?", "", column.strip()) for column in header]  # pandas' word for none
    image = next((column for column in columns if _is_image(column)), None)
    if image is not None:
        raise UserError(
            f"{file}, line {start} has {_shown(image)} where the name of a column is expected: put a line with the "
            f"names before it, such as file,smiling"
        )
    if len(columns) > 1 and columns[0] and not any(columns[1:]):
        row = next(_fields(file, lines[start:], separator, start), (0, []))[1]
        if len(list(filter(str.strip, row))) > 1 and not any(
            _is_image(cell) or _label(cell) is not None for cell in row
        ):
            raise UserError(
                f"{file}, line {start} has nothing but {_shown(columns[0])} where the names of the columns are "
                f"expected, which the next line seems to hold: remove what stands before that line"
            )
    head = _Head(columns, start, separator, celeba=False)
    if separator == " " and len(lines) > start and len(lines[start].split()) == len(columns) + 1:
        raise UserError(
            f"{file}, line {start} reads {_shown(first)} where the number of rows is expected, as in CelebA's own "
            f"file: put a line with that number before it, or get the file again"
        )
    return head


def _separator(lines: Sequence[str]) -> str:
    """What separates the columns of a table, by its header and its first row."""
    header, row = ([re.sub('"[^"]*"', "x", line) for line in lines[:2]] + [""])[:2]
    there = [separator for separator in _SEPARATORS if separator in header]
    if not there:
        return " " if len(header.split()) > 1 else ","
    return next((each for each in there if header.count(each) == row.count(each)), there[0])


def _column(file: Path, head: _Head, word: str) -> int | None:
    """The column of this name, in whatever case."""
    exact = [i for i, column in enumerate(head.columns) if column == word]
    found = exact or [i for i, column in enumerate(head.columns) if column.casefold() == word]
    if len(found) > 1:
        raise UserError(f"{file}, line {head.start} names the column {word} twice: remove or rename one of the two")
    return found[0] if found else None


def _file_column(columns: Sequence[str], sample: Sequence[Sequence[str]], others: set[int | None]) -> int:
    """The column with the file names, by its name and by what the first rows hold."""
    cells = [[row[i] for row in sample if i < len(row)] for i in range(len(columns))]
    choice = [i for i in range(len(columns)) if i not in others]
    while len(choice) > 1 and not columns[choice[0]] and all(map(_is_number, cells[choice[0]])):
        choice.pop(0)  # pandas' numbers of the rows
    canonical = [re.sub("[^a-z0-9]", "", column.casefold()) for column in columns]
    known = [i for word in _FILE_COLUMNS for i in choice if canonical[i] == word]
    images = [i for i in choice if cells[i] and all(map(_is_image, cells[i]))]
    exact = [columns.index(word) for word in ("image", "file", "image_id") if word in columns]
    # One that holds labels is the attribute of having, say, an image.
    names = [i for i in known if not all(_label(cell) is not None for cell in cells[i])]
    return [*(i for i in known if i in images), *exact, *names, *images[:1], *choice, 0][0]


def _parse_rows(file: Path, lines: Sequence[str], head: _Head, name: int) -> tuple[list[int], list[tuple[str, ...]]]:
    """The number of each row's line, and the cells of each column, from any valid rows; no file name comes twice."""
    width = len(head.columns)
    named = max((i + 1 for i, column in enumerate(head.columns) if column), default=width)
    line_of: dict[str, int] = {}
    rows = []
    for line, row in _rows(file, lines, head):
        if not any(map(str.strip, row)):
            raise UserError(f"{file}, line {line} is empty: remove it")
        # Spreadsheets fill up what lies beside the table, or leave it out.
        if named <= len(row) < width:
            row = [*row, *[""] * (width - len(row))]
        elif len(row) > width and not "".join(row[width:]).strip():
            row = row[:width]
        if len(row) != width:
            raise UserError(
                f"{file}, line {line} has the wrong number of fields: found {len(row)}, expected {width}, a file "
                f"name and the columns of the header; correct the line, or get the file again"
            )
        image = row[name]
        if not image.strip():
            raise UserError(f"{file}, line {line} has no file name: fill it in, or remove the line")
        if image in line_of:
            raise UserError(
                f"{file}, line {line} names {_shown(image)}, as line {line_of[image]} does: remove one of the two"
            )
        line_of[image] = line
        rows.append(row)
    return list(line_of.values()), list(zip(*rows, strict=True))


def _attributes(
    file: Path, head: _Head, labels: Sequence[int], lines: Sequence[int], cells: Sequence[Sequence[str]]
) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Flaw]]:
    """The labels uint8 [N] of each of these columns that holds nothing else, and what is wrong with the others."""
    found: dict[str, NDArray[np.uint8]] = {}
    flaws: dict[str, Flaw] = {}
    leading = next((i for i, column in enumerate(head.columns) if column), 0)
    for i in labels:
        column, values = head.columns[i], cells[i]
        label_of = {text: _label(text) for text in set(values)}
        if not column:
            numbered = i < leading and len(label_of) == len(values) and all(map(_is_number, label_of))
            if not numbered and any(map(str.strip, label_of)):
                place = f"{file}, line {head.start} has no name for column {i + 1}"
                flaws[f"column {i + 1}"] = Flaw(place, "name or remove the column")
        elif head.columns.count(column) > 1:
            place = f"{file}, line {head.start} names {_shown(column)} twice"
            flaws[column] = Flaw(place, "give every column a name of its own")
        elif None in label_of.values():
            flaws[column] = _flaw(file, column, lines, values, label_of)
        elif {"-1", "0"} <= set(map(_plain, label_of)):
            negative, zero = (lines[[_plain(text) for text in values].index(word)] for word in ("-1", "0"))
            flaws[column] = Flaw(
                f"{file} has -1 for {column} in line {negative} and 0 in line {zero}: {EXPECTED_VALUE}, but not both",
                "write absent as one of the two, and leave out the rows where it is unknown",
            )
        else:
            found[column] = np.array([label_of[text] for text in values], dtype=np.uint8)
    return found, flaws


def _flaw(
    file: Path, column: str, lines: Sequence[int], values: Sequence[str], label_of: Mapping[str, int | None]
) -> Flaw:
    wrong = [row for row, text in enumerate(values) if label_of[text] is None]
    # A column without any label is of another kind; in one that has some, what is none is a mistake, or missing.
    text, line = values[wrong[0]], lines[wrong[0]]
    also = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    if text.strip().casefold() in _NOTHING:
        said = f" (but {_shown(text.strip())})" if text.strip() else ""
        return Flaw(
            f"{file}, line {line}{also} has no value for {column}{said}: {EXPECTED_VALUE}",
            "fill it in, or remove the line",
        )
    mistake = 2 * len(wrong) <= len(values)
    return Flaw(
        f"{file}, line {line}{also} has {_shown(text)} for {column}: {EXPECTED_VALUE}",
        "correct it, or get the file again" if mistake else "",
    )


def _splits(file: Path, lines: Sequence[int], cells: Sequence[str]) -> NDArray[np.int8]:
    number_of = {text: _split(text) for text in set(cells)}
    wrong = next((row for row, text in enumerate(cells) if number_of[text] is None), None)
    if wrong is not None:
        raise UserError(
            f"{file}, line {lines[wrong]} has {_shown(cells[wrong])} for split: expected {_EXPECTED_SPLIT}; correct "
            f"it, or remove the column split"
        )
    return np.array([number_of[text] for text in cells], dtype=np.int8)


def _groups(file: Path, lines: Sequence[int], cells: Sequence[str]) -> NDArray[np.int64]:
    empty = next((row for row, text in enumerate(cells) if text.strip() in ("", "nan", "NaN", "<NA>")), None)
    if empty is not None:
        raise UserError(f"{file}, line {lines[empty]} has no group: fill it in, or remove the column group")
    numbers = {group: number for number, group in enumerate(sorted(set(cells)))}
    return np.array([numbers[text] for text in cells], dtype=np.int64)


def _read_pairs(
    file: Path, names: list[str], decode: Callable[[str], int | None], expected: str
) -> tuple[list[int], list[str]]:
    """The number that a file of two columns gives to each of these names, and notes for the user."""
    lines = _read_lines(file)
    separator = _separator(lines)
    first = next(_fields(file, lines, separator))[1]
    # pandas' numbers of the rows stand before the two, under no name.
    skipped = 1 if len(first) > 2 and not first[0].strip().removeprefix("Unnamed: 0") else 0
    start = 0
    if len(first) > skipped + 1 and first[skipped] != names[0] and decode(first[skipped + 1]) is None:
        start = int(first[skipped] not in set(names))  # a header, and no row with a wrong number
    # CelebA's files list the same images in the same order; then nothing has to be looked up.
    listed, texts = _halves(lines[start:], separator)
    if listed == names:
        quick = {text: decode(text) for text in set(texts)}
        regular = {text: number for text, number in quick.items() if number is not None}
        if len(regular) == len(quick):
            return [regular[text] for text in texts], []
    number_of: dict[str, int] = {}
    for line, row in _fields(file, lines[start:], separator, start):
        pair = row[skipped : skipped + 2]
        if len(pair) != 2 or "".join(row[skipped + 2 :]).strip():
            raise UserError(
                f"{file}, line {line} has the wrong number of fields: found {len(row)}, expected {2 + skipped}, a file "
                f"name and a number; correct the line, or get the file again"
            )
        name, text = pair
        if name in number_of:
            raise UserError(f"{file}, line {line} names {_shown(name)} a second time: keep one of its lines")
        number = decode(text)
        if number is None:
            raise UserError(f"{file}, line {line} has {_shown(text)} for {_shown(name)}: expected {expected}")
        number_of[name] = number
    notes = []
    absent = [name for name in names if name not in number_of]
    spelt = {spelling(name): name for name in number_of} if absent else {}
    if absent and len(spelt) == len(number_of) and all(spelling(name) in spelt for name in names):
        other = spelt[spelling(absent[0])]
        notes.append(
            f"{file} spells the names of images differently from the table ({other}, {absent[0]}); they were taken "
            f"for the same images."
        )
        number_of = {name: number_of[spelt[spelling(name)]] for name in names}
    elif absent:
        raise UserError(
            f"{file} has no line for {len(absent)} of the {len(names)} images in the table ({few(absent)}): get the "
            f"file that belongs to this table"
        )
    if len(number_of) > len(names):
        known = set(names)
        extra = [name for name in number_of if name not in known]
        notes.append(
            f"{file} also names images that are not in the table: {len(extra)} ({few(extra)}), which are left out."
        )
    return [number_of[name] for name in names], notes


def _halves(lines: Sequence[str], separator: str) -> tuple[list[str], list[str]]:
    """What stands before and after the first separator of each line."""
    # Cutting twice is faster than keeping the pairs, among which the garbage collector would search again and again.
    return [line.partition(separator)[0] for line in lines], [line.partition(separator)[2] for line in lines]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _label(text: str) -> int | None:
    return _VALUES.get(text, _VALUES.get(_plain(text)))


def _split(text: str) -> int | None:
    return SPLIT_NUMBERS.get(text, SPLIT_NUMBERS.get(_plain(text)))


def _identity_number(text: str) -> int | None:
    text = text if text.isdecimal() else _plain(text)
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _plain(text: str) -> str:
    """A word without case, and a whole number without the point that pandas gives it."""
    return re.sub(r"(?<=[0-9])\.0*$", "", text.strip().casefold()) if len(text) < 40 else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.0)?", text.strip()) is not None


def _is_image(text: str) -> bool:
    return "." in text and text.rpartition(".")[2].strip().lower() in ENDINGS and "://" not in text


def _read_lines(file: Path) -> list[str]:
    """The lines of a text file without their ends, whatever these are, and without blank lines at the end."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check the file and its permissions") from None
    kind, remedy = next((told for start, told in _OTHER_KINDS.items() if raw[:30].lower().startswith(start)), ("", ""))
    if kind:
        raise UserError(f"{file} is {kind} and no table: {remedy}")
    try:
        text = raw.decode(_encoding(raw))
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
    # Python's own csv makes CR CR LF of a line end, on a Windows without newline="".
    lines = text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip(" \t\xa0" + _SEPARATORS):  # spreadsheets keep rows of empty cells
        lines.pop()
    if not lines:
        raise UserError(f"{file} is empty: get the file again")
    return lines


def _encoding(raw: bytes) -> str:
    # Windows' "Unicode" is UTF-16; without its mark, the zero in each of ASCII's characters tells it.
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if len(raw) % 2 == 0 and b"\0" in raw[:2] and raw[:2] != b"\0\0":
        return "utf-16-le" if raw[1] == 0 else "utf-16-be"
    return "utf-8-sig"  # spreadsheets put a byte-order mark in front of their CSV files


def _rows(file: Path, lines: Sequence[str], head: _Head) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row."""
    return _fields(file, lines[head.start :], head.separator, head.start)


def _fields(file: Path, lines: Sequence[str], separator: str, before: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Line number, after those before, and fields of each line; a blank stands for any white space."""
    if separator == " ":
        for number, line in enumerate(lines, before + 1):
            quoted = _WORDS.findall(line) if '"' in line else None
            yield number, line.split() if quoted is None else [inner or bare for inner, bare in quoted]
        return
    reader = csv.reader(lines, strict=True, skipinitialspace=True, delimiter=separator)
    try:
        for row in reader:
            yield reader.line_num + before, row
    except csv.Error as error:
        place = f"{file}, line {reader.line_num + before}"
        raise UserError(f"{place} is not valid CSV ({error}): correct the line") from None


def _check_row_count(file: Path, count: str, rows: int) -> None:
    if count.lstrip("0") != str(max(rows, 0)).lstrip("0"):
        raise UserError(
            f"{file}, line 1 announces {count[:20]} rows but {max(rows, 0)} follow: the file is incomplete or was "
            f"edited; get it again, or correct line 1"
        )


def check_names(file: Path, names: Sequence[str]) -> None:
    """Refuse names that lead out of the folder of the images."""
    if ".." not in "\n".join(names):
        return
    out = next((name for name in names if ".." in name.replace("\\", "/").split("/")), None)
    if out is not None:
        raise UserError(
            f"{file} names {_shown(out)}, which lies outside of the folder of the images: name it from that folder on "
            f"(a link in the folder may lead to it)"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
