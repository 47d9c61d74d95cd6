"""Whether a GPU's JPEG hardware decodes for DALI, which goes without it and says nothing where it cannot."""

import ctypes
import importlib.util
from pathlib import Path

import torch

from distrib.base.words import plural
from distrib.config import DataConfig

_BACKEND_HARDWARE = 3  # NVJPEG_BACKEND_HARDWARE in nvjpeg.h


def hardware_share(config: DataConfig) -> float:
    """The share of each batch that DALI is to send to the JPEG hardware; none where torch is to be deterministic.

    Its pixels differ a little from those of the GPU's cores, so that an image's would depend on its place in the batch,
    and so on the number of ranks.
    """
    return 0.0 if torch.are_deterministic_algorithms_enabled() else config.dali.hw_decoder_load


def find_nvjpeg() -> ctypes.CDLL | None:
    """The nvJPEG that DALI decodes with: of the packages that it is installed with, else the system's; None: none."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    found = [str(path) for folder in folders for path in sorted(folder.glob("*/lib/libnvjpeg.so.*"))]
    for name in (*found, "libnvjpeg.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def has_jpeg_hardware() -> bool | None:
    """Whether nvJPEG has the JPEG hardware of this GPU; None: there is no nvJPEG to ask.

    nvImageCodec, which decodes for DALI, asks it the same (`isPlatformSupported` in its nvjpeg extension), and where it
    gets no handle it decodes on CPU threads and the GPU's cores.
    """
    nvjpeg = find_nvjpeg()
    if nvjpeg is None:
        return None
    handle = ctypes.c_void_p()
    if nvjpeg.nvjpegCreateEx(_BACKEND_HARDWARE, None, None, 0, ctypes.byref(handle)) != 0:
        return False
    nvjpeg.nvjpegDestroy(handle)
    return True


def describe_jpeg_hardware(config: DataConfig, found: bool | None, threads: int) -> str:
    """What decodes, for people.

    Args:
        config: whose images DALI decodes.
        found: as `has_jpeg_hardware` says.
        threads: of each rank that decode.
    """
    share = hardware_share(config)
    by_threads = f"every image is Huffman-decoded by {plural(threads, 'thread')} of each rank (data.threads)"
    if share == 0:
        why = "data.dali.hw_decoder_load is 0" if config.dali.hw_decoder_load == 0 else "train.deterministic is true"
        return f"JPEG hardware: not used, as {why}: {by_threads}"
    if found is None:
        return f"JPEG hardware: unknown, as libnvjpeg was not found; where there is none, {by_threads}"
    if found:
        return f"JPEG hardware: decodes {100 * share:.0f} % of each batch (data.dali.hw_decoder_load)"
    return (
        f"JPEG hardware: none found: {by_threads}. GPUs such as A100 and H100 have it; a container finds it if it is "
        "given the driver's video capability (NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
    )
