"""Packed data sets: every fault under its own name, and shards that other programs open."""

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset
from celeba_forms import archived, on_the_hub
from fuzzing import check_sentence
from launching import ROOT
from PIL import Image
from sentences import refusal

from distrib.cli import prepare
from distrib.data import packing
from distrib.data.decoders import dali_installed
from distrib.data.kind import data_kind
from distrib.data.packing import check, pack
from distrib.data.reader import ImageReader
from distrib.data.splits import digest
from distrib.data.store import FolderStore
from distrib.data.table import Table, read_table


def holds(table: Table) -> list[bytes]:
    reader = ImageReader(table)
    return [reader.read(row) for row in range(len(table))]


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def packed(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "faces"
    pack(faces, out, "stop", 2, silent)
    return out


def image(seed: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def saved(pixels: np.ndarray, format: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, format, **options)
    return stream.getvalue()


def jpeg(seed: int, size: tuple[int, int] = (40, 32)) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image(seed, size)))


def turned(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image(seed, (32, 40)), exif=exif)


def sixteen_bits() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(40 * 32, dtype=np.uint16).reshape(40, 32) * 40).save(stream, "PNG")
    return stream.getvalue()


def rotten(seed: int) -> bytes:
    data = bytearray(jpeg(seed))
    data[-60:-40] = b"\xff\x01" * 10
    return bytes(data)


WHOLE = jpeg(99)
FAULTS: dict[str, tuple[str, bytes]] = {
    "truncated.jpg": ("broken", jpeg(1)[:-60]),
    "rotten.jpg": ("broken", rotten(2)),
    "empty.jpg": ("broken", b""),
    "zeros.jpg": ("broken", bytes(900)),
    "text.jpg": ("broken", b"not an image at all"),
    "page.jpg": ("broken", b"<html><body>Please log in</body></html>"),
    "large.jpg": ("other size", jpeg(3, (50, 32))),
    "turned.jpg": ("orientation", turned(4)),
    "cmyk.jpg": ("CMYK", saved(image(5), mode="CMYK")),
    "grey.jpg": ("grey", saved(image(6), mode="L")),
    "png.jpg": ("other format", saved(image(7), "PNG")),
    "deep.png": ("16 bit", sixteen_bits()),
    "twin.jpg": ("same bytes", WHOLE),
    "far_twin.jpg": ("same bytes across splits", WHOLE),
    "pixels.png": ("same pixels", saved(simplejpeg.decode_jpeg(WHOLE), "PNG")),
    "far_pixels.png": ("same pixels across splits", saved(simplejpeg.decode_jpeg(WHOLE), "PNG", compress_level=1)),
}


def faulty(root: Path) -> Path:
    """A data set with twenty images that are whole, and one of each fault."""
    (root / "images").mkdir(parents=True)
    rows = ["image,happy,split,group"]
    for number in range(20):
        (root / f"images/{number}.jpg").write_bytes(jpeg(100 + number))
        rows.append(f"{number}.jpg,{number % 2},{('train', 'valid', 'test')[number % 3]},{number}")
    (root / "images/whole.jpg").write_bytes(WHOLE)
    rows.append("whole.jpg,1,train,21")
    for number, (name, (_, data)) in enumerate(FAULTS.items()):
        (root / "images" / name).write_bytes(data)
        rows.append(f"{name},1,{'test' if name.startswith('far') else 'train'},{100 + number}")
    rows += ["gone.jpg,0,train,300", "18.jpeg,0,train,300"]
    rows.append("person.jpg,0,test,0")
    (root / "images/18.jpeg").write_bytes(jpeg(500))
    (root / "images/person.jpg").write_bytes(jpeg(501))
    (root / "images/extra.jpg").write_bytes(jpeg(502))
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root


def test_every_fault_has_its_own_name(tmp_path: Path) -> None:
    root, out = faulty(tmp_path / "source"), tmp_path / "packed"
    sentence = refusal(lambda: pack(root, out, "stop", 2, silent), "7 of 40 images", "--on-error quarantine")
    check_sentence(sentence)
    assert not out.exists()
    result = pack(root, out, "quarantine", 2, silent)
    written = json.loads((out / "verification.json").read_text())
    found = {(Path(each["file"]).name, each["kind"]) for each in written["findings"]}
    expected = {(name, kind) for name, (kind, _) in FAULTS.items()}
    expected |= {("gone.jpg", "no image"), ("extra.jpg", "no row"), ("", "identity across splits")}
    expected |= {("deep.png", "grey")}  # as it is, too
    assert found == expected
    rows = (root / "table.csv").read_text().splitlines()[1:]
    for each in written["findings"]:
        if each["row"] is not None:
            assert rows[each["row"]].startswith(f"{Path(each['file']).name},")
    assert "identity 0: 1 in train, 1 in test" in [each["what"] for each in written["findings"]]
    broken = {name for name, (kind, _) in FAULTS.items() if kind == "broken"}
    table = read_table(out)
    assert set(table.names) == {row.split(",")[0] for row in rows} - broken - {"gone.jpg"}
    assert result.images == len(table) == written["images"]
    # Nothing is deleted, and every other image is packed as it is.
    assert all((root / "images" / name).exists() for name in FAULTS)
    for name, data in zip(table.names, holds(table), strict=True):
        assert data == (root / "images" / name).read_bytes()


def test_what_is_reported_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = faulty(tmp_path / "source")
    arguments = ["pack", "--root", str(root), "--out", str(tmp_path / "packed"), "--workers", "2"]
    assert prepare.main(arguments) == 2
    assert "distrib: error: 7 of 40 images" in capsys.readouterr().err
    assert prepare.main([*arguments, "--on-error", "quarantine"]) == 0
    out, err = capsys.readouterr()
    assert "error: images that cannot be decoded: 6 (" in out
    assert "warning: images in CMYK: 1 (" in out
    assert f"{tmp_path}/packed is ready for --data.root" in out
    assert "verifying and packing" in err
    assert prepare.main(["check", str(tmp_path / "packed")]) == 0
    assert "is whole: 3 shards, train " in capsys.readouterr().out


def same(table: Table, as_this: Table) -> None:
    assert table.names == as_this.names
    assert table.attributes == as_this.attributes
    for one, other in ((table.targets, as_this.targets), (table.split, as_this.split)):
        assert np.array_equal(one, other)
        assert one.dtype == other.dtype
    people = [np.unique(each.identity, return_inverse=True)[1] for each in (table, as_this)]
    assert np.array_equal(*people)
    assert holds(table) == holds(as_this)
    rows = np.arange(len(table))
    assert digest(table, rows) == digest(as_this, rows)


def test_a_packed_set_is_the_data_set_that_it_was_packed_from(faces: Path, packed: Path) -> None:
    table = read_table(packed)
    assert table.notes == ()
    same(table, read_table(faces))


@pytest.mark.parametrize("form", [archived, on_the_hub])
def test_any_form_is_packed(faces: Path, tmp_path: Path, form: Callable[[Path, Path], Path]) -> None:
    pack(form(faces, tmp_path / "source"), tmp_path / "packed", "stop", 2, silent)
    same(read_table(tmp_path / "packed"), read_table(faces))


def test_packing_again_gives_the_same_bytes(faces: Path, packed: Path, tmp_path: Path) -> None:
    pack(faces, tmp_path / "again", "stop", 1, silent)
    for file in packed.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_tar_opens_the_shards(packed: Path, faces: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", packed / "test-000000.tar", "-C", tmp_path], check=True)
    table = read_table(faces)
    assert table.split is not None
    for row in np.flatnonzero(table.split == 2):
        stem = table.names[row].removesuffix(".jpg")
        assert (tmp_path / f"{stem}.jpg").read_bytes() == table.store.read(row)
        labels = json.loads((tmp_path / f"{stem}.json").read_text())
        assert labels["name"] == table.names[row]
        assert labels["split"] == "test"
        assert list(labels["attributes"].values()) == table.targets[row].tolist()
    assert len(list(tmp_path.iterdir())) == 2 * (table.split == 2).sum()


def test_webdataset_opens_the_shards(packed: Path, faces: Path) -> None:
    table = read_table(faces)
    samples = list(webdataset.WebDataset(str(packed / "valid-000000.tar"), shardshuffle=False).decode())
    rows = np.flatnonzero(table.split == 1)
    assert [sample["__key__"] for sample in samples] == [table.names[row].removesuffix(".jpg") for row in rows]
    raw = list(webdataset.WebDataset(str(packed / "valid-000000.tar"), shardshuffle=False))
    assert [sample["jpg"] for sample in raw] == [table.store.read(row) for row in rows]
    assert samples[0]["json"]["attributes"] == dict(zip(table.attributes, table.targets[rows[0]].tolist(), strict=True))


@pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
def test_dali_reads_the_shards_by_their_indices(packed: Path, faces: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=10, num_threads=1, device_id=None)
    def graph():  # type: ignore[no-untyped-def]
        shard = packed / "valid-000000"
        return tuple(fn.readers.webdataset(paths=f"{shard}.tar", index_paths=f"{shard}.idx", ext=["jpg", "json"]))

    pipeline = graph()
    pipeline.build()
    images, labels = pipeline.run()
    table = read_table(faces)
    for place, row in enumerate(np.flatnonzero(table.split == 1)[:10]):
        assert images.at(place).tobytes() == table.store.read(row)
        assert json.loads(labels.at(place).tobytes())["name"] == table.names[row]


def test_images_that_are_written_anew_between_two_tries_are_packed_anew(tmp_path: Path) -> None:
    """A broken image has ended the first, after whole shards; and then all were fetched once more."""
    source, out = tmp_path / "source", tmp_path / "packed"
    source.mkdir()
    names = [f"{number}.jpg" for number in range(4)]
    for number, name in enumerate(names):
        (source / name).write_bytes(jpeg(number))
    (source / "0.jpg").write_bytes(b"broken")
    lines = [f"{name},{number % 2},{'train' if number < 2 else 'valid'}" for number, name in enumerate(names)]
    (source / "table.csv").write_text("\n".join(["image,happy,split", *lines]) + "\n")
    refusal(lambda: pack(source, out, "stop", 1, silent), "0.jpg")
    shard = tmp_path / ".packed.partial/valid-000000.json"
    assert shard.exists()
    packed = shard.stat().st_mtime
    for number, name in enumerate(names):
        (source / name).write_bytes(jpeg(number + 10))
        os.utime(source / name, (packed + 1, packed + 1))
    pack(source, out, "stop", 1, silent)
    table = read_table(out)
    assert [table.store.read(row) for row in range(4)] == [jpeg(number + 10) for number in range(4)]


def test_names_that_are_no_keys_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    names = ["my face.jpg", "v1.2.jpg", "é.png"]
    for number, name in enumerate(names):
        (tmp_path / "source" / name).write_bytes(jpeg(number))
    lines = [f"{name},{number % 2},train" for number, name in enumerate(names)]
    (tmp_path / "source/table.csv").write_text("\n".join(["image,happy,split", *lines]) + "\n")
    pack(tmp_path / "source", tmp_path / "packed", "stop", 1, silent)
    with tarfile.open(tmp_path / "packed/train-000000.tar") as archive:
        assert archive.getnames() == [f"{row:09}.{end}" for row in range(3) for end in ("jpg", "json")]
    assert read_table(tmp_path / "packed").names == names


def test_a_second_pack_into_the_folder_is_refused(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    pack(faces, out, "stop", 2, silent)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    check_sentence(refusal(lambda: pack(faces, out, "stop", 2, silent), "is a packed data set already", "--force"))
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    pack(faces, out, "stop", 2, silent, force=True)
    same(read_table(out), read_table(faces))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    refusal(lambda: pack(faces, tmp_path / "mine", "stop", 2, silent, force=True), "is not an empty folder")
    refusal(lambda: pack(faces, faces / "packed", "stop", 2, silent), "lies in the data set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "packed"]


def test_a_pack_that_was_killed_continues(faces: Path, packed: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "packed", tmp_path / ".packed.partial"
    program = f"""
import sys
from distrib.cli import prepare
from distrib.data import packing
packing.SHARD_IMAGES = 30
look = packing.examine
def slowly(*arguments):
    import time
    time.sleep(0.02)
    return look(*arguments)
packing.examine = slowly
sys.exit(prepare.main(["pack", "--root", {str(faces)!r}, "--out", {str(out)!r}, "--workers", "2"]))
"""
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (partial / "train-000001.json").exists() and time.monotonic() < end:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not out.exists()
    first = (partial / "train-000000.tar").stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "train-000000.tar").stat().st_mtime_ns == first, "what was finished is made anew"
    assert not partial.exists()
    assert sorted(file.name for file in out.iterdir() if file.suffix == ".json") == [
        "manifest.json",
        "verification.json",
    ]
    check(out, 1, silent)
    same(read_table(out), read_table(faces))


def test_an_unfinished_pack_of_other_data_is_not_continued(faces: Path, tmp_path: Path) -> None:
    root = faulty(tmp_path / "source")
    refusal(lambda: pack(root, tmp_path / "packed", "stop", 2, silent), "cannot be packed")
    check_sentence(refusal(lambda: pack(faces, tmp_path / "packed", "stop", 2, silent), "of another data set"))
    pack(faces, tmp_path / "packed", "stop", 2, silent, force=True)
    same(read_table(tmp_path / "packed"), read_table(faces))


def test_a_replacement_that_was_killed_between_its_renames_is_made_good(faces: Path, tmp_path: Path) -> None:
    out, old = tmp_path / "packed", tmp_path / ".packed.old"
    pack(faces, out, "stop", 2, silent)
    shutil.copytree(out, old)
    pack(faces, out, "stop", 2, silent, force=True)
    shutil.move(out, old)  # the first rename, and then the end
    pack(faces, out, "stop", 2, silent)
    same(read_table(out), read_table(faces))
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_two_packs_do_not_share_a_folder(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*_: object) -> None:
        refusal(lambda: pack(faces, tmp_path / "packed", "stop", 1, silent), "is being packed by another process")

    pack(faces, tmp_path / "packed", "stop", 1, meanwhile)


def one_image(root: Path, name: str, data: bytes) -> Path:
    """A data set of two images, of which one is this."""
    root.mkdir()
    (root / name).write_bytes(data)
    (root / "other.jpg").write_bytes(jpeg(1))
    (root / "table.csv").write_text(f"image,happy,split\n{name},1,train\nother.jpg,0,train\n")
    return root


def chunk(kind: bytes, body: bytes, good: bool = True) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (not good))


@pytest.mark.parametrize(
    ("extra", "kinds"),
    [(chunk(b"eXIf", b"no such thing"), {"mended"}), (chunk(b"tEXt", b"Comment\0hello", good=False), set())],
)
def test_what_training_reads_is_packed(tmp_path: Path, extra: bytes, kinds: set[str]) -> None:
    png = saved(image(1), "PNG")
    data = png[:33] + extra + png[33:]
    result = pack(one_image(tmp_path / "source", "a.png", data), tmp_path / "packed", "stop", 1, silent)
    assert {finding.kind for finding in result.findings} == kinds
    assert holds(read_table(tmp_path / "packed"))[0] == data


def test_names_are_read_as_training_reads_them(tmp_path: Path) -> None:
    root = one_image(tmp_path / "source", "a.JPG", jpeg(3))
    (root / "table.csv").write_text("image,happy,split\na.jpg,1,train\nother.jpg,0,train\n")
    result = pack(root, tmp_path / "packed", "stop", 1, silent)
    assert not result.findings
    assert any("a.JPG for a.jpg" in note for note in result.notes)
    assert read_table(tmp_path / "packed").names == ["a.jpg", "other.jpg"]


def test_an_unfinished_pack_is_not_continued_with_another_split(tmp_path: Path) -> None:
    root = one_image(tmp_path / "source", "a.jpg", b"text")
    refusal(lambda: pack(root, tmp_path / "packed", "stop", 1, silent), "cannot be packed")
    (root / "a.jpg").write_bytes(jpeg(3))
    (root / "table.csv").write_text("image,happy,split\na.jpg,1,train\nother.jpg,0,test\n")
    refusal(lambda: pack(root, tmp_path / "packed", "stop", 1, silent), "before it changed", "--force")


def test_an_incomplete_set_is_said_when_it_is_packed_all_the_same(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = on_the_hub(faces, tmp_path / "hub")
    (root / "train-00001-of-00002.parquet").unlink()
    arguments = ["pack", "--root", str(root), "--out", str(tmp_path / "packed")]
    assert prepare.main(arguments) == 2
    assert "1 of 2 files train-*" in capsys.readouterr().err
    assert prepare.main([*arguments, "--on-error", "quarantine"]) == 0
    assert "1 of 2 files train-*" in capsys.readouterr().err


def test_the_folder_may_be_a_link(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "disk/packed").mkdir(parents=True)
    (tmp_path / "packed").symlink_to(tmp_path / "disk/packed")
    pack(faces, tmp_path / "packed", "stop", 2, silent)
    pack(faces, tmp_path / "packed", "stop", 2, silent, force=True)
    same(read_table(tmp_path / "packed"), read_table(faces))
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["packed"]


def test_a_disk_that_fails_breaks_no_image(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(FolderStore, "read", fail)
    refusal(lambda: pack(faces, tmp_path / "packed", "quarantine", 1, silent), "cannot be read (Input/output error)")
    assert not (tmp_path / "packed").exists()


def test_a_packed_set_says_whose_images_it_has(faces: Path, packed: Path, tmp_path: Path) -> None:
    """By it a model's card names the licence of the data; one of an earlier version does not say."""
    assert data_kind(packed) == data_kind(faces) == "synthetic"
    manifest = json.loads((packed / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "data_kind": "celeba"}))
    assert data_kind(tmp_path) == "celeba"
    del manifest["data_kind"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert data_kind(tmp_path) == "own"


def test_a_packed_set_without_its_manifest_is_known(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    (folder / "manifest.json").unlink()
    check_sentence(refusal(lambda: read_table(folder), "a packed data set without its manifest.json"))
    check_sentence(refusal(lambda: check(folder, 1, silent), "has no manifest.json"))
    check_sentence(refusal(lambda: check(packed, 0, silent), "--workers is 0"))


@pytest.mark.parametrize("harm", ["a byte", "the end", "a shard", "the index"])
def test_check_names_what_is_not_as_it_was_packed(packed: Path, tmp_path: Path, harm: str) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    check(folder, 2, silent)
    shard = folder / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    if harm == "a byte":
        data[5000] ^= 1
        shard.write_bytes(data)
    elif harm == "the end":
        shard.write_bytes(data[:-512])
    elif harm == "a shard":
        shard.unlink()
    else:
        (folder / "index.parquet").write_bytes(b"PAR1")
    name = "index.parquet" if harm == "the index" else "train-000000.tar"
    check_sentence(refusal(lambda: check(folder, 2, silent), "1 of the 4 files", name))
    if harm != "a byte":
        check_sentence(refusal(lambda: read_table(folder), name, "pack the data set again"))


def test_a_later_version_is_refused(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    check_sentence(refusal(lambda: read_table(folder), "of version 2", "reads 1"))
    (folder / "manifest.json").write_text(json.dumps({**manifest, "shards": 5}))
    check_sentence(refusal(lambda: read_table(folder), "manifest.json is damaged"))


def test_a_data_set_without_a_partition_is_packed_as_one(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "source")
    (tmp_path / "source/list_eval_partition.txt").unlink()
    pack(tmp_path / "source", tmp_path / "packed", "stop", 2, silent)
    assert (tmp_path / "packed/all-000000.tar").exists()
    assert read_table(tmp_path / "packed").split is None
    same_people = read_table(tmp_path / "packed").identity
    assert same_people is not None


def test_a_full_disk_is_said(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(packing.tarfile.TarFile, "addfile", full)
    check_sentence(refusal(lambda: pack(faces, tmp_path / "packed", "stop", 2, silent), "No space left on device"))
    assert not (tmp_path / "packed").exists()


def test_celeba_itself_has_two_images_of_the_same_bytes(celeba_mini: Path, tmp_path: Path) -> None:
    result = pack(celeba_mini, tmp_path / "packed", "stop", 2, silent)
    assert [finding.kind for finding in result.findings] == ["same bytes"]
    sums = {hashlib.sha256(data).hexdigest() for data in holds(read_table(tmp_path / "packed"))}
    assert len(sums) == result.images - 1 == 5579
