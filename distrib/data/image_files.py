"""Where the images of a table are: the files of these names, or else the only files that can be meant.

Legend: N images.
"""

import os
import posixpath
import re
import shlex
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from distrib.base.errors import UserError
from distrib.base.words import few
from distrib.data.annotations import spelling
from distrib.data.images import ENDINGS

# What macOS and Windows leave beside files.
_LEFT_BEHIND = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"}
_UNPACK = {
    ".zip": "unzip -qo {file} -d {folder}",  # over what an earlier try has left
    ".tar": "tar -xf {file} -C {folder}",
    ".tar.gz": "tar -xf {file} -C {folder}",
    ".tgz": "tar -xf {file} -C {folder}",
    ".7z": "7z x -o{folder} {file}",
    ".7z.001": "7z x -o{folder} {file}",
    ".rar": "unrar x {file} {folder}/",
}
_MOST_FILES = 2_000_000  # a folder with more of them is no data set, but a home or a whole disk
_LOOKED_AT = 100  # so many files of a data set are looked at one by one


@dataclass(frozen=True)
class Located:
    """The files of the images.

    Attributes:
        folder: the folder that holds them, which may be one in a zip archive.
        files: N file names relative to it; None where there is none.
        notes: warnings for the user, a sentence each.
        archive: the zip archive, if they lie in one, and what their entries begin with there.
        surplus: files beside the images that no name is of; looked for where all images are needed.
    """

    folder: Path
    files: Sequence[str | None]
    notes: list[str]
    archive: tuple[Path, str] | None = None
    surplus: Sequence[str] = ()


def locate(
    names: Sequence[str],
    folders: Sequence[Path],
    root: Path,
    missing: Literal["stop", "skip"],
    needed: Collection[str] | None = None,
    called: str = "in the table",
) -> Located:
    """The files of N images.

    They are the files of these very names in the first of the folders that holds any, by one listing of each subfolder,
    or else in the first zip archive that is called like one of these folders, beside it, and holds any. For an image
    that is not there, the file is taken that differs in nothing but the ending of another format, upper and lower case,
    `\\` for `/`, or the way in which Unicode writes an accent. Where none of the folders holds any image, such files
    are looked for below all of the root. A file is taken only where no other can be meant, and a note says so.

    Args:
        names: of the images, relative to the folder that holds them.
        folders: that may hold them.
        root: the folder of the data set, around all of them.
        missing: whether an image without a file stops, or is skipped. What is skipped under its own name in a folder
            with others stays so, and the note says which file is near: a run that is resumed has the images it had.
        needed: the images that are used: another may be missing; None: all, and what lies beside them is noted too.
        called: what a sentence says of those that are used.

    Raises:
        UserError: if no image is there, one is not that has to be, or two files or two names may be meant.
    """
    folder, there = _first_listing(names, folders)
    tree: Tree = Tree(root)
    archive: tuple[Path, str] | None = None
    if folder is None and (packed := _first_archive(names, folders)) is not None:
        *_, tree = packed
        archive = packed[:2]
        folder, there = tree.root, set(tree.files)
    files: Sequence[str | None]
    if folder is None:
        tree, start, files, there = _look_further(names, folders, tree, needed)
        folder = Path(f"{tree.root}/{start}")
        archive = None if tree.root == root else (tree.root, start)
    elif there.issuperset(names):
        files = names
    else:
        files = [name if name in there else None for name in names]
        if missing == "stop":
            files = _match(names, files, (Tree(folder) if archive is None else tree).spelt, folder, folders, needed)
    _refuse_doubles(names, files)
    files, reason = _without_hanging(folder, files) if archive is None else (files, None)
    used = set(files)
    notes = []
    if taken := [f"{file} for {name}" for name, file in zip(names, files, strict=True) if file and file != name]:
        notes.append(
            f"{len(taken)} of the {len(names)} images have other names in {folder} than in the table (by folder, "
            f"ending, case, slash or accent), and the only file that can be meant was taken ({few(taken)})."
        )
    elif folder not in folders and archive is None:
        notes.append(f"The images were found in {folder}.")
    known = names if files is names else [*names, *filter(None, files)]
    surplus = _surplus(there - used - set(names), known) if needed is None else []
    if surplus:
        notes.append(f"{folder} holds images without a row in the table: {len(surplus)} ({few(surplus)}), not used.")
    needed = names if needed is None else needed
    lost = []
    if None in used:
        lost = sorted({name for name, file in zip(names, files, strict=True) if file is None}.intersection(needed))
    if lost:
        sentence = f"{folder} lacks {len(lost)} of the {len(needed)} images {called} ({few(lost)})"
        clause, remedy = reason or _nearest(lost[0], used, folder, tree)
        if missing == "stop" or len(lost) == len(needed):
            skip = ", or set data.missing to skip to do without them" if len(lost) < len(needed) else ""
            raise UserError(f"{sentence}{clause}: {remedy or 'put them there'}{skip}")
        notes.append(f"{sentence}{clause}: their rows are skipped.")
    return Located(folder, files, notes, archive, surplus)


class Tree:
    """All files below a folder but for what systems leave behind; read when first asked for.

    Attributes:
        root: the folder.
        too_large: whether it holds more files than a data set has, once `files` was asked for.
    """

    def __init__(self, root: Path, known: list[str] | None = None) -> None:
        self.root = root
        self.too_large = False
        self._known = known

    @cached_property
    def files(self) -> list[str]:
        """Names relative to the root, those in fewer folders first; none where there are more than a data set has."""
        if self._known is not None:  # of a folder in an archive
            return self._known
        files: list[str] = []
        waiting, seen = [""], set()
        for place in waiting:
            folder = self.root / place
            try:
                status = folder.stat()
                found = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue  # by a link, which may lead round in a circle
            seen.add((status.st_dev, status.st_ino))
            for entry in found:
                name = f"{place}/{entry.name}" if place else entry.name
                if not is_kept(name):
                    continue
                # Where 202,599 images are links, a look at what each leads to would take minutes.
                if not entry.is_dir(follow_symlinks=entry.is_symlink() and not is_image(name)):
                    files.append(name)
                elif not entry.name.startswith("."):
                    waiting.append(name)
            if len(files) > _MOST_FILES:
                self.too_large = True
                return []
        return files

    def spelt(self, name: str) -> list[str]:
        """The files that a name relative to the root may mean."""
        return self._by_spelling.get(spelling(name), [])

    def ending(self, name: str, depth: int = 0) -> list[str]:
        """The files whose paths end as a name does without so many of the folders at its beginning."""
        end = "/" + "/".join(spelling(name).strip("/").split("/")[depth:])
        return [file for path, file in self._by_end.get(posixpath.basename(end), []) if path.endswith(end)]

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        files: defaultdict[str, list[str]] = defaultdict(list)
        for file in self.files:
            files[spelling(file)].append(file)
        return files

    @cached_property
    def _by_end(self) -> dict[str, list[tuple[str, str]]]:
        files: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for path, same in self._by_spelling.items():
            files[posixpath.basename(path)] += [(f"/{path}", file) for file in same]
        return files


def end_of(name: str, tree: Tree) -> str | None:
    """The only file of a tree whose path is the end of another path, such as one on another machine."""
    parts = len(spelling(name).strip("/").split("/"))
    found = next((files for depth in range(parts) if (files := tree.ending(name, depth))), [])
    return found[0] if len(found) == 1 else None


def unpacking(tree: Tree, holds: Callable[[str], bool]) -> tuple[str, str]:
    """What is not unpacked, and what unpacks it; both empty where there is no such thing.

    Args:
        tree: of the folder.
        holds: whether a file of this name is one of those that are looked for.
    """
    archives, commands, broken = [], [], []
    for file in tree.files:
        command = _command(tree.root / file)
        if command is None:
            continue
        if file.lower().endswith(".zip"):
            try:
                inside = entries(tree.root / file)
            except OSError:
                broken.append(file)
                continue
            # With an archive in it, its command alone would lead to the same sentence again.
            nested = [inner for name in inside if (inner := _command((tree.root / file).parent / name))]
            if not nested and not any(map(holds, inside)):
                continue
            command = " && ".join([command, *nested[:3]])
        archives.append(file)
        commands.append(command)
    if archives:
        return f"{few(archives)} in {tree.root} is not unpacked", f"unpack it with `{' && '.join(commands[:3])}`"
    return (f"{broken[0]} in {tree.root} is not a complete zip archive", "fetch it again") if broken else ("", "")


def not_searched(tree: Tree) -> str:
    """A clause on a folder that is too large to be searched."""
    return f"; {tree.root} was not searched, because it holds more than {_MOST_FILES:,} files"


def entries(archive: Path) -> list[str]:
    """The names in a zip archive but for what systems leave behind.

    Raises:
        OSError: if it cannot be read, or is not a complete zip archive.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return [name for name in opened.namelist() if is_kept(name) and not name.endswith("/")]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise OSError(str(error)) from None


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, and not of what macOS keeps beside one."""
    return name.rpartition(".")[2].lower() in ENDINGS and is_kept(name)


def is_kept(file: str) -> bool:
    """Whether a file is none of those that macOS and Windows leave beside others."""
    base = posixpath.basename(file)
    return not base.startswith("._") and base.lower() not in _LEFT_BEHIND and "__MACOSX" not in file.split("/")


def _first_listing(names: Sequence[str], folders: Sequence[Path]) -> tuple[Path | None, set[str]]:
    """The first of the folders that holds any of these images, and all that lies beside them."""
    parents = {name.rpartition("/")[0] if "/" in name else "" for name in names}
    for folder in folders:
        there = _list_files(folder, parents)
        if not there.isdisjoint(names):
            return folder, there
    return None, set()


def _first_archive(names: Sequence[str], folders: Sequence[Path]) -> tuple[Path, str, Tree] | None:
    """The first archive in place of one of the folders that holds any of these images; what their entries begin with,
    and all that do. Not one that holds them in several folders."""
    wanted = set(names)
    for archive, inside in _archives(folders):
        found: set[str] = set()
        number: Counter[str] = Counter()
        for entry in inside:
            starts = [start for start in _starts(entry) if entry[len(start) :] in wanted]
            number.update(starts)
            found.update(entry[len(start) :] for start in starts)
        if number and max(number.values()) == len(found):
            start = min(number, key=lambda each: (-number[each], each.count("/"), each))
            below = [entry[len(start) :] for entry in inside if entry.startswith(start)]
            return archive, start, Tree(Path(f"{archive}/{start}"), below)
    return None


def _archives(folders: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """The archives in place of these folders, and what is in each."""
    for archive in (folder.with_name(f"{folder.name}.zip") for folder in folders if folder.name):
        with suppress(OSError):  # not there, or not whole, which is said where there is nothing else
            yield archive, entries(archive)


def _starts(entry: str) -> Iterator[str]:
    """The folders around an entry of an archive, as it begins with them; the outermost is empty."""
    yield ""
    for place, letter in enumerate(entry):
        if letter == "/":
            yield entry[: place + 1]


def _list_files(folder: Path, parents: set[str]) -> set[str]:
    """The entries of these subfolders, by one listing each and no look at single files."""
    there: set[str] = set()
    for parent in parents:
        try:
            entries = os.listdir(folder / parent)  # noqa: PTH208 - a Path for each of 202,599 files would take seconds
        except PermissionError:
            raise
        except OSError:
            continue  # not there, so its images are missing
        there.update(f"{parent}/{entry}" for entry in entries) if parent else there.update(entries)
    return there


def _look_further(
    names: Sequence[str], folders: Sequence[Path], tree: Tree, needed: Collection[str] | None
) -> tuple[Tree, str, Sequence[str | None], set[str]]:
    """Files of images of which none has its name in any of the folders: below the root, or else in an archive in place
    of one of the folders. Their tree, what their names begin with in it, the rest of them, and what lies beside them.
    """
    archives = ((Tree(archive, inside), [archive]) for archive, inside in _archives(folders))
    for place, around in ((tree, folders), *archives):
        best = _best_reading(names, around, place)
        if best is None:
            continue
        found = _match(names, [None] * len(names), best, place.root, around, needed)
        parents = {file[: file.rfind("/") + 1] for file in found if file}
        shared = os.path.commonprefix(list(parents))  # noqa: RUF071 - an entry of an archive may begin with ./ or /
        start = shared[: shared.rfind("/") + 1]
        there = {file[len(start) :] for file in place.files if file[: file.rfind("/") + 1] in parents}
        return place, start, [file and file[len(start) :] for file in found], there
    clause, remedy = _hanging(folders) or _nearest(names[0], set(), tree.root, tree)
    raise UserError(
        f"none of the {len(names)} images in the table ({few(names)}) is in {folders[0]}, or elsewhere in "
        f"{tree.root}{clause}: {remedy or f'put the images into {folders[0]}'}"
    )


def _best_reading(names: Sequence[str], folders: Sequence[Path], tree: Tree) -> Callable[[str], list[str]] | None:
    """What finds most of the images in a tree."""

    def below(folder: str) -> Callable[[str], list[str]]:
        return lambda name: tree.spelt(f"{folder}/{name}")

    def without(depth: int) -> Callable[[str], list[str]]:
        return lambda name: tree.ending(name, depth)

    # The names may begin further down than in these folders, or further up.
    common = posixpath.commonpath({spelling(name).rpartition("/")[0].strip("/") for name in names})
    readings = [
        *(below(folder.relative_to(tree.root).as_posix()) for folder in folders),
        *map(without, range(len(common.split("/")) + 1 if common else 1)),
    ]
    some = _some(names)
    return _best(readings, some) or (None if len(some) == len(names) else _best(readings, names))


def _best(readings: Sequence[Callable[[str], list[str]]], names: Sequence[str]) -> Callable[[str], list[str]] | None:
    """The first of the readings by which most of the names are there; None where none is by any."""
    best, most = None, 0
    for reading in readings:
        number = sum(1 for name in names if reading(name))
        if number > most:
            best, most = reading, number
        if most == len(names):
            break
    return best


def _match(
    names: Sequence[str],
    files: Sequence[str | None],
    candidates: Callable[[str], list[str]],
    root: Path,
    folders: Sequence[Path],
    needed: Collection[str] | None,
) -> list[str | None]:
    """The files of the images that have none yet, each the only candidate that no other image has by its very name.

    Raises:
        UserError: if there are several for one that is needed.
    """
    found = list(files)
    lost = {row: candidates(names[row]) for row, file in enumerate(files) if file is None}
    for row, some in lost.items():
        exact = [each for each in some if f"/{each}".endswith(f"/{names[row]}")]
        if len(exact) == 1:
            found[row] = exact[0]
    taken = set(found)
    for row, some in lost.items():
        if found[row] is not None:
            continue
        free = [each for each in some if each not in taken]
        if len(free) > 1 and (needed is None or names[row] in needed):
            remedy = (
                "remove the one that is not meant, or write the whole name of the other into the table"
                if len(set(map(posixpath.dirname, free))) == 1
                else f"write into the table where the images lie, from {root} on"
                if root in folders
                else f"put those that are meant into {folders[0]}"
            )
            raise UserError(f"{names[row]} in the table may be {' or '.join(free[:3])} in {root}: {remedy}")
        found[row] = free[0] if len(free) == 1 else None
    return found


def _refuse_doubles(names: Sequence[str], files: Sequence[str | None]) -> None:
    """Refuse two names of one file."""
    joined = "\n".join(names)
    if files is names and "./" not in joined and "//" not in joined:
        return
    name_of: dict[str, str] = {}
    for name, file in zip(names, files, strict=True):
        if file is None:
            continue
        other = name_of.setdefault(posixpath.normpath(file), name)
        if other is not name:
            raise UserError(f"the table names one file twice, as {other} and as {name}: remove one of the two rows")


def _without_hanging(folder: Path, files: Sequence[str | None]) -> tuple[Sequence[str | None], tuple[str, str] | None]:
    """The files but for those that are none, such as links to nowhere; a clause on the first of these, and a remedy."""
    known = [file for file in files if file is not None]
    # A look at each of 202,599 files would take minutes on a network's disk; links of a data set that moved hang alike.
    if all((folder / file).is_file() for file in _some(known)):
        return files, None
    left = [file if file is not None and (folder / file).is_file() else None for file in files]
    still = set(left)
    hanging = next((file for file in known if file not in still), None)
    if hanging is None:
        return files, None
    first = folder / hanging
    if first.is_symlink():
        return left, (f"; {first} is a link to {first.readlink()}, where no file is", "make the links lead to images")
    return left, (f"; {first} is {'a folder' if first.is_dir() else 'no file'}", "put images in their places")


def _hanging(folders: Sequence[Path]) -> tuple[str, str] | None:
    """A clause on the first of the folders, or of those around them, that is a link to nowhere, and a remedy."""
    links = (each for folder in folders for each in (folder, folder.parent) if each.is_symlink() and not each.exists())
    link = next(links, None)
    if link is None:
        return None
    return f"; {link} is a link to {link.readlink()}, where nothing is", "make it lead to the images"


def _some(names: Sequence[str]) -> Sequence[str]:
    """Names from all over a data set; all of a small one."""
    return names[:: max(1, len(names) // _LOOKED_AT)]


def _surplus(files: set[str], images: Sequence[str]) -> list[str]:
    """Those of the files that end as one of the images does, in order."""
    if not files:
        return []
    endings = {name.rpartition(".")[2] for name in images}
    return sorted(file for file in files if file.rpartition(".")[2] in endings and is_kept(file))


def _nearest(name: str, used: set[str | None], folder: Path, tree: Tree) -> tuple[str, str]:
    """A clause on what is there in place of an image, and what to do about it, where that is known."""
    before = folder.relative_to(tree.root).as_posix()
    taken = {posixpath.normpath(f"{before}/{file}") for file in used}
    images = [file for file in tree.files if is_image(file) and file not in taken]
    loose = _loose(name)
    near = next((file for file in images if _loose(file) == loose), None)
    if near is not None:
        return f"; the nearest there is {tree.root / near} for {name}", "write the names of the files into the table"
    clause, remedy = unpacking(tree, is_image)
    if clause:
        return f"; {clause}", remedy
    if used - {None}:
        return "", ""
    if tree.too_large:
        return not_searched(tree), ""
    if not images:
        return "; there is no image at all", ""
    return f"; there are others ({few(images)})", "put the images there, or write the names of these into the table"


def _loose(name: str) -> str:
    """What is left of a file's name where blanks, zeros before a number and the like are written otherwise."""
    return re.sub("[\\W_]", "", re.sub("(?<![0-9])0+(?=[0-9])", "", posixpath.basename(spelling(name))))


def _command(file: Path) -> str | None:
    """How an archive is unpacked beside itself; None where the file is none."""
    ending = next((each for each in _UNPACK if file.name.lower().endswith(each)), None)
    if ending is None:
        return None
    return _UNPACK[ending].format(file=shlex.quote(str(file)), folder=shlex.quote(str(file.parent)))
