"""A network on several ranks, in three stages of which each trains more of it: JSON on the last line."""

import json
import weakref
from types import SimpleNamespace

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

config = Config().replace("run", device="cpu").replace("train", precision="bf16", epochs=3).replace("optim", name="sgd")
config = resolve(config.replace("model", freeze="backbone 2:layer2 3:none"))
accelerator = start_ranks(config)
grouping = Grouping(norm_size=4, accumulation=1, micro_batch=4, synchronised=False, before=None, notes=())
torch.manual_seed(0)
net = AttributeClassifier(2)
run = SimpleNamespace(config=config, accelerator=accelerator, plan=SimpleNamespace(steps_per_epoch=2))
state = TrainState(run, net, grouping, Agreement(StopRequests(), accelerator), None)

# Each rank has images of its own.
images = torch.randint(
    0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(accelerator.process_index)
)
batch = Batch(images, torch.ones(4, 2), torch.arange(4))


def wrappers() -> int:
    """How many functions accelerate has put around `forward`."""
    count, function = 0, net.forward
    while hasattr(function, "__wrapped__"):
        count, function = count + 1, function.__wrapped__
    return count


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
    before = {name: parameter.detach().clone() for name, parameter in net.net.named_parameters()}
    while not state.position.at_end_of_epoch:
        state.step([batch])
    state.position = state.position.after_epoch()
    after = {name: parameter.detach().clone() for name, parameter in net.net.named_parameters()}
    of_ranks = gather_object([after])
    stages.append(
        {
            "moved": sorted({name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}),
            "same on all ranks": all(torch.equal(each[name], after[name]) for each in of_ranks for name in after),
            "wrappers": wrappers(),
            "earlier DDP is there": earlier is not None and earlier() is not None,
            "earlier buckets are there": left,
            "static graph": state.model.static_graph,
        }
    )
if accelerator.is_main_process:
    print(json.dumps(stages), flush=True)
accelerator.end_training()
