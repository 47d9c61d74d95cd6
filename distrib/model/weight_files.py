"""Weights in files of other trainings: what kind of file it is, and where in it the ResNet18 is.

Trainings wrap what they save: in mappings (`state_dict`, `model` …), in prefixes of the names (`module.`, `backbone.`
…) or in both, beside optimisers, options and averages. A list of such names would never be whole, so there is none:
where all of a ResNet18's names are with their shapes, after whatever prefix, there is one. Nothing in a file is run.
"""

import _compat_pickle
import builtins
import pickle
import re
import string
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torchvision.models import resnet18

from distrib.base.errors import UserError, first_line, printable

# How often BatchNorm has averaged: nothing reads it, and old files lack it.
COUNTER = "num_batches_tracked"
# Of every ResNet; what stands before it in a name is a prefix.
LANDMARK = "layer1.0.conv1.weight"
# Modules that compute features, by their first name: a ResNet's, and those that variants add. Others are of the head.
FEATURES = re.compile(r"(?:conv|bn|norm|gn|layer|stem|downsample|maxpool|se|ca|sa|cbam)\d*")
# A part of a name that says that weights were averaged over the training.
AVERAGED = {"ema", "averaged", "average", "avg", "swa", "polyak", "shadow"}
# Keys of a checkpoint of Lightning's WeightAveraging, which keeps the averaged weights under the last one.
LIGHTNING_AVERAGES = {"averaging_state", "current_model_state", "state_dict"}
# What BatchNorm has measured: buffers, which trainings that average parameters alone leave out.
STATISTICS = ("running_mean", "running_var", COUNTER)
# Blocks of the four layers, and whether they have a third convolution.
ARCHITECTURES = {
    ((2, 2, 2, 2), False): "ResNet18",
    ((3, 4, 6, 3), False): "ResNet34",
    ((2, 2, 2, 2), True): "ResNet26",
    ((3, 4, 6, 3), True): "ResNet50",
    ((3, 4, 23, 3), True): "ResNet101",
    ((3, 8, 36, 3), True): "ResNet152",
}
# First bytes of what is no weights, and what to call it.
ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
}
OTHERS = {
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"\x93NUMPY": "a NumPy array",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF",
    b"GGUF": "a GGUF file",
}
# The version of the format, and then the name of what wrote it, or what follows that.
ONNX = re.compile(rb"\x08[\x01-\x7f](?:\x12[\x01-\x7f][ -~]|[:B])")
PICKLE, OLD_TORCH = re.compile(rb"\x80[\x02-\x05]"), b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Modules of Python's own whose objects are found beside weights and do nothing. Whatever else of Python's own a file
# asks for is there to do something.
HARMLESS = {"argparse", "collections", "copyreg", "datetime", "decimal", "enum", "pathlib", "types", "uuid"}
# What NumPy's functions make that a file asks for.
OF_NUMPY = {"_reconstruct": "numpy array", "scalar": "numpy number"}
# Levels of mappings that are looked into, and things named in a sentence.
DEPTH, LISTED = 6, 8
EXPECTED = (
    "expected the weights of torchvision's ResNet18, whose layers timm's resnet18 has too (not resnet18d and the like)"
)


with torch.device("meta"):
    RESNET18 = resnet18().state_dict()  # names and shapes; the head may have any
CONV1 = "conv1.weight"
SHAPES = {name: [tensor.shape] for name, tensor in RESNET18.items()}
SHAPES[CONV1].append(torch.Size((64, 3, 3, 3)))  # of the stem for small images


@dataclass(frozen=True)
class Candidate:
    """A place in a file that holds a ResNet18, or something like it.

    Attributes:
        where: in the file, for people, and why this one, if it was chosen; empty where it is all of the file.
        weights: by torchvision's names, without what comes in place of a head of one layer.
        head: names of what comes there.
        problem: why it is no ResNet18; empty where it is one.
        averaged: whether these are averages over the training.
        taken: what averages of the parameters alone have from the plain network beside them; empty where nothing.
    """

    where: str
    weights: dict[str, torch.Tensor]
    head: tuple[str, ...]
    problem: str
    averaged: bool
    taken: str = ""


def read_tensors(file: Path) -> Any:
    """What a file of torch or safetensors holds, whatever its name ends in; no code of it is run.

    Raises:
        UserError: if it is something else, is damaged, or cannot be read without running code.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise UserError(f"model.weights {file} cannot be read ({error.strerror}): check the file") from None
    # It begins with the length of a JSON header, and the header.
    if len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 2**40:
        return _read_safetensors(file, head, size)
    _refuse_other_kinds(file, head, size)
    return _read_torch(file)


def find_network(file: str, loaded: Any) -> Candidate:
    """The ResNet18 in what was read from a file; of averaged weights and plain ones, the averaged.

    Args:
        file: its name, for the sentence.
        loaded: as `read_tensors` returns it.

    Raises:
        UserError: if there is none, or there are several that differ.
    """
    mappings = [*_mappings(loaded)]
    of_lightning = {(*path, "state_dict") for path, mapping in mappings if mapping.keys() >= LIGHTNING_AVERAGES}
    networks = [
        replace(network, averaged=network.averaged or path in of_lightning)
        for path, mapping in mappings
        for network in _networks(path, mapping)
    ]
    plain = [network for network in networks if not network.problem and not network.averaged]
    if plain and all(_same(plain[0], other) for other in plain[1:]):
        networks = [_completed(network, plain[0]) for network in networks]
        networks += [_paired(path, tensors, plain[0]) for path, tensors in _nameless_averages(mappings)]
    fitting = [network for network in networks if not network.problem]
    if not fitting:
        _refuse_content(file, loaded, networks)
    return _choose(file, networks, fitting)


def _choose(file: str, networks: Sequence[Candidate], fitting: Sequence[Candidate]) -> Candidate:
    """The one that is meant of those networks in a file that fit."""
    averaged = [network for network in fitting if network.averaged]
    plain = [network for network in fitting if not network.averaged]
    chosen, *others = averaged or plain
    differing = [other for other in others if not _same(chosen, other)]
    if differing:
        places = _listed([network.where or "at its top" for network in (chosen, *differing)])
        raise UserError(
            f"model.weights {file} has several ResNet18s, which differ ({places}): save the state dict of the one that "
            "is meant in a file of its own, by torch.save"
        )
    infinite = next((name for name, value in chosen.weights.items() if not value.float().isfinite().all()), None)
    if infinite is not None:
        raise UserError(
            f"model.weights {file} has {infinite} with values that are not finite, as a failed training leaves them, "
            "or float16, which has no room for large ones: name other weights"
        )
    if averaged and plain:
        there = plain[0].where or "at the top of the file"
        taken = f", whose {chosen.taken} they take" if chosen.taken else ""
        why = f"the averaged weights, {chosen.where}, rather than the plain ones, {there}{taken}"
        return replace(chosen, where=why)
    unfit = next((network for network in networks if network.averaged and network.problem), None)
    if unfit is not None and plain:
        there = chosen.where or "at the top of the file"
        return replace(chosen, where=f"the plain weights, {there}; what is averaged, {unfit.where}, {unfit.problem}")
    return chosen


# --- what kind of file it is


def _read_safetensors(file: Path, head: bytes, size: int) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except Exception as error:  # safetensors has one without a base, and torch others for types that it does not know
        header = 8 + int.from_bytes(head[:8], "little")
        ends = [int(end) for end in re.findall(rb'"data_offsets":\s*\[\s*\d+\s*,\s*(\d+)', file.read_bytes()[:header])]
        whole = header + max(ends, default=0)
        if size < whole:
            _refuse_cut_off(file, f"it has {size:,} of {whole:,} bytes")
        raise UserError(
            f"model.weights {file} cannot be read as .safetensors ({first_line(error)}): get the file again"
        ) from None


def _refuse_other_kinds(file: Path, head: bytes, size: int) -> None:
    """Refuse what is no file of torch.

    Raises:
        UserError: saying what it is.
    """
    if not size:
        raise UserError(f"model.weights {file} is empty (0 bytes): get the file again")
    if head.startswith(LFS_POINTER):
        of = re.search(rb"^size (\d{1,15})\r?$", head, re.MULTILINE)
        length = f" of {int(of[1]):,} bytes" if of else ""
        raise UserError(
            f"model.weights {file} is a Git LFS pointer, and not the file{length} that it stands for: get that by "
            "`git lfs pull` in its repository, or download it from there"
        )
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        title = re.search(r"<title[^>]*>([^<]*)</title>", head.decode("utf-8", "replace"), re.IGNORECASE)
        called = f' ("{" ".join(title[1].split())[:60]}")' if title and title[1].strip() else ""
        raise UserError(
            f"model.weights {file} is an HTML or XML page{called}, not weights, as a download that needs a "
            "login or a click leaves: download the file itself"
        )
    text = _text(head)
    if text is not None:
        raise UserError(
            f'model.weights {file} is text that begins with "{text.split(chr(10))[0][:40].strip()}", not weights: '
            "name a .safetensors file, or one that torch.save has written"
        )
    for signatures, remedy in ((ARCHIVES, "unpack it, and name the weights in it"), (OTHERS, EXPECTED)):
        kind = next((kind for start, kind in signatures.items() if head.startswith(start)), None)
        if kind is not None:
            raise UserError(f"model.weights {file} is {kind}, not a torch or safetensors file: {remedy}")
    if ONNX.match(head):
        raise UserError(
            f"model.weights {file} is an ONNX file, which holds a network to run, not a state dict: name the run or "
            "the model folder that it was exported from, or the weights of torch"
        )
    if PICKLE.match(head) and not head.startswith(OLD_TORCH, 2):
        raise UserError(
            f"model.weights {file} is a Python pickle, not a torch or safetensors file: if you trust it, "
            "load it with pickle.load, and save what is in it as a dict of tensors with torch.save"
        )
    if head[257:262] == b"ustar" and tarfile.is_tarfile(file):
        raise UserError(f"model.weights {file} is a tar archive: unpack it, and name the weights in it")
    if head.startswith(b"PK"):
        _refuse_other_zips(file, size)


def _refuse_other_zips(file: Path, size: int) -> None:
    """Refuse a zip archive that torch.save has not written, or not to its end.

    Raises:
        UserError: saying what it is.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        _refuse_cut_off(file, f"its end is not among its {size:,} bytes")
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        raise UserError(
            f"model.weights {file} is a TorchScript archive, which holds code, and nothing in a file is run: where you "
            f"trust it, save its tensors alone with torch.save(torch.jit.load(…).state_dict(), 'weights.pt')"
        )
    if "data.pkl" not in inside:
        raise UserError(
            f"model.weights {file} is a zip archive that torch.save has not written, with "
            f"{_listed([_short(name) for name in names]) or 'nothing'} in it: unpack it, and name the weights in it"
        )


def _refuse_cut_off(file: Path, evidence: str) -> NoReturn:
    raise UserError(f"model.weights {file} is cut off ({evidence}): get the file again")


def _text(head: bytes) -> str | None:
    """The beginning of a file, if it is text."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a letter is cut
            return None
        text = head[: error.start].decode("utf-8")
    letters = set(text) - set(string.whitespace)
    return text if all(letter.isprintable() or letter == "\ufeff" for letter in letters) else None


# --- reading a file of torch


def _read_torch(file: Path) -> Any:
    """What torch.load reads where it may read tensors alone; what else stands beside them becomes a `_stand_in`."""
    stand_ins: dict[str, type] = {}
    while True:
        allowed: list[Any] = [(made, name) for name, made in stand_ins.items()]
        try:
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals(allowed),
                file.open("rb") as stream,  # by a name torch would go by its ending
            ):
                warnings.simplefilter("ignore")
                return torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch each have their own, and bytes that are no pickle any other
            name = _asked_for(error)
            if name is not None and not _harmless(name):
                raise UserError(
                    f"model.weights {file} asks to run {name[:80]}, and nothing in a file is run: if you trust it, "
                    "save the tensors in it alone with torch.save(net.state_dict(), 'weights.pt')"
                ) from None
            if name is None or name in stand_ins:
                if stand_ins:  # it was tensors and objects up to here
                    _refuse_pickled(str(file), next(iter(stand_ins)))
                reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error)})"
                raise UserError(
                    f"model.weights {file} is not a torch or safetensors file, or is a damaged one{reason}: get the "
                    "file again, or name another one"
                ) from None
            stand_ins[name] = _stand_in(name)


def _asked_for(error: Exception) -> str | None:
    """The class or function that torch.load has refused to import; None if that is not what was wrong."""
    refused = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
    if not isinstance(error, pickle.UnpicklingError) or refused is None:
        return None
    return refused[1] if "." in refused[1] else f"builtins.{refused[1]}"  # torch leaves that out


def _harmless(name: str) -> bool:
    """Whether what a file asks for may be passed over; what else of Python's own it names, it names to have it run."""
    module, _, rest = name.partition(".")
    module = _compat_pickle.IMPORT_MAPPING.get(module, module)  # torch writes the names of Python 2
    if module == "builtins":
        return isinstance(getattr(builtins, rest, None), type)
    return module in HARMLESS or module not in sys.stdlib_module_names


def _stand_in(name: str) -> type:
    """A class to take the place of a pickled object's own, which is never imported: it makes an empty mapping.

    torch's reader fills an OrderedDict, and no other type, with the items and the fields of an object.
    """

    class StandIn:
        def __new__(cls, *_: Any, **__: Any) -> Any:
            if name.startswith("numpy."):  # a number or its type, whose state is no fields
                return object.__new__(cls)
            made: OrderedDict[Any, Any] = OrderedDict()
            vars(made)["pickled class"] = name
            return made

        def __setstate__(self, _: Any) -> None:
            """Keep nothing."""

    StandIn.__name__ = OF_NUMPY.get(name.rpartition(".")[2], name)  # what a person is told it is
    return StandIn


def _pickled(value: Any) -> str | None:
    """The class of a pickled object that a stand-in has taken the place of."""
    return vars(value).get("pickled class") if isinstance(value, OrderedDict) else None


def _refuse_pickled(file: str, name: str, under: str = "") -> NoReturn:
    where = f" under {under}" if under else ""
    raise UserError(
        f"model.weights {file} holds a pickled {name[:80]}{where}, whose own code would have to run, and nothing in a "
        "file is run: if you trust it, load it with torch.load(…, weights_only=False), and save its tensors alone with "
        "torch.save(net.state_dict(), 'weights.pt')"
    )


# --- looking for the network


def _mappings(
    value: Any, path: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every mapping in what was read, once, after its keys."""
    seen = set() if seen is None else seen
    if len(path) > DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    items: Sequence[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        yield path, value
        items = [*value.items(), *(vars(value).items() if _pickled(value) else ())]
    elif isinstance(value, list | tuple):
        items = [*enumerate(value)]
    for key, inner in items:
        if isinstance(inner, Mapping | list | tuple):
            yield from _mappings(inner, (*path, str(key)), seen)


def _networks(path: tuple[str, ...], mapping: Mapping[Any, Any]) -> Iterator[Candidate]:
    """What in a mapping has names like a ResNet's, after one prefix each."""
    names = [name for name in mapping if isinstance(name, str)]
    prefixes = [
        name.removesuffix(LANDMARK)
        for name in names
        if name.endswith(LANDMARK) and name.removesuffix(LANDMARK)[-1:] in ("", ".")
    ]
    prefixes = [prefix for prefix in prefixes if isinstance(mapping[prefix + LANDMARK], torch.Tensor)]
    for prefix in prefixes:
        inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        found = {
            name.removeprefix(prefix): mapping[name]
            for name in names
            if name.startswith(prefix) and not (inner and name.startswith(inner))
        }
        yield _network(path, prefix, found)


def _network(path: tuple[str, ...], prefix: str, found: dict[str, Any]) -> Candidate:
    under = _under(path)
    after = f"in the names that begin with {_short(prefix)}" if prefix else ""
    head = {name: value for name, value in found.items() if _is_of_head(name, value)}
    weights = {
        name: value
        for name, value in found.items()
        if name not in head and (name in RESNET18 or not _beside(name, value))
    }
    problem = _problem(weights)
    if set(head) == {"fc.weight", "fc.bias"} and all(_flaw(value) is None for value in head.values()):
        weights |= head
    where = ", ".join(part for part in (under, after) if part)
    return Candidate(where, weights, tuple(head), problem, _says_averaged(*path, prefix))


def _under(path: tuple[str, ...]) -> str:
    return f"under {' and '.join(_short(key) for key in path)}" if path else ""


def _says_averaged(*names: str) -> bool:
    words = {word.lower() for name in names for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return bool(words & AVERAGED)


def _completed(network: Candidate, plain: Candidate) -> Candidate:
    """Averages of the parameters alone with the plain network's statistics; what lacks anything else as it is."""
    if not network.averaged or not network.problem:
        return network
    statistics = {
        name: value
        for name, value in plain.weights.items()
        if name.endswith(STATISTICS) and name not in network.weights
    }
    weights = {**network.weights, **statistics}
    if _problem({name: value for name, value in weights.items() if not name.startswith("fc.")}):
        return network
    return replace(network, weights=weights, problem="", taken="running means and variances")


def _nameless_averages(
    mappings: Sequence[tuple[tuple[str, ...], Mapping[Any, Any]]],
) -> Iterator[tuple[tuple[str, ...], Sequence[torch.Tensor]]]:
    """Averages that are tensors without names, as torch_ema's `shadow_params`; a ResNet's first layer is in them."""
    for path, mapping in mappings:
        for key, value in mapping.items():
            if (
                isinstance(value, list | tuple)
                and all(isinstance(each, torch.Tensor) for each in value)
                and any(each.shape in SHAPES[CONV1] for each in value)
                and _says_averaged(*path, str(key))
            ):
                yield (*path, str(key)), value


def _paired(path: tuple[str, ...], tensors: Sequence[torch.Tensor], plain: Candidate) -> Candidate:
    """Averages without names, by those of the plain network's parameters in their order, if all shapes are theirs.

    What comes behind the backbone is a head, of any shapes.
    """
    names = [name for name in plain.weights if not name.endswith(STATISTICS)]
    if _shapes(tensors) != _shapes(plain.weights[name] for name in names):
        names = [name for name in names if not name.startswith("fc.")]
    problem = f"is a list of {len(tensors)} tensors without names, and not of those parameters in their order"
    unnamed = Candidate(_under(path), {}, (), problem, averaged=True)
    if _shapes(tensors[: len(names)]) != _shapes(plain.weights[name] for name in names):
        return unnamed
    weights = dict(zip(names, tensors, strict=False))
    network = _completed(replace(unnamed, weights=weights, head=plain.head), plain)
    return unnamed if network.problem else replace(network, taken=f"names, in their order, and {network.taken}")


def _shapes(tensors: Iterable[torch.Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors]


def _is_of_head(name: str, value: Any) -> bool:
    """Whether a tensor at the level of a ResNet's layers is of what comes behind them, whatever that is called."""
    module, dot, _ = name.partition(".")
    return module == "fc" or bool(dot and isinstance(value, torch.Tensor) and not FEATURES.fullmatch(module))


def _beside(name: str, value: Any) -> bool:
    """Whether something among the tensors of a network is none of them, such as the number of the epoch."""
    return not isinstance(value, torch.Tensor) or (value.ndim == 0 and "." not in name)


def _problem(weights: Mapping[str, Any]) -> str:
    """Where a network first differs from a ResNet18, but for its head; empty if nowhere."""
    wrong = next((misfit for name, value in weights.items() if (misfit := _misfit(name, value))), None)
    lacking = [name for name in RESNET18 if not (name in weights or name.startswith("fc.") or name.endswith(COUNTER))]
    problem = f"has {wrong}" if wrong else f"lacks {lacking[0]}" if lacking else ""
    architecture = _architecture(weights)
    return f"is a {architecture}: it {problem}" if problem and architecture not in (None, "ResNet18") else problem


def _misfit(name: str, value: Any) -> str:
    """What is wrong with a tensor under this name; empty if nothing."""
    if name not in RESNET18:
        return f"{_short(name)}, which does not fit"
    if flaw := _flaw(value, counts=name.endswith(COUNTER)):
        return f"{name} {flaw}"
    if value.shape not in SHAPES[name]:
        return f"{name} of shape {list(value.shape)}, not {list(RESNET18[name].shape)}, which does not fit"
    return ""


def _flaw(value: Any, counts: bool = False) -> str | None:
    """Why a value is no tensor of weights; None if it is one."""
    if not isinstance(value, torch.Tensor):
        return "that is not a tensor, as a state dict has"
    if value.is_nested or value.is_meta or value.is_quantized or value.layout is not torch.strided:
        return "that is not a plain tensor, as a state dict has, but a sparse, quantised, nested or empty one"
    if not counts and not value.is_floating_point():
        return f"of numbers of type {str(value.dtype).removeprefix('torch.')}, and not of floats"
    return None


def _architecture(names: Mapping[str, Any]) -> str | None:
    """Which ResNet has such names; None if none that is known."""
    blocks = {tuple(name.split(".")[:2]) for name in names if re.match(r"layer[1-4]\.\d+\.", name)}
    count = tuple(sum(layer == f"layer{i}" for layer, _ in blocks) for i in range(1, 5))
    return ARCHITECTURES.get((count, "layer1.0.conv3.weight" in names))  # type: ignore[arg-type]


def _same(one: Candidate, other: Candidate) -> bool:
    body = [
        {name: value for name, value in each.weights.items() if not name.endswith(COUNTER)} for each in (one, other)
    ]
    return body[0].keys() == body[1].keys() and all(
        torch.equal(value, body[1][name]) for name, value in body[0].items()
    )


def _refuse_content(file: str, loaded: Any, networks: Sequence[Candidate]) -> NoReturn:
    """Say what a file holds in place of a ResNet18."""
    if networks:
        nearest = max(networks, key=lambda network: len(network.weights))
        where = f", {nearest.where}," if nearest.where else ""
        raise UserError(f"model.weights {file}{where} {nearest.problem}: {EXPECTED}")
    for path, mapping in _mappings(loaded):
        name = _pickled(mapping)
        if name is not None and "_modules" in vars(mapping):
            _refuse_pickled(file, name, " and ".join(path))
        for key, value in mapping.items():
            if str(key).endswith("conv1.weight") and type(value).__name__ == OF_NUMPY["_reconstruct"]:
                where = f", {_under(path)}," if path else ""
                raise UserError(
                    f"model.weights {file}{where} has {_short(key)} that is a NumPy array, not a tensor: if you "
                    "trust it, load it with torch.load(…, weights_only=False), and save its arrays as tensors with "
                    "torch.from_numpy and torch.save"
                )
    if isinstance(loaded, Mapping):
        top = [f"{_short(key)} ({_kind(value)})" for key, value in loaded.items()]
        content = f"at its top {'are ' + _listed(top) if top else 'is nothing'}"
    else:
        content = f"it is {_kind(loaded)}"
    raise UserError(f"model.weights {file} holds no state dict of a ResNet18, {content}: {EXPECTED}")


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor {list(value.shape)}"
    if name := _pickled(value):
        return name
    if isinstance(value, Mapping | list | tuple):
        return f"{'dict' if isinstance(value, Mapping) else type(value).__name__} of {len(value)}"
    return type(value).__name__


def _listed(names: Sequence[str]) -> str:
    """Some of these, and how many more there are."""
    shown = "; ".join(names[:LISTED])
    return shown if len(names) <= LISTED else f"{shown}; and {len(names) - LISTED} more"


def _short(name: Any) -> str:
    text = printable(str(name))
    return text if len(text) <= 80 else f"{text[:77]}..."
