"""A network on several ranks, in three stages of which each trains more of it: JSON on the last line."""

import json
import weakref

import torch
from accelerate.utils import gather_object

from distrib.config import Config
from distrib.data.batch import Batch
from distrib.model.network import AttributeClassifier
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.training.loop import wrap_again
from distrib.training.optimizer import make_optimizer
from distrib.training.step import TrainStep

config = Config().replace("run", device="cpu").replace("train", precision="bf16").replace("optim", name="sgd")
config = resolve(config)
accelerator = start_ranks(config)
agreement = Agreement(StopRequests(), accelerator)
torch.manual_seed(0)
net = AttributeClassifier(2)
optimizer = make_optimizer(net, config.optim)
net.freeze("backbone")
model, optimizer = accelerator.prepare(net, optimizer)

# Each rank has pictures of its own.
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


stages = []
for policy in ("backbone", "layer2", "none"):
    earlier = None
    if net.freeze(policy):
        earlier = weakref.ref(model)
        del model
        model = wrap_again(accelerator, net)
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in net.net.named_parameters()}
    one_step = TrainStep(config, accelerator, model, optimizer, None, agreement)
    one_step([batch], 0)
    one_step([batch], 1)
    del one_step
    after = {name: parameter.detach().clone() for name, parameter in net.net.named_parameters()}
    of_ranks = gather_object([after])
    stages.append(
        {
            "moved": sorted({name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}),
            "same on all ranks": all(torch.equal(each[name], after[name]) for each in of_ranks for name in after),
            "wrappers": wrappers(),
            "earlier DDP is there": earlier is not None and earlier() is not None,
        }
    )
if accelerator.is_main_process:
    print(json.dumps(stages), flush=True)
accelerator.end_training()
