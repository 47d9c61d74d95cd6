"""Tar sets that another program has made, here the webdataset package: indexed once, and the same data set."""

import gzip
import io
import json
import multiprocessing
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from celeba_forms import as_web_dataset
from fuzzing import check_sentence
from sentences import refusal
from test_sources import holds, same

from distrib.cli import prepare
from distrib.config import DataConfig
from distrib.data.packing import pack
from distrib.data.splits import make_splits
from distrib.data.table import Table, read_table


@pytest.fixture(scope="module")
def made(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_web_dataset(faces, tmp_path_factory.mktemp("made") / "faces")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def labels(change: Callable[[dict[str, int]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Samples whose attributes are written otherwise."""

    def changed(sample: dict[str, Any]) -> dict[str, Any]:
        person = sample["json"].pop("celeb_id")
        return {**sample, "json": {"celeb_id": person, **change(sample["json"])}}

    return changed


@pytest.mark.parametrize(
    ("files", "change"),
    [
        pytest.param(["train-%06d", "valid-%06d", "test-%06d"], dict, id="0 and 1"),
        pytest.param(
            ["train-%06d", "validation-%06d", "test-%06d"],
            labels(lambda each: {name: bool(value) for name, value in each.items()}),
            id="bool",
        ),
        pytest.param(
            ["data/train-%d", "data/val-%d", "data/test-%d"],
            labels(lambda each: {"attributes": {name: 2 * value - 1 for name, value in each.items()}}),
            id="-1 and 1, in an object",
        ),
        pytest.param(
            ["train/%06d", "validation/%06d", "test/%06d"],
            lambda sample: {**sample, "txt": "a face", "seg.png": sample["jpg"]},
            id="folders, and more files",
        ),
    ],
)
def test_a_web_dataset_is_the_data_set(
    faces: Path, tmp_path: Path, files: list[str], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    table = read_table(as_web_dataset(faces, tmp_path / "made", files, change))
    same(table, read_table(faces))
    assert table.notes == (("What holds no labels is left out: .seg.png, .txt.",) if "train/" in files[0] else ())


def test_the_index_is_made_once(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(made, tmp_path / "made")
    first = read_table(root)
    said = capsys.readouterr().err
    check_sentence(said.strip(), f"indexed {len(first)} images in {root} in ", f"kept in {root}/distrib.index")
    kept = (root / "distrib.index").stat()
    same(read_table(root), first)
    assert capsys.readouterr().err == ""
    assert (root / "distrib.index").stat().st_mtime_ns == kept.st_mtime_ns
    assert sorted(path.name for path in root.iterdir() if path.suffix != ".tar") == ["distrib.index"]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("harm", ["another time", "another size", "a damaged index", "an index of something else"])
def test_the_index_is_made_anew_where_it_does_not_fit(
    made: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    root = shutil.copytree(made, tmp_path / "made")
    read_table(root)
    index, file = root / "distrib.index", root / "train-000000.tar"
    capsys.readouterr()
    if harm == "another time":
        os.utime(file, ns=(1, 1))
    elif harm == "another size":
        with file.open("ab") as opened:
            opened.write(bytes(10240))
        os.utime(file, ns=(file.stat().st_atime_ns, (made / file.name).stat().st_mtime_ns))
    elif harm == "a damaged index":
        data = bytearray(index.read_bytes())
        data[len(data) // 3] ^= 255
        index.write_bytes(data)
    else:
        index.write_text("a list of mine")
    same(read_table(root), read_table(faces))
    assert "indexed" in capsys.readouterr().err
    read_table(root)
    assert capsys.readouterr().err == ""


def test_the_index_of_what_is_read_only_is_in_the_cache(
    made: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(made, tmp_path / "made")
    (root / "distrib.index").mkdir()  # as closed to root as to anybody
    (root / "distrib.index/file").touch()
    for _ in range(2):
        same(read_table(root), read_table(faces))
    (index,) = (tmp_path / "cache/distrib").iterdir()
    assert capsys.readouterr().err.count("indexed") == 1
    assert index.suffix == ".index"
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "train-000000.tar"))
    same(read_table(root), read_table(faces))
    assert "the index can be kept nowhere" in capsys.readouterr().err


def _read(root: Path) -> int:
    return len(read_table(root))


def test_ranks_may_index_at_the_same_time(made: Path, faces: Path, tmp_path: Path) -> None:
    root = shutil.copytree(made, tmp_path / "made")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert set(pool.map(_read, [root] * 4, chunksize=1)) == {len(read_table(faces))}
    assert [path.name for path in root.iterdir() if path.suffix != ".tar"] == ["distrib.index"]
    same(read_table(root), read_table(faces))


def test_it_is_packed_and_trained_from_like_any_other(made: Path, faces: Path, tmp_path: Path) -> None:
    pack(made, tmp_path / "packed", "stop", 2, lambda *_: None)
    same(read_table(tmp_path / "packed"), read_table(faces))
    arguments = ["split", "--root", str(made), "--out", str(tmp_path / "separated"), "--files", "copy"]
    assert prepare.main(arguments) == 0
    assert sorted(holds(read_table(tmp_path / "separated"))) == sorted(holds(read_table(faces)))


def test_without_splits_one_has_to_be_chosen(faces: Path, tmp_path: Path) -> None:
    as_web_dataset(faces, tmp_path / "made", ["a%02d", "b%02d", "c%02d"])
    table = read_table(tmp_path / "made")
    assert table.split is None
    refusal(lambda: make_splits(table, DataConfig()), "data.split")
    assert len(make_splits(table, DataConfig(split="identity")).train)


def test_keys_that_begin_anew_in_each_tar_file_are_told_apart(faces: Path, tmp_path: Path) -> None:
    keys = iter(range(10**6))

    def change(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "__key__": f"{next(keys) % 40:04}"}

    table = read_table(as_web_dataset(faces, tmp_path / "made", change=change))
    assert table.names[0] == "train-000000/0000.jpg"
    assert len(set(table.names)) == len(table)
    assert holds(table) == holds(read_table(faces))


def put(file: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    """A tar file of these."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.parent


HAPPY, SAD = b'{"happy": 1}', b'{"happy": 0}'
TWO = {"a.jpg": b"A", "a.json": HAPPY, "b.jpg": b"B", "b.json": SAD}


def targets(table: Table) -> list[list[int]]:
    return table.targets.tolist()


def test_a_class_is_a_label(tmp_path: Path) -> None:
    samples = {
        "./1.JPEG": b"A",
        "./1.cls": b"0",
        "./2.webp": b"B",
        "./2.cls": b"1\n",
        "./3/x.png": b"C",
        "3/x.cls": b"1",
    }
    table = read_table(put(tmp_path / "train-0.tar", samples))
    assert (table.names, table.attributes) == (["1.JPEG", "2.webp", "3/x.png"], ("cls",))
    assert targets(table) == [[0], [1], [1]]
    assert holds(table) == [b"A", b"B", b"C"]


def test_a_number_in_a_text_is_a_label_beside_json(tmp_path: Path) -> None:
    samples = TWO | {"a.txt": b"1", "b.txt": b"0"}
    table = read_table(put(tmp_path / "train-0.tar", samples))
    assert (table.attributes, targets(table)) == (("happy", "txt"), [[1, 1], [0, 0]])


def test_a_class_beyond_0_and_1_is_a_flaw(tmp_path: Path) -> None:
    root = put(tmp_path / "train-0.tar", {"1.jpg": b"A", "1.cls": b"0", "2.jpg": b"B", "2.cls": b"7"})
    check_sentence(refusal(lambda: read_table(root).select(("all",)), f"{root}/train-0.tar, 2.jpg has 7 for cls"))


def test_an_attribute_that_a_tar_file_lacks_is_a_flaw(tmp_path: Path) -> None:
    put(tmp_path / "train-0.tar", TWO)
    put(tmp_path / "train-1.tar", {"c.jpg": b"C", "c.json": b'{"happy": 1, "old": 1, "name": "Ann", "score": 0.5}'})
    table = read_table(tmp_path)
    assert table.select(("happy",)).targets.tolist() == [[1], [0], [1]]
    check_sentence(refusal(lambda: table.select(("all",)), "train-0.tar, a.jpg has no value for old"))
    assert table.notes == ("What holds no labels is left out: name, score.",)


def test_identities_may_be_text(tmp_path: Path) -> None:
    put(tmp_path / "train-0.tar", {"a.jpg": b"A", "a.json": b'{"happy": 1, "identity": "Ann"}'})
    put(tmp_path / "train-1.tar", {"b.jpg": b"B", "b.json": b'{"happy": 0, "identity": 12}'})
    put(tmp_path / "train-2.tar", {"c.jpg": b"C", "c.json": b'{"happy": 0, "identity": "Ann"}'})
    identity = read_table(tmp_path).identity
    assert identity is not None
    assert identity[0] == identity[2] != identity[1]


def test_images_and_labels_without_each_other(tmp_path: Path) -> None:
    root = put(tmp_path / "train-0.tar", [*TWO.items(), ("c.json", HAPPY), ("d.jpg", b"D")])
    check_sentence(refusal(lambda: read_table(root), str(root), "images of 1 of 3 keys (c)", "data.missing"))
    table = read_table(root, "skip")
    assert (table.names, table.lost, table.surplus) == (["a.jpg", "b.jpg"], {"c": 2}, ["d.jpg"])
    lost, surplus = table.notes
    assert "their rows are skipped" in lost
    assert "holds images without labels: 1 (d.jpg), not used" in surplus


def cut(file: Path, end: int) -> None:
    file.write_bytes(file.read_bytes()[:end])


def overwrite(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[2048 : 2048 + 512] = b"x" * 512  # the header of the third file
    file.write_bytes(data)


def compress(file: Path) -> None:
    with gzip.open(file.with_name(f"{file.name}.gz"), "wb") as opened:
        opened.write(file.read_bytes())
    file.unlink()


def link(file: Path) -> None:
    with tarfile.open(file, "a") as archive:
        info = tarfile.TarInfo("c.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "a.jpg"
        archive.addfile(info)


def rewrite(*members: tuple[str, bytes]) -> Callable[[Path], object]:
    return lambda file: put(file, [*TWO.items(), *members])


@pytest.mark.parametrize(
    ("harm", "parts"),
    [
        pytest.param(lambda file: cut(file, 1600), ["train-0.tar is not a whole tar file", "fetch it again"], id="cut"),
        pytest.param(
            lambda file: cut(file, 2048), ["train-0.tar is not a whole", "ends or is damaged after a.jpg"],
            id="cut between files",
        ),
        pytest.param(overwrite, ["train-0.tar is not a whole", "ends or is damaged after a.jpg"], id="a header"),
        pytest.param(lambda file: cut(file, 0), ["train-0.tar is not a whole tar file"], id="an empty file"),
        pytest.param(
            lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
            ["Git LFS pointer", "git lfs pull"], id="a pointer",
        ),
        pytest.param(
            lambda file: file.write_bytes(gzip.compress(file.read_bytes())),
            ["train-0.tar is not a whole tar file (it is compressed)", "name it train-0.tar.gz"], id="gzip unsaid",
        ),
        pytest.param(compress, ["compressed tar files (train-0.tar.gz)", "gunzip", "train-0.tar.gz`"], id="gzip"),
        pytest.param(
            lambda file: put(file.with_name("new.tar"), TWO), ["new.tar", "says no split"], id="a file without a split"
        ),
        pytest.param(
            lambda file: put(file.parent / "more/train-0.tar", TWO), ["several data sets", "more"], id="two sets"
        ),
        pytest.param(rewrite(("a.png", b"P")), ["train-0.tar, a.png is a second image", "a.jpg"], id="two images"),
        pytest.param(rewrite(("a.json", SAD)), ["train-0.tar, a.json is there twice"], id="labels twice"),
        pytest.param(rewrite(("c.json", b"{")), ["train-0.tar, c.json is not JSON"], id="no JSON"),
        pytest.param(rewrite(("c.json", b"[" * 10**5)), ["train-0.tar, c.json is not JSON"], id="deep JSON"),
        pytest.param(rewrite(("c.json", b"[1, 0]")), ["c.json holds a list", '{"Smiling": 1}'], id="a list"),
        pytest.param(rewrite(("../c.jpg", b"C"), ("../c.json", HAPPY)), ["'../c.jpg'", "outside"], id="a way out"),
        pytest.param(link, ["train-0.tar, c.jpg is a link", "--hard-dereference"], id="a link"),
        pytest.param(
            lambda file: put(file, {"a.jpg": b"A", "a.json": b'{"text": "happy"}'}), ["have no labels"], id="text alone"
        ),
        pytest.param(
            lambda file: put(file, {"a.jpg": b"A", "b.jpg": b"B"}),
            ["holds no table", "tar files with images and labels", "train-0.tar"], id="no labels",
        ),
        pytest.param(lambda file: put(file, {}), ["holds no table", "train-0.tar"], id="nothing"),
        pytest.param(lambda file: file.unlink(), ["holds no table"], id="an empty folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tar_files_is_said(tmp_path: Path, harm: Callable[[Path], object], parts: list[str]) -> None:
    root = put(tmp_path / "set/train-0.tar", TWO)
    harm(root / "train-0.tar")
    check_sentence(refusal(lambda: read_table(root), *parts))
    assert not (root / "distrib.index").exists()


def test_no_cut_of_a_tar_file_is_read_as_a_smaller_data_set(made: Path, tmp_path: Path) -> None:
    data = (made / "train-000000.tar").read_bytes()
    file = tmp_path / "train-000000.tar"
    for end in [*np.random.default_rng(0).integers(0, len(data) - 10240, 30).tolist(), *range(512, 20480, 512)]:
        file.write_bytes(data[:end])
        refusal(lambda: read_table(tmp_path), "train-000000.tar")


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz"])
def test_the_gunzip_of_the_sentence_makes_it_a_data_set(tmp_path: Path, ending: str) -> None:
    root = put(tmp_path / "set/train-0.tar", TWO)
    compress(root / "train-0.tar")
    (root / "train-0.tar.gz").rename(root / f"train-0{ending}")
    sentence = refusal(lambda: read_table(root), "gunzip")
    assert os.system(sentence.partition("`")[2].partition("`")[0]) == 0
    assert targets(read_table(root)) == [[1], [0]]
    shutil.copy(root / "train-0.tar", root / f"train-0{ending}")  # as gunzip --keep leaves it
    assert targets(read_table(root)) == [[1], [0]]


def test_an_archive_of_another_kind_is_to_be_unpacked(faces: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "celeba.tar", "w") as archive:
        archive.add(faces, "celeba")
    refusal(lambda: read_table(tmp_path), "celeba.tar in", "not unpacked", "tar -xf")


def test_more_tar_files_than_a_process_may_open(tmp_path: Path) -> None:
    for number in range(600):
        put(tmp_path / f"train-{number}.tar", {f"{number}.jpg": b"%d" % number, f"{number}.json": HAPPY})
    table = read_table(tmp_path)
    assert sorted(holds(table)) == sorted(b"%d" % number for number in range(600))


def test_json_in_which_attributes_have_names_of_any_kind(tmp_path: Path) -> None:
    content = json.dumps({"a.b": 1, "a": {"b": 0, "c": 1}, "ü": 0, "": 1}).encode()
    table = read_table(put(tmp_path / "train-0.tar", {"1.jpg": b"A", "1.json": content}))
    assert (table.attributes, targets(table)) == (("a.b", "b", "c", "ü", ""), [[1, 0, 1, 0, 1]])
