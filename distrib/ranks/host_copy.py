"""Small numbers on their way from the device to the host, which does not wait for them."""

import torch

# Steps after which the host looks at what the device has computed: by then it has long passed it.
LAG = 2


class HostCopy:
    """A copy of a tensor in the host's memory, made in the order of the device's own work.

    Args:
        tensor: on any device; it may be written anew as soon as this returns.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if tensor.device.type == "cpu":
            self._host = tensor.clone()
            return
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        # The host sleeps in its wait and does not spin: its core is needed for decoding.
        self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._copied.record()

    @property
    def lag(self) -> int:
        """Steps to let pass before `get`, so that it need not wait: 0 on a CPU, which computes when it is told to."""
        return 0 if self._copied is None else LAG

    def get(self) -> torch.Tensor:
        """The numbers, once the device has come to them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host
