"""What a stranger's file, a careless line of code and a secret in the environment must not be able to do."""

import ast
import hashlib
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fuzzing import check_sentence, edited, read_or_told
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import ROOT, clean_environment
from random_model import write_model
from sentences import refusal

from distrib.config import Config, ModelConfig, OptimConfig
from distrib.model.network import AttributeClassifier
from distrib.model.trained import load, read_description
from distrib.model.weights import make_model
from distrib.train import main
from distrib.training.checkpoint import (
    Checkpoint,
    Contents,
    DamagedError,
    Progress,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from distrib.training.optimizer import make_optimizer
from distrib.training.state import restore

# --- what the source may not do

FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load",
    "cloudpickle.loads", "dill.load", "dill.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open",
    "pandas.read_pickle", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load",
    "yaml.unsafe_load_all", "torch.jit.load", "tempfile.mktemp", "ssl._create_unverified_context", "os.umask",
}  # fmt: skip
# The package takes no archive apart. Whoever makes it do so keeps every member in its folder, and says here how.
UNPACKERS = {"extract", "extractall", "unpack_archive"}
# These read what torch has pickled, and ask for its safe way by this name.
OF_TORCH = {"load", "load_state_dict_from_url", "load_url", "get_state_dict"}
LOADERS = {"SafeLoader", "CSafeLoader", "BaseLoader", "CBaseLoader"}


def faults(source: str) -> list[str]:
    """What a module does that it may not, each with its line."""
    tree = ast.parse(source)
    full: dict[str, str] = {}  # what a name in this module stands for
    loaders: set[str] = set()  # YAML loaders of its own that are as safe as those they are made from
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {each.asname or each.name: each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            full |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    full = {name: re.sub("^numpy$", "np", whole) for name, whole in full.items()}

    def named(node: ast.expr) -> str:
        """The dotted name of what is called; its last part alone where it belongs to a value."""
        if isinstance(node, ast.Name):
            return full.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            before = named(node.value)
            return f"{before}.{node.attr}"
        return "?"

    def is_loader(node: ast.expr | None) -> bool:
        return node is not None and (named(node) in loaders or named(node) in {f"yaml.{name}" for name in LOADERS})

    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.bases and all(is_loader(base) for base in node.bases):
            loaders.add(node.name)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = named(node.func)
        last = name.rpartition(".")[2]
        options = {each.arg: each.value for each in node.keywords}
        constants = {key: value.value for key, value in options.items() if isinstance(value, ast.Constant)}
        wrong = (
            name in FORBIDDEN
            or last in UNPACKERS
            or (last in OF_TORCH and name.startswith("torch.") and constants.get("weights_only") is not True)
            or (last == "get_state_dict" and constants.get("weights_only") is not True)
            or (name == "np.load" and constants.get("allow_pickle", "allow_pickle" in options) is not False)
            or (name == "yaml.load" and not is_loader(options.get("Loader") or next(iter(node.args[1:]), None)))
            or ("shell" in options and constants.get("shell") is not False)
            or ("trust_remote_code" in options and constants.get("trust_remote_code") is not False)
        )
        if wrong:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


@pytest.mark.parametrize("file", sorted((ROOT / "distrib").rglob("*.py")), ids=lambda file: file.stem)
def test_no_module_opens_a_door(file: Path) -> None:
    assert faults(file.read_text(encoding="utf-8")) == [], file


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load(f)",
        "import torch; torch.load(f, weights_only=False)",
        "import torch; torch.load(f, weights_only=safe)",
        "import torch as t; t.load(f, map_location='cpu')",
        "from torch import load; load(f)",
        "from torch.hub import load_state_dict_from_url as get; get(url, check_hash=True)",
        "import torchvision; torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict(check_hash=True)",
        "import pickle; pickle.load(f)",
        "from pickle import loads as read; read(b)",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "import numpy; numpy.load(f, allow_pickle=yes)",
        "import yaml; yaml.load(f)",
        "import yaml; yaml.load(f, yaml.Loader)",
        "import yaml; yaml.load(f, Loader=yaml.UnsafeLoader)",
        "import yaml\nclass Mine(yaml.FullLoader): ...\nyaml.load(f, Mine)",
        "import yaml; yaml.unsafe_load(f)",
        "eval(text)",
        "import os; os.system('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import tarfile; tarfile.open(f).extractall(folder)",
        "import zipfile\nwith zipfile.ZipFile(f) as z: z.extract(name)",
        "import shutil; shutil.unpack_archive(f)",
    ],
)
def test_each_of_these_doors_would_be_seen(line: str) -> None:
    assert len(faults(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load(f, weights_only=True)",
        "import numpy as np; np.load(f)",
        "import numpy as np; np.load(f, allow_pickle=False)",
        "import yaml; yaml.safe_load(f)",
        "import yaml\nclass Mine(yaml.SafeLoader): ...\nyaml.load(f, Mine)",
        "net.eval()",
        "import safetensors.torch; safetensors.torch.load_file(f)",
        "from distrib import load; load(f)",
    ],
)
def test_these_are_no_doors(line: str) -> None:
    assert faults(line) == []


# --- code in a file of weights


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.witness,)


KINDS: dict[str, Callable[[Any, Path], object]] = {
    "archive": torch.save,
    "old torch": lambda value, file: torch.save(value, file, _use_new_zipfile_serialization=False),
    "plain pickle": lambda value, file: file.write_bytes(pickle.dumps(value)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    yield Trap(tmp_path / "it ran")
    assert not (tmp_path / "it ran").exists()


def loose(value: object) -> dict[str, object]:
    """A state dict with something in it."""
    return {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": value}


def checkpoints(folder: Path) -> Path:
    """Two checkpoints, the newer of which is to be tampered with."""
    for number in (100, 200):
        contents = Contents({"a": torch.zeros(2)}, {}, None, Progress(epoch=1), "{}", number)
        save_checkpoint(folder, contents, "data", Config().to_yaml(), 9)
    return folder / "step-00000200"


def vouch(checkpoint: Path) -> None:
    """Make the manifest say that these are the files that were written."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@kinds
def test_the_trap_is_one(tmp_path: Path, kind: str) -> None:
    KINDS[kind](Trap(tmp_path / "ran"), tmp_path / "file")
    if kind == "plain pickle":
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").is_dir()


@kinds
def test_code_in_a_checkpoint_is_not_run_though_its_manifest_vouches_for_it(
    tmp_path: Path, trap: Trap, kind: str
) -> None:
    newest = checkpoints(tmp_path / "checkpoints")
    KINDS[kind]({"optimizer": trap, "scaler": None, "progress": {}, "data": "data"}, newest / "trainer.pt")
    vouch(newest)
    with pytest.raises(DamagedError) as damage:
        load_checkpoint(newest)
    check_sentence(str(damage.value), "trainer.pt")
    check_sentence(refusal(lambda: find_checkpoint(newest.parent, str(newest), print), str(newest), "trainer.pt"))
    reports: list[str] = []
    chosen = find_checkpoint(newest.parent, "auto", reports.append)
    assert chosen is not None
    assert chosen.folder.name == "step-00000100"
    check_sentence(reports[0], newest)


@kinds
@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "model.json"])
def test_code_under_another_name_in_a_checkpoint_is_not_run(tmp_path: Path, trap: Trap, kind: str, name: str) -> None:
    newest = checkpoints(tmp_path / "checkpoints")
    KINDS[kind](trap, newest / name)
    vouch(newest)
    read_or_told(lambda: load_checkpoint(newest), refusal=DamagedError)
    read_or_told(lambda: load(newest))


@kinds
@pytest.mark.parametrize("name", ["resnet.pt", "resnet.pth", "resnet.safetensors"])
def test_code_in_first_weights_is_not_run(tmp_path: Path, trap: Trap, kind: str, name: str) -> None:
    file = tmp_path / name
    KINDS[kind](loose(trap), file)
    config = ModelConfig.model_validate({"weights": str(file)})
    sentence = refusal(lambda: make_model(config, ("Smiling", "Male"), True, 0), "model.weights", str(file))
    check_sentence(sentence)
    assert "weights_only" not in sentence  # torch's own advice is to read the file all the same


def test_code_in_place_of_imagenets_weights_is_not_run(
    tmp_path: Path, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision trusts what it finds in its folder of downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(loose(trap), tmp_path / "hub/checkpoints/resnet18-f37072fd.pth")
    config = ModelConfig.model_validate({"weights": "imagenet"})
    check_sentence(refusal(lambda: make_model(config, ("Smiling", "Male"), True, 0), "model.weights imagenet"))


def test_the_program_leaves_with_2_and_one_line(
    tmp_path: Path, faces: Path, trap: Trap, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(loose(trap), tmp_path / "resnet.pt")
    run = tmp_path / "run"
    common = ["--run.folder", run, "--run.device", "cpu", "--data.root", faces, "--data.image-size", 32, 32]
    common += ["--explain.after-training", False, "--tracking.mode", "disabled", "--train.precision", "no"]
    assert main(list(map(str, [*common, "--model.weights", tmp_path / "resnet.pt"]))) == 2
    check_sentence(capfd.readouterr().err.splitlines()[-1], "distrib: error: ", "resnet.pt")
    newest = checkpoints(run / "checkpoints")
    shutil.rmtree(run / "checkpoints/step-00000100")
    torch.save({"optimizer": trap}, newest / "trainer.pt")
    vouch(newest)
    assert main(list(map(str, [*common, "--resume", "auto"]))) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    check_sentence(said.splitlines()[-1], "distrib: error: ", "none of the 1 checkpoints")


# --- a state that fits no network: fused optimisers write where a tensor would be, whether or not one is there


def an_epoch(name: str) -> tuple[AttributeClassifier, Any, Checkpoint]:
    """A network, its optimiser, and a checkpoint of both after a step."""
    torch.manual_seed(0)
    net = AttributeClassifier(2)
    optimizer = make_optimizer(net, OptimConfig.model_validate({"name": name}))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = pickle.loads(pickle.dumps(optimizer.state_dict()))
    trainer = {"optimizer": state, "scaler": None, "progress": asdict(Progress(step=1)), "data": "data"}
    return net, optimizer, Checkpoint(Path("step-00000001"), dict(net.net.state_dict()), trainer)


def first_state(checkpoint: Checkpoint) -> dict[str, Any]:
    return checkpoint.trainer["optimizer"]["state"][0]


MISFITS: dict[str, Callable[[Checkpoint], object]] = {
    "a weight is missing": lambda checkpoint: checkpoint.weights.pop("conv1.weight"),
    "a weight has another shape": lambda checkpoint: checkpoint.weights.update({"fc.bias": torch.zeros(7)}),
    "no optimiser": lambda checkpoint: checkpoint.trainer.update(optimizer=None),
    "an empty optimiser": lambda checkpoint: checkpoint.trainer.update(optimizer={}),
    "no groups": lambda checkpoint: checkpoint.trainer["optimizer"].update(param_groups=[]),
    "an average has another shape": lambda checkpoint: first_state(checkpoint).update(exp_avg=torch.zeros(3)),
    "an average is missing": lambda checkpoint: first_state(checkpoint).pop("exp_avg"),
    "an average is text": lambda checkpoint: first_state(checkpoint).update(exp_avg="text"),
    "a parameter has no state": lambda checkpoint: checkpoint.trainer["optimizer"]["state"].pop(0),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_state_that_fits_no_network_is_refused_before_it_is_used(misfit: str) -> None:
    net, optimizer, checkpoint = an_epoch("adamw")
    MISFITS[misfit](checkpoint)
    alone = SimpleNamespace(scaler=None)
    check_sentence(refusal(lambda: restore(checkpoint, net, optimizer, alone), "step-00000001"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_state_that_fits_is_taken(name: str) -> None:
    net, optimizer, checkpoint = an_epoch(name)
    state = pickle.loads(pickle.dumps(checkpoint.trainer["optimizer"]["state"]))
    for moment in (each for of_one in optimizer.state.values() for each in of_one.values()):
        moment.zero_()
    restore(checkpoint, net, optimizer, SimpleNamespace(scaler=None))  # type: ignore[arg-type]
    for parameter, moments in zip(net.parameters(), state.values(), strict=True):
        assert all(torch.equal(optimizer.state[parameter][key], value) for key, value in moments.items())


# --- a model from somewhere


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "best")


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_model_json_is_a_description_or_a_sentence(model: Path, data: st.DataObject) -> None:
    junk = [b"", b"null", b"-1", b"1e999", b"NaN", b"9" * 5000, b'"a\\nb"', b'"\\u001b[2J"', b'"\\ud800"', b"[" * 3000,
            b"[]", b"{}", b"\xff", b"\0", b'"', b"{", b"]", b",", b"1000000000", b"true"]  # fmt: skip
    content = data.draw(edited((model / "model.json").read_bytes(), junk) | st.binary(max_size=30))
    file = model / "edited.json"
    file.write_bytes(content)
    found = read_or_told(lambda: read_description(file), file)
    if found is not None:
        assert max(found.image_size) <= 4096
        for name in found.attributes:
            check_sentence(name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", [10**9, 10**9]),
        ("image_size", [10**30, 32]),
        ("attributes", ["Smiling", "Smiling", "Male"]),
        ("attributes", ["Smiling", "\x1b[2J", "Male"]),
        ("attributes", ["Smiling", "two\nlines", "Male"]),
        ("validation", {"two\nlines": "high"}),
    ],
)
def test_a_description_cannot_fill_the_memory_or_steer_the_terminal(
    tmp_path: Path, model: Path, key: str, value: object
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    about = json.loads((model / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, key: value}))
    check_sentence(refusal(lambda: load(folder), str(folder / "model.json")))


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x", "a\0b", "two\nlines"])
def test_a_model_that_cannot_be_there_is_refused(name: str) -> None:
    check_sentence(refusal(lambda: load(name)))


# --- images that promise more than a machine has


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_a_bomb_is_refused_before_its_memory_is_asked_for(tmp_path: Path, model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tests/support/bombs.py", str(tmp_path), str(model)],
        cwd=ROOT, env=clean_environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    predicted = outcome.pop("predict")
    assert len(outcome) >= 20
    for case, found in outcome.items():
        check_sentence(found["told"], case.split()[0], "pixels")
        # 65,000 x 65,000 pixels of three bytes are 12.7 GB; threads may take their arenas of 64 MB meanwhile.
        assert found["grown"] < 2**30, case
    assert predicted["told"] == "exit status 1"
    assert predicted["grown"] < 2**30
    refused = [line for line in done.stderr.splitlines() if line.startswith("distrib: error: ")]
    assert len(refused) == 11
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr


# --- secrets, and the rights of files

SECRETS = {
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f00112233f",
    "AWS_SECRET_ACCESS_KEY": "planted/AWS+secret/9Qm2",
    "HF_TOKEN": "hf_planted7Zk3",
    "GITHUB_TOKEN": "ghp_planted5Tq8",
    "SLURM_JWT": "eyJplanted.2Wc6",
    "SLURM_STEP_KEY_FILE_PASSWORD": "planted-4Hn1",
    "DATABASE_URL": "postgres://me:planted-8Vb3@db/celeba",
    "HTTPS_PROXY": "http://me:planted-6Jd9@127.0.0.1:9",
    "WANDB_BASE_URL": "http://me:planted-3Qe7@127.0.0.1:9",
}
NETRC = "planted0netrc0key0" + "ab" * 11
# Told apart from the secrets by this alone: it is no secret. W&B writes it down, so the search has something to find.
FOUND = {"SLURM_JOB_ID": "739182645"}


def train(folder: Path, faces: Path, umask: int, *more: object, **environment: str) -> str:
    """A run of one epoch in a process of its own; returns all that it printed."""
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {NETRC}\n")
    (home / ".netrc").chmod(0o600)
    command = [
        sys.executable, "distrib/train.py", "--run.folder", folder, "--run.device", "cpu", "--data.root", faces,
        "--data.attributes", "Smiling", "Male", "--data.image-size", 32, 32, "--train.batch-size", 32,
        "--train.epochs", 1, "--tracking.mode", "offline", "--explain.images", 1, "--explain.truth-images", 1,
        "--explain.bootstrap", 10, "--explain.modules", "conv1", "--explain.filters", "conv1",
        "--explain.window", 16, "--explain.stride", 16, *more,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=clean_environment(HOME=str(home), **environment), umask=umask,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str]]:
    """Two runs by their umask, each with its folder and what it printed: one with secrets around it and a report."""
    folders = {umask: tmp_path_factory.mktemp(f"umask-{umask:03o}") / "run" for umask in (0o027, 0o022)}
    more = {0o027: ["--tracking.upload-best", True], 0o022: ["--explain.after-training", False]}
    around = {0o027: {**SECRETS, **FOUND}, 0o022: {}}
    with ThreadPoolExecutor(2) as pool:
        printed = {u: pool.submit(train, folders[u], faces, u, *more[u], **around[u]) for u in folders}
        done = {umask: (folders[umask], printed[umask].result()) for umask in folders}
    assert (folders[0o027] / "report/index.html").is_file()
    assert list(folders[0o027].glob("wandb/offline-run-*/*.wandb"))
    return done


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file in a folder, and what is packed in its archives."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(file.relative_to(folder)), file.read_bytes()
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    yield f"{file.relative_to(folder)}/{name}", archive.read(name)


def test_no_secret_is_written_anywhere(runs: dict[int, tuple[Path, str]]) -> None:
    folder, printed = runs[0o027]
    # The part that is secret, without what stands around it.
    secrets = {name: re.search(r"planted[^@]*|^.*$", secret)[0] for name, secret in {**SECRETS, "netrc": NETRC}.items()}
    wanted = {**secrets, **FOUND}
    places: dict[str, list[str]] = {name: [] for name in wanted}
    for place, content in [*contents(folder), ("the terminal", printed.encode())]:
        for name, value in wanted.items():
            if value.encode() in content:
                places[name].append(place)
    assert places.pop("SLURM_JOB_ID"), "a search that finds nothing proves nothing"
    assert {name: found for name, found in places.items() if found} == {}


@pytest.mark.parametrize("umask", [0o027, 0o022], ids=oct)
def test_files_have_the_rights_that_the_umask_gives(runs: dict[int, tuple[Path, str]], umask: int) -> None:
    folder, _ = runs[umask]
    found = {path: path.lstat().st_mode for path in [folder, *folder.rglob("*")]}
    assert len(found) > 15
    odd = {
        str(path.relative_to(folder)): oct(stat.S_IMODE(mode))
        for path, mode in found.items()
        if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) != (0o777 if stat.S_ISDIR(mode) else 0o666) & ~umask
    }
    assert odd == {}


# --- the lock file


def test_every_package_is_locked_to_a_version_and_its_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9._-]*==[^ ;=]+ ", entry), entry
        assert re.search(r" --hash=sha256:[0-9a-f]{64}( |$)", entry), entry
        assert "://" not in entry, entry


PACKAGES = [{"name": "pillow", "version": "11.0", "vulns": []}, {"name": "torch", "version": "2.11", "vulns": []}]
KNOWN = {"name": "django", "version": "2.2", "vulns": [{"id": "X-1", "fix_versions": ["2.2.1"]}]}
HOLE = {"name": "pillow", "version": "11.0", "vulns": [{"id": "X-2", "fix_versions": ["11.9"]}]}


@pytest.mark.parametrize(
    ("answer", "status", "parts"),
    [
        pytest.param([*PACKAGES, KNOWN], 0, ["2 of 2 packages", "0 known"], id="nothing known"),
        pytest.param([HOLE, PACKAGES[1], KNOWN], 1, ["pillow 11.0 has X-2", "11.9", "1 known"], id="a hole"),
        pytest.param(
            [{"name": "torch", "skip_reason": "?"}, HOLE, KNOWN], 1, ["1 of 2", "service: torch"], id="one unknown"
        ),
        pytest.param(
            [{"name": each, "skip_reason": "?"} for each in ("pillow", "django")], 0, ["not checked"], id="blind"
        ),
        pytest.param([*PACKAGES, {**KNOWN, "vulns": []}], 0, ["not checked"], id="a service that knows nothing"),
        pytest.param(None, 0, ["not checked"], id="no service"),
    ],
)
def test_the_audit_fails_on_what_is_known_and_says_where_it_cannot_tell(
    tmp_path: Path, answer: list[dict[str, Any]] | None, status: int, parts: list[str]
) -> None:
    program = tmp_path / "pip-audit"
    text = json.dumps({"dependencies": answer})
    write = "" if answer is None else f"open(sys.argv[sys.argv.index('--output') + 1], 'w').write({text!r})"
    program.write_text(f"#!{sys.executable}\nimport sys\n{write}\nsys.exit(1)\n")
    program.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci/audit"], env={**os.environ, "PIP_AUDIT": str(program)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert done.stderr == ""
    for part in parts:
        assert part in done.stdout
    if "not checked" in parts:
        check_sentence(done.stdout.removesuffix("\n"))
