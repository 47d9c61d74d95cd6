"""A network on several ranks, in three stages of which each trains more of it."""

import weakref
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.multiprocessing.reductions import StorageWeakRef

from distrib.config import Config
from distrib.data.batch import Batch
from distrib.model.network import AttributeClassifier
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.training.checkpoint import Progress
from distrib.training.grouping import Grouping
from distrib.training.state import TrainState


def free_in_stages() -> list[dict[str, Any]]:
    """What this rank sees of each stage."""
    config = Config().replace("run", device="cpu").replace("train", precision="bf16", epochs=3)
    config = config.replace("optim", name="sgd").replace("model", freeze="backbone 2:layer2 3:none")
    config = resolve(config)
    accelerator = start_ranks(config)
    grouping = Grouping(norm_size=4, accumulation=1, micro_batch=4, synchronised=False, before=None, notes=())
    torch.manual_seed(0)
    net = AttributeClassifier(2)
    run: Any = SimpleNamespace(config=config, accelerator=accelerator, plan=SimpleNamespace(steps_per_epoch=2))
    state = TrainState(run, net, grouping, Agreement(StopRequests(), accelerator), None)

    # Each rank has images of its own.
    random = torch.Generator().manual_seed(accelerator.process_index)
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=random)
    batch = Batch(images, torch.ones(4, 2), torch.arange(4))

    buckets: list[StorageWeakRef] = []  # of DDP's in this stage, which the gradients are views of

    def note_buckets(*_: object) -> None:
        buckets.extend(StorageWeakRef(p.grad.untyped_storage()) for p in net.parameters() if p.grad is not None)

    state.optimizer.optimizer.register_step_pre_hook(note_buckets)
    stages = []
    while state.position.epoch < config.train.epochs:
        before_entering = weakref.ref(state.model)
        earlier = before_entering if state.enter_epoch(Progress()) else None
        left = [not bucket.expired() for bucket in buckets]
        buckets.clear()
        before = weights(net)
        while not state.position.at_end_of_epoch:
            state.step([batch])
        state.position = state.position.after_epoch()
        after = weights(net)
        of_ranks = gather_object([after])
        stages.append(
            {
                "moved": {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])},
                "same on all ranks": all(torch.equal(each[name], after[name]) for each in of_ranks for name in after),
                "wrappers": wrappers(net),
                "earlier DDP is there": earlier is not None and earlier() is not None,
                "earlier buckets are there": left,
                "static graph": state.model.static_graph,
            }
        )
    accelerator.end_training()
    return stages


def weights(net: AttributeClassifier) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.net.named_parameters()}


def wrappers(net: AttributeClassifier) -> int:
    """How many functions accelerate has put around `forward`."""
    count, function = 0, net.forward
    while hasattr(function, "__wrapped__"):
        count, function = count + 1, function.__wrapped__
    return count
