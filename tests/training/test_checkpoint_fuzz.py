"""Whatever a checkpoint holds, it is one, or it is passed over and named; also where its manifest vouches for it."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import check_sentence, edited, read_or_told
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.base.errors import UserError
from distrib.config import Config
from distrib.training.checkpoint import (
    VERSION,
    Checkpoint,
    Contents,
    DamagedError,
    Progress,
    find_checkpoint,
    load_checkpoint,
    refuse_changes,
    save_checkpoint,
)

FILES = ["manifest.json", "model.json", "trainer.pt", "model.safetensors", "config.yaml"]
JUNK = [
    b"", b"null", b"0", b"-1", b"3.5", b"NaN", b"9" * 5000, b'""', b'"\\u001b[2J"', b'"a\\nb"', b'"\\ud800"', b"[]",
    b"{}", b"[" * 3000, b'{"a":' * 3000, b"true", b"\xff", b"\0", b"\x1b", b"'", b'"', b"{", b"]", b":", b",", b"\n",
    b"../../etc/passwd", b"!!set {a}", b"&a [*a]", b"0x" + b"f" * 6000, b"x" * 300,
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints, both whole."""
    folder = tmp_path_factory.mktemp("checkpoints")
    weights = {"conv": torch.zeros(2, 3), "count": torch.tensor(7)}
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, 3)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}],
    }
    for number in (100, 200):
        contents = Contents(weights, optimizer, None, Progress(epoch=1), '{"epoch": 1}', number)
        save_checkpoint(folder, contents, "data", Config().to_yaml(), 9)
    return folder


def vouch(checkpoint: Path) -> None:
    """Make the manifest say that the files are those that were written, as who tampers with them would."""
    file = checkpoint / "manifest.json"
    manifest = json.loads(file.read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    file.write_text(json.dumps(manifest))


def check(whole: Path, change: Callable[[Path], None], damaged: bool = False) -> None:
    """What is to be done about a newest checkpoint after this change to its folder.

    Args:
        whole: the folder of checkpoints.
        change: made to a copy of it.
        damaged: whether the changed one must be refused; else it may be whole all the same.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(whole, Path(temporary) / "checkpoints")
        newest = folder / "step-00000200"
        change(newest)
        found = read_or_told(lambda: load_checkpoint(newest), refusal=DamagedError)
        assert not (damaged and found is not None)
        reports: list[str] = []
        chosen = find_checkpoint(folder, "auto", reports.append)
        assert chosen is not None
        if found is None:
            assert chosen.folder.name == "step-00000100"
            (report,) = reports
            check_sentence(report, newest, "damaged")
            with pytest.raises(UserError) as refused:
                find_checkpoint(folder, str(newest), reports.append)
            check_sentence(str(refused.value), newest)
        else:
            assert chosen.folder == newest
            assert reports == []
            use(found)


def use(checkpoint: Checkpoint) -> None:
    """What training does with one: it reads where to resume, and refuses those of another training."""
    progress = checkpoint.progress
    assert isinstance(progress, Progress)
    assert min(progress.epoch, progress.step, progress.best_epoch) >= 0
    read_or_told(lambda: refuse_changes(checkpoint, Config(), "data", [[0.0, 0.0, 0.0]]), checkpoint.folder)


def test_untouched_ones_are_whole(whole: Path) -> None:
    check(whole, lambda _: None)
    check(whole, vouch)
    refuse_changes(load_checkpoint(whole / "step-00000200"), Config(), "data", [])


def changes(name: str) -> st.SearchStrategy[bytes]:
    """What may become of a file that is text."""
    written = {
        "manifest.json": json.dumps({"version": VERSION, "files": dict.fromkeys(FILES[1:], "0" * 64)}, indent=2),
        "model.json": '{"epoch": 1}',
        "config.yaml": Config().to_yaml(),
    }
    return st.binary(max_size=40) | edited(written[name].encode(), JUNK)


@settings(deadline=None, max_examples=80)
@given(changes("manifest.json"))
def test_any_manifest_is_passed_over(whole: Path, content: bytes) -> None:
    """None of these has the right hashes."""
    check(whole, lambda folder: (folder / "manifest.json").write_bytes(content) and None, damaged=True)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(FILES), st.floats(0, 1), st.binary(min_size=1, max_size=4), st.booleans(), st.booleans())
def test_any_bytes_in_any_file_are_passed_over_or_harmless(
    whole: Path, name: str, place: float, new: bytes, shorter: bool, vouched: bool
) -> None:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        start = int(place * len(content))
        (folder / name).write_bytes(content[:start] + new + (b"" if shorter else content[start + len(new) :]))
        if vouched and name != "manifest.json":
            vouch(folder)

    if vouched and name == "trainer.pt":
        # torch does not always give the same answer about one damaged archive, so it is asked only once.
        with tempfile.TemporaryDirectory() as temporary:
            newest = Path(shutil.copytree(whole / "step-00000200", Path(temporary) / "step-00000200"))
            change(newest)
            read_or_told(lambda: load_checkpoint(newest), refusal=DamagedError)
        return
    check(whole, change)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["model.json", "config.yaml"]).flatmap(lambda name: st.tuples(st.just(name), changes(name))))
def test_any_text_that_the_manifest_vouches_for(whole: Path, change: tuple[str, bytes]) -> None:
    name, content = change

    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)
        vouch(folder)

    check(whole, write)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=4),
    st.sampled_from([torch.zeros(2), torch.tensor(1), 10**400, -1, "data", "a\nb", "\x1b[2J", float("nan")]),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    (), ("optimizer",), ("scaler",), ("progress",), ("data",), ("progress", "epoch"), ("progress", "step"),
    ("progress", "loss_sum"), ("progress", "best_epoch"), ("progress", "best_score"), ("progress", "more"), ("more",),
    ("optimizer", "state"), ("optimizer", "param_groups"),
]  # fmt: skip


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(PLACES), TREES | st.just("remove it"))
def test_any_state_that_the_manifest_vouches_for(whole: Path, place: tuple[str, ...], value: Any) -> None:
    def write(folder: Path) -> None:
        state = torch.load(folder / "trainer.pt", weights_only=True)
        inner = state
        for key in place[:-1]:
            inner = inner[key]
        if not place:
            state = value
        elif value == "remove it":
            inner.pop(place[-1], None)
        else:
            inner[place[-1]] = value
        torch.save(state, folder / "trainer.pt")
        vouch(folder)

    check(whole, write)


@pytest.mark.parametrize("missing", ["optimizer", "scaler", "progress", "data"])
def test_a_state_that_lacks_something_is_passed_over(whole: Path, missing: str) -> None:
    def write(folder: Path) -> None:
        state = torch.load(folder / "trainer.pt", weights_only=True)
        del state[missing]
        torch.save(state, folder / "trainer.pt")
        vouch(folder)

    check(whole, write, damaged=True)


@pytest.mark.parametrize(
    "content",
    [
        b"{" * 100_000,
        json.dumps({"version": "3\n\x1b[2J", "files": {}}).encode(),
        json.dumps({"version": "x" * 10_000, "files": {}}).encode(),
        json.dumps({"version": [[]], "files": {}}).encode(),
        b'{"version": ' + b"9" * 5000 + b', "files": {}}',
        json.dumps({"version": VERSION, "files": [["a", "b"], 3]}).encode(),
        json.dumps({"version": VERSION, "files": {"model.json": {"a": 1}}}).encode(),
        b"\xef\xbb\xbf{}",
    ],
    ids=["nested", "steers the terminal", "long", "list", "digits", "pairs", "tree", "mark"],
)
def test_odd_manifests_are_passed_over_in_one_sentence(whole: Path, content: bytes) -> None:
    check(whole, lambda folder: (folder / "manifest.json").write_bytes(content) and None, damaged=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(whole / "step-00000200", Path(temporary) / "step-00000200")
        (folder / "manifest.json").write_bytes(content)
        with pytest.raises(DamagedError) as damage:
            load_checkpoint(folder)
        assert len(str(damage.value)) < 1000


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a\nb", "~nobody-of-this-name/x"])
def test_a_named_checkpoint_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        find_checkpoint(tmp_path, name, lambda _: None)
    check_sentence(str(refused.value).replace(name, "NAME"))  # the configuration refuses names of two lines
