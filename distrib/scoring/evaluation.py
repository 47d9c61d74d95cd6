"""Exact evaluation: every image once, on any number of ranks.

Legend: N images, A attributes.
"""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from distrib.data.decoders import Decoder
from distrib.data.plan import evaluation_batches

# What the network's operations compute in, by `train.precision`; None: float32.
AUTOCAST: dict[str, torch.dtype | None] = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def predict_logits(
    accelerator: Accelerator,
    model: torch.nn.Module,
    decoder: Decoder,
    rows: NDArray[np.int64],
    attributes: int,
    batch_size: int,
    *,
    zoom: float,
    before_batch: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Logits float32 [N, A] of these rows, in their order, the same array on every rank.

    Args:
        accelerator: the ranks that share the work; all of them call this.
        model: as `accelerator.prepare` returned it, with its autocast.
        decoder: of this rank.
        rows: int64 [N], rows of the table, each once.
        attributes: A.
        batch_size: images in a forward pass of one rank.
        zoom: height and width of what is looked at, as a fraction of the crop's: `data.eval_zoom`.
        before_batch: called equally often on every rank, before each batch of the rank that has the most.
    """
    # Without DDP around it: ranks may have different numbers of batches here.
    net = accelerator.unwrap_model(model, keep_fp32_wrapper=True)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    on = accelerator.device, None, rank, ranks
    return score_rows(net, decoder, rows, attributes, batch_size, *on, zoom=zoom, before_batch=before_batch)


@torch.inference_mode()
def score_rows(
    net: torch.nn.Module,
    decoder: Decoder,
    rows: NDArray[np.int64],
    attributes: int,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype | None,
    rank: int = 0,
    ranks: int = 1,
    *,
    zoom: float,
    before_batch: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Logits float32 [N, A] of these rows, in their order: of a training's validation, `evaluate` and the report alike.

    Args:
        net: logits [B, A] of uint8 images [B, H, W, 3].
        decoder: of this rank.
        rows: int64 [N], rows of the table, each once.
        attributes: A.
        batch_size: images in a forward pass of one rank.
        device: of the network.
        precision: that autocast is told, one of `AUTOCAST`; None: as the network computes by itself.
        rank: of this process.
        ranks: that share the work; where there are several, all of them call this, and it needs their process group.
        zoom: height and width of what is looked at, as a fraction of the crop's: `data.eval_zoom`.
        before_batch: called equally often on every rank, before each batch of the rank that has the most.

    Raises:
        UserError: if an image cannot be read.
    """
    net.eval()
    # Each rank fills the rows that are its own and leaves zeros elsewhere, so the sum over ranks is exact; the last
    # column counts how often a row was filled.
    filled = torch.zeros(len(rows), attributes + 1, device=device)
    mine = filled[rank::ranks]
    start = 0
    batches = decoder.batches(evaluation_batches(rows, batch_size, rank, ranks, zoom))
    rounds = -(-len(filled[::ranks]) // batch_size)  # of rank 0; others may have one batch less
    for _ in range(rounds):
        before_batch()
        batch = next(batches, None)
        if batch is None:
            continue
        with torch.autocast(device.type, precision) if precision else nullcontext():
            mine[start : start + len(batch), :attributes] = net(batch.images_BHWC).float()
        mine[start : start + len(batch), attributes] += 1
        start += len(batch)
    assert next(batches, None) is None, "the rounds were too few"
    if ranks > 1:
        torch.distributed.all_reduce(filled)
    assert bool((filled[:, attributes] == 1).all()), "every image is evaluated exactly once"
    return filled[:, :attributes].cpu().numpy()
