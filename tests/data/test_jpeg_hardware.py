"""Whether a GPU's JPEG hardware decodes; here libnvjpeg is asked where there is no GPU, or stands-in for it."""

import ctypes
from typing import Any

import pytest

from distrib.config import DataConfig
from distrib.data import jpeg_hardware
from distrib.data.decoders import dali_installed
from distrib.data.jpeg_hardware import describe_jpeg_hardware, has_jpeg_hardware


class Nvjpeg:
    """The two functions of libnvjpeg that are called, of a GPU that has JPEG hardware (status 0) or none."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.handles: list[int] = []

    def nvjpegCreateEx(self, backend: int, device: None, pinned: None, flags: int, handle: Any) -> int:  # noqa: N802
        assert (backend, device, pinned, flags) == (3, None, None, 0)
        if self.status == 0:
            ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = 77
            self.handles.append(77)
        return self.status

    def nvjpegDestroy(self, handle: ctypes.c_void_p) -> int:  # noqa: N802
        assert handle.value is not None
        self.handles.remove(handle.value)
        return 0


@pytest.mark.parametrize(("status", "found"), [(0, True), (7, False), (6, False)])  # 7: the GPU has none; 6: no driver
def test_nvjpeg_says_whether_there_is_some(monkeypatch: pytest.MonkeyPatch, status: int, found: bool) -> None:
    library = Nvjpeg(status)
    monkeypatch.setattr(jpeg_hardware, "find_nvjpeg", lambda: library)
    assert has_jpeg_hardware() is found
    assert library.handles == []


def test_without_nvjpeg_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_hardware, "find_nvjpeg", lambda: None)
    assert has_jpeg_hardware() is None
    assert "unknown" in describe_jpeg_hardware(DataConfig(), None, 8)


@pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
def test_the_nvjpeg_of_dali_is_found_and_answers() -> None:
    library = jpeg_hardware.find_nvjpeg()
    assert library is not None
    assert "libnvjpeg" in library._name
    assert has_jpeg_hardware() in (True, False)


def test_where_there_is_none_the_threads_and_the_remedy_are_said() -> None:
    assert describe_jpeg_hardware(DataConfig(), True, 8) == (
        "JPEG hardware: decodes 65 % of each batch (data.dali.hw_decoder_load)"
    )
    absent = describe_jpeg_hardware(DataConfig(), False, 8)
    assert absent.startswith(
        "JPEG hardware: none found: every image is Huffman-decoded by 8 threads of each rank (data."
    )
    assert "NVIDIA_DRIVER_CAPABILITIES" in absent
    unused = DataConfig.model_validate({"dali": {"hw_decoder_load": 0}})
    assert "not used, as data.dali.hw_decoder_load is 0: every image" in describe_jpeg_hardware(unused, True, 8)
