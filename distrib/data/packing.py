"""Packs a data set into tar shards in the WebDataset layout, and checks what is packed."""

import fcntl
import hashlib
import io
import json
import os
import posixpath
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from distrib.base.errors import UserError
from distrib.base.files import fsync, staged, write_whole
from distrib.base.json import to_json
from distrib.base.threads import map_ahead
from distrib.base.words import few
from distrib.data.kind import data_kind
from distrib.data.parquet import ParquetStore
from distrib.data.reader import ImageReader
from distrib.data.separation import OnProgress, check_labels
from distrib.data.shards import INDEX, MANIFEST, VERSION, DataKind, Manifest, Shard, is_packed, read_manifest
from distrib.data.splits import digest
from distrib.data.store import FolderStore
from distrib.data.table import SPLITS, Table, read_table
from distrib.data.verification import ERRORS, Facts, Finding, examine, findings_of_set

VERIFICATION = "verification.json"
SHARD_IMAGES = 10_000  # about 90 MB of CelebA; an interrupted pack does at most one shard again
_CHUNK = 32  # images that a thread takes at a time
_BLOCK = 512  # of a tar file
# What a key of a WebDataset may be: it ends at the first dot of a name, and DALI's index is split at blanks.
_KEY = re.compile(r"[\w-]+(/[\w-]+)*", re.ASCII)
_LONGEST_KEY = 90  # of the 100 bytes for a name in a tar header


class Sample(NamedTuple):
    """Where an image lies in its shard.

    Attributes:
        row: of the source's table.
        name: in the tar file.
        offset: where its bytes begin.
        size: number of its bytes.
        labels_offset: where its JSON begins.
        labels_size: number of bytes of that.
        facts: what verification saw of it.
    """

    row: int
    name: str
    offset: int
    size: int
    labels_offset: int
    labels_size: int
    facts: Facts


@dataclass(frozen=True)
class Packed:
    """What came of packing.

    Attributes:
        images: number of images that are packed.
        findings: of the verification.
        notes: warnings about the table, a sentence each.
    """

    images: int
    findings: Sequence[Finding]
    notes: Sequence[str]


def pack(
    root: Path,
    out: Path,
    on_error: Literal["stop", "quarantine"],
    workers: int,
    report: OnProgress,
    force: bool = False,
) -> Packed:
    """Verify every image of a data set and pack it into tar shards, the bytes of the images unchanged.

    The shards are made in `.NAME.partial` beside `out`, one after another, and take its place at the end. What is there
    of an earlier try that was interrupted is not made again.

    Args:
        root: folder of the data set, in any form.
        out: folder to write.
        on_error: what to do about images that cannot be decoded and rows without an image: stop, when all have been
            looked at; or leave them out.
        workers: number of threads that read and decode.
        report: called while the work is under way.
        force: replace what is in `out`, if it is a packed data set.

    Raises:
        UserError: if the data set is not as expected, an image is broken and `on_error` is stop, or `out` is in use or
            cannot be written.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}, but at least one thread has to read: choose 1 or more")
    out = Path(os.path.realpath(out))
    table = _read_all(root, on_error)
    notes = [*(note for note in table.notes if "prepare pack" not in note), *check_labels(table)]
    _check_place(root, out, force)
    try:
        with _partial(root, table, out, force) as folder:
            shards, findings = _make_shards(table, folder, workers, report)
            samples = [sample for shard in shards.values() for sample in shard]
            findings += [Finding("no row", None, name, "no row names it") for name in table.surplus]
            findings += findings_of_set(table, {sample.row: sample.facts for sample in samples})
            # The rows of the table as it is written, from those that have images.
            rows = np.delete(np.arange(len(table) + len(table.lost)), list(table.lost.values()))
            findings = [replace(each, row=None if each.row is None else int(rows[each.row])) for each in findings]
            findings += [Finding("no image", row, name, "its row has no image") for name, row in table.lost.items()]
            write_whole(folder / VERIFICATION, to_json(_verification(root, len(samples), findings)))
            errors = [finding for finding in findings if finding.kind in ERRORS]
            if errors and on_error == "stop":
                raise UserError(
                    f"{len(errors)} of {len(table) + len(table.lost)} images in {root} cannot be packed "
                    f"({few([f'{each.file}: {each.what}' for each in errors])}): {folder / VERIFICATION} lists all; "
                    f"restore them, or leave them out by --on-error quarantine, which continues from here"
                )
            if not samples:
                raise UserError(f"no image of {root} can be packed: see {folder / VERIFICATION}")
            _write_index(table, folder, shards, data_kind(root))
            fsync(folder)
            _check_place(root, out, force)  # something may have come there meanwhile
            old = out.with_name(f".{out.name}.old")
            if out.exists():
                shutil.rmtree(old, ignore_errors=True)  # of a try that was killed between these two renames
                out.rename(old)
            folder.rename(out)
            fsync(out.parent)
            shutil.rmtree(old, ignore_errors=True)
            for record in out.glob("*.json"):
                if record.name not in (MANIFEST, VERIFICATION):
                    record.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}): choose another folder") from None
    return Packed(len(samples), findings, notes)


def check(folder: Path, workers: int, report: OnProgress) -> Manifest:
    """Read a packed data set again, whole.

    Raises:
        UserError: if it is none, or a file in it is not the one that was packed.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}, but at least one thread has to read: choose 1 or more")
    if not is_packed(folder):
        raise UserError(f"{folder} has no {MANIFEST} of a packed data set: name a folder that was packed")
    manifest = read_manifest(folder)
    expected = {shard.file: shard.sha256 for shard in manifest.shards} | {INDEX: manifest.index_sha256}

    def is_whole(file: str) -> bool:
        try:
            with (folder / file).open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest() == expected[file]
        except OSError:
            return False

    damaged = []
    with ThreadPoolExecutor(workers) as pool:
        for file, whole in zip(expected, pool.map(is_whole, expected), strict=True):
            damaged += [] if whole else [file]
            report("checking files", 1, len(expected))
    if damaged:
        raise UserError(
            f"{len(damaged)} of the {len(expected)} files in {folder} are missing or not as they were packed "
            f"({few(damaged)}): get them again, or pack the data set again"
        )
    return manifest


def _read_all(root: Path, on_error: str) -> Table:
    """The table as training reads it; without the rows whose images are missing only where there are such."""
    try:
        return read_table(root)
    except UserError:
        table = read_table(root, "skip")
        if isinstance(table.store, ParquetStore) and on_error == "stop":
            raise  # the rows of a file that is missing are missing too, and nobody can name them
        return table


def _check_place(root: Path, out: Path, force: bool) -> None:
    place = Path(os.path.realpath(out))
    if place.is_relative_to(os.path.realpath(root)) or Path(os.path.realpath(root)).is_relative_to(place):
        raise UserError(f"--out {out} lies in the data set that is to be packed, {root}, or around it: choose another")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_packed(out):
        raise UserError(f"--out {out} exists and is not an empty folder: choose another")
    if not force:
        raise UserError(f"--out {out} is a packed data set already: choose another folder, or replace it by --force")


@contextmanager
def _partial(root: Path, table: Table, out: Path, force: bool) -> Iterator[Path]:
    """The folder to pack in, locked, with what there is of an earlier try to pack the same."""
    folder = out.absolute().parent / f".{out.absolute().name}.partial"
    source = {"root": str(root.absolute()), "table": _digest(table), "version": VERSION, "shard": SHARD_IMAGES}
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out} is being packed by another process: wait for it, or stop it") from None
        record = folder / "source.json"
        begun = json.loads(record.read_bytes()) if record.exists() else None
        if begun not in (None, source) and not force:
            raise UserError(
                f"{folder} holds an unfinished pack of another data set, or of this one before it changed: remove that "
                f"folder, or say --force"
            )
        if begun != source:
            for leftover in folder.iterdir():
                leftover.unlink()
            write_whole(record, to_json(source))
        yield folder
    finally:
        os.close(descriptor)


def _digest(table: Table) -> str:
    """SHA-256 of all that goes into the shards and their index, but for the images."""
    sha = hashlib.sha256(digest(table, np.arange(len(table))).encode())
    sha.update("\n".join([*table.attributes, *table.lost]).encode())
    for column in (table.split, table.identity):
        sha.update(b"none" if column is None else column.tobytes())
    return sha.hexdigest()


def _make_shards(
    table: Table, folder: Path, workers: int, report: OnProgress
) -> tuple[dict[str, list[Sample]], list[Finding]]:
    """The samples of each shard by its name, and what is broken."""
    keys = _keys(table.names)
    shards: dict[str, list[Sample]] = {}
    findings: list[Finding] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        for name, rows in _plan(table):
            record = folder / f"{name}.json"
            if record.exists():
                shards[name] = [_sample(values) for values in json.loads(record.read_bytes())]
                if _unchanged(table, shards[name], record):
                    report("verifying and packing", len(rows), len(table))
                    continue
                record.unlink()
            with staged(folder / f"{name}.tar") as file:
                shards[name], broken = _write_shard(table, rows, keys, file, pool, workers, report)
            findings += broken
            if not broken:  # what is broken may be whole the next time
                write_whole(record, json.dumps(shards[name]))
    return {name: samples for name, samples in shards.items() if samples}, findings


def _unchanged(table: Table, samples: Sequence[Sample], record: Path) -> bool:
    """Whether the images of a shard, where they are files, have not been written since it was recorded."""
    store = table.store
    if not isinstance(store, FolderStore):
        return True
    packed = record.stat().st_mtime
    found = ((store.path(sample.row).stat(), sample.size) for sample in samples)
    return all(file.st_size == size and file.st_mtime <= packed for file, size in found)


def _plan(table: Table) -> Iterator[tuple[str, list[int]]]:
    """The name and the rows of each shard, by split, in the order of the table."""
    parts = {"all": np.arange(len(table))}
    if table.split is not None:
        parts = {name: np.flatnonzero(table.split == number) for number, name in enumerate(SPLITS)}
    for split, rows in parts.items():
        for number, start in enumerate(range(0, len(rows), SHARD_IMAGES)):
            yield f"{split}-{number:06}", rows[start : start + SHARD_IMAGES].tolist()


def _keys(names: Sequence[str]) -> list[str]:
    """The key of each image in a WebDataset: its name without the ending, or its number where that will not do."""
    stems = [posixpath.splitext(name)[0] for name in names]
    if len(set(stems)) == len(stems) and all(len(each) <= _LONGEST_KEY and _KEY.fullmatch(each) for each in stems):
        return stems
    return [f"{row:09}" for row in range(len(names))]


def _write_shard(
    table: Table,
    rows: Sequence[int],
    keys: Sequence[str],
    file: Path,
    pool: ThreadPoolExecutor,
    workers: int,
    report: OnProgress,
) -> tuple[list[Sample], list[Finding]]:
    """Pack these rows into a tar file; its samples, and what is broken and not in it."""
    reader = ImageReader(table)

    def look(chunk: Sequence[int]) -> list[tuple[int, bytes, Facts | str]]:
        found: list[tuple[int, bytes, Facts | str]] = []
        for row in chunk:
            data = b""
            try:
                data = reader.read(row)
                found.append((row, data, examine(data, table.store.files[row])))
            except UserError as error:
                if error.may_pass:
                    raise  # a disk that fails has broken no image
                found.append((row, data, str(error).removeprefix(f"{reader.name(row)} ")))
            except ValueError as error:
                found.append((row, data, str(error)))
        return found

    samples: list[Sample] = []
    broken: list[Finding] = []
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    with file.open("wb") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for looked in map_ahead(pool, look, chunks, 2 * workers):
            for row, data, facts in looked:
                if isinstance(facts, str):
                    broken.append(Finding("broken", row, reader.name(row), facts))
                    continue
                labels = json.dumps(_labels(table, row), ensure_ascii=False).encode()
                ending = "jpg" if facts.format == "JPEG" else facts.format.lower()
                name = f"{keys[row]}.{ending}"
                place = _add(archive, name, data)
                labels_place = _add(archive, f"{keys[row]}.json", labels)
                samples.append(Sample(row, name, place, len(data), labels_place, len(labels), facts))
            report("verifying and packing", len(looked), len(table))
    return samples, broken


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file, the same whoever packs it and whenever; returns where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    place = archive.offset + _BLOCK
    archive.addfile(info, io.BytesIO(data))
    return place


def _labels(table: Table, row: int) -> dict[str, Any]:
    """What the JSON beside an image says."""
    known: dict[str, Any] = {"name": table.names[row]}
    if table.split is not None:
        known["split"] = SPLITS[table.split[row]]
    if table.identity is not None:
        known["identity"] = int(table.identity[row])
    return known | {"attributes": dict(zip(table.attributes, table.targets[row].tolist(), strict=True))}


def _sample(values: Sequence[Any]) -> Sample:
    """As it was written down."""
    *others, (*facts, found) = values
    return Sample._make((*others, Facts._make((*facts, tuple(map(tuple, found))))))


def _write_index(table: Table, folder: Path, shards: Mapping[str, Sequence[Sample]], kind: DataKind) -> None:
    """The index of all shards, DALI's of each, and the manifest."""
    import pyarrow
    import pyarrow.parquet

    placed = sorted((s.row, n, s.offset, s.size) for n, samples in enumerate(shards.values()) for s in samples)
    rows, number, offset, size = (np.array(column, dtype=np.int64) for column in zip(*placed, strict=True))
    labels = [pyarrow.array(table.targets[rows, column]) for column in range(len(table.attributes))]
    none = np.full(len(rows), -1)
    index = pyarrow.table(
        {
            "name": [table.names[row] for row in rows],
            "split": (none if table.split is None else table.split[rows]).astype(np.int8),
            "identity": none if table.identity is None else table.identity[rows],
            "shard": number.astype(np.int32),
            "offset": offset,
            "size": size,
            "attributes": pyarrow.StructArray.from_arrays(labels, list(table.attributes)),
        }
    )
    with staged(folder / INDEX) as file:
        pyarrow.parquet.write_table(index, file)
    made = []
    for name, samples in shards.items():
        # The format of DALI's wds2idx: for each sample the ending, place, length and name of each of its files.
        lines = [
            f"{s.name.rpartition('.')[2]} {s.offset} {s.size} {s.name} "
            f"json {s.labels_offset} {s.labels_size} {s.name.rpartition('.')[0]}.json"
            for s in samples
        ]
        write_whole(folder / f"{name}.idx", "\n".join([f"v1.2 {len(lines)}", *lines]) + "\n")
        path = folder / f"{name}.tar"
        made.append(Shard(file=path.name, images=len(samples), bytes=path.stat().st_size, sha256=_sha256(path)))
    counts = {"all": len(rows)}
    if table.split is not None:
        counts = {split: int((table.split[rows] == part).sum()) for part, split in enumerate(SPLITS)}
    manifest = Manifest(
        images=counts,
        identities=None if table.identity is None else len(np.unique(table.identity[rows])),
        attributes=list(table.attributes),
        data_kind=kind,
        index_sha256=_sha256(folder / INDEX),
        shards=made,
    )
    for empty in set(folder.glob("*.tar")) - {folder / shard.file for shard in made}:
        empty.unlink()
    write_whole(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def _verification(root: Path, images: int, findings: Sequence[Finding]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
    return {
        "source": str(root.absolute()),
        "images": images,
        "counts": counts,
        "findings": [asdict(finding) for finding in findings],
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
