"""The network's forward and backward pass as one graph of torch's compiler; in which mode, and what holds for all."""

import torch

from distrib.config import Config, read_yaml
from distrib.model.network import AttributeClassifier
from distrib.training.checkpoint import Checkpoint
from distrib.training.grouping import Grouping

# Graphs that a process may compile of the network: one for each size of images and each part that is trained. torch's
# own limit is 8, beyond which it refuses.
GRAPHS = 64


def choose_mode(config: Config, checkpoint: Checkpoint | None, grouping: Grouping) -> Config:
    """The configuration with the mode of `train.compile: auto`, as far as that is known without trying.

    Args:
        config: resolved but for that.
        checkpoint: that the run resumes from; None: it is new.
        grouping: of its batches.

    Raises:
        UserError: if the mode that the run began with is one that `train.deterministic` refuses.
    """
    if config.train.compile != "auto":
        return config
    if grouping.synchronised:  # its forward pass speaks with the other ranks
        mode = "no"
    elif checkpoint is not None:
        mode = mode_of(checkpoint)
    # On a CPU it hardly saves anything (docs/performance.md). Whoever wants the same bits has torch's own kernels, of
    # which they are known, unless they ask otherwise.
    elif config.run.device == "cpu" or config.train.deterministic:
        mode = "no"
    else:
        mode = "default"
    return config.replace("train", compile=mode)


def mode_of(checkpoint: Checkpoint) -> str:
    """The mode in which the run of a checkpoint was compiled; a version that could not wrote down nothing."""
    mode: str = read_yaml(checkpoint.folder / "config.yaml").train.compile
    return "no" if mode == "auto" else mode


def of_the_compiler(error: Exception) -> bool:
    """Whether an error is torch's compiler's own, or Triton's, rather than one of what it has compiled."""
    # They have no type in common: some are RuntimeErrors, others are not.
    return type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.", "triton."))


def compile_network(net: AttributeClassifier, mode: str, deterministic: bool) -> None:
    """Have a network compiled at its next forward pass in training mode, and for each other size of images and each
    other part that is trained anew. What was compiled of it before is forgotten.

    Args:
        net: of this rank; DDP goes around it.
        mode: of torch.compile; "no": as it is.
        deterministic: whether no kernel may be chosen by its speed where that changes bits.
    """
    if net.compiled is not None:
        net.compiled = None
        torch.compiler.reset()  # gives back what CUDA graphs hold, too
    if mode == "no":
        return
    # Within DDP's forward pass torch would cut the graph in pieces the size of DDP's buckets (DDPOptimizer), so that
    # gradients are sent while others are computed. Whole, it is what the probe has compiled outside of DDP, the same on
    # any number of ranks, and loses no fusion at the cuts; DDP's hooks fire when the backward pass is over, and 45 MB
    # of gradients are then sent at once.
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = GRAPHS
    torch._inductor.config.deterministic = deterministic
    # Every batch of a training is whole: no size is to become a variable of a graph, also where images grow.
    net.compiled = torch.compile(AttributeClassifier.logits, fullgraph=True, dynamic=False, mode=mode)
