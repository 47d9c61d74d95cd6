"""How other people train the same network on the same images; for `benchmarks/train.py`, which starts each by itself.

All of them see the same JPEGs through a `DataLoader` that decodes with Pillow in worker processes, train torchvision's
(or timm's own) ResNet18, validate after each epoch and save a checkpoint then. Each is written as its documentation
writes it, in two forms:

- as it comes: in the precision, memory format and optimiser's kernels that one gets without asking.
- by hand: channels_last, the faster of bf16 and float32, fused AdamW, workers that are kept from epoch to epoch, a
  thread for each core, and nothing logged that waits for the device. They still decode with Pillow, and hand on
  float32.

A recipe is what it trains by: optimiser, schedule and augmentation. Two are those of the peers' own scripts, with
their schedules in shares of the run: torchvision's, and timm's without its warm-up of 5 epochs, which would be most of
a short run. One is that of the guides of Lightning and Accelerate. And one is a plain recipe for this data, AdamW
with a one-cycle schedule, mirror images and small crops.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.models import resnet18
from torchvision.transforms import functional as TF

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Recipe(NamedTuple):
    """What is trained by.

    Attributes:
        optimizer: adam, adamw or sgd, with a momentum of 0.9; timm's is Nesterov's.
        lr: the highest of the schedule.
        weight_decay: of all parameters; timm leaves out biases and norms, as this project does.
        schedule: constant; one-cycle; cosine; or thirds: a tenth after each third of the run.
        scale: the least share of the image's area that is cut out, and how far its sides' ratio may change.
        ratio: of the sides of what is cut out, at least and at most.
        jitter: of brightness, contrast and saturation.
    """

    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    scale: float
    ratio: tuple[float, float] = (1.0, 1.0)
    jitter: float = 0.0


WIDE = (3 / 4, 4 / 3)
# Learning rates of SGD are for 256 images, and go with the batch.
RECIPES = {
    # What this project's own run has too, so that engines are compared and nothing else; but for the schedule's curve,
    # AdamW's beta1 (which torch's schedule moves) and the decay of biases and norms, which take no time.
    "one-cycle": Recipe("adamw", 1e-3, 0.05, "one-cycle", 0.85**2),
    # Of the guides of Lightning and of Accelerate.
    "adam": Recipe("adam", 1e-3, 0.0, "constant", 1.0),
    # references/classification/train.py: lr 0.1, momentum 0.9, decay 1e-4, a tenth every 30 of 90 epochs.
    "torchvision": Recipe("sgd", 0.1, 1e-4, "thirds", 0.08, WIDE),
    # train.py: SGD at 0.1 for 256 images, decay 2e-5, cosine, colours jittered by 0.4.
    "timm": Recipe("sgd", 0.1, 2e-5, "cosine", 0.08, WIDE, 0.4),
}


class Job(NamedTuple):
    """What one process is to do.

    Attributes:
        trainer: of `TRAINERS`.
        by_hand: as described above.
        precision: no or bf16, where by hand.
        recipe: of `RECIPES`.
        folder: with `images/`, and `train.npz` and `valid.npz`: names and targets.
        size: height and width in pixels.
        batch_size: images in a step.
        epochs: to train.
        workers: processes that decode.
        seed: of weights, order and augmentation.
        out: file for the results.
    """

    trainer: str
    by_hand: bool
    precision: str
    recipe: str
    folder: str
    size: tuple[int, int]
    batch_size: int
    epochs: int
    workers: int
    seed: int
    out: str


class Faces(Dataset[tuple[Any, torch.Tensor]]):
    """The centred square of each image, transformed, and its targets float32 [A]."""

    def __init__(self, folder: Path, split: str) -> None:
        with np.load(folder / f"{split}.npz") as found:
            self.files = [folder / "images" / name for name in found["names"]]
            self.targets = torch.from_numpy(found["targets"]).float()
        self.transform: Callable[[Any], Any] = TF.to_tensor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Any, torch.Tensor]:
        image = Image.open(self.files[row]).convert("RGB")
        image = TF.center_crop(image, [min(image.size)] * 2)
        return self.transform(image), self.targets[row]


class Record:
    """When each epoch was validated, in seconds since training began, and what was said of the validation images."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.logits: list[np.ndarray] = []
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.monotonic()

    def epoch(self, logits_NA: torch.Tensor) -> None:
        self.logits.append(logits_NA.float().cpu().numpy())  # which waits for the device
        self.seconds.append(time.monotonic() - self._began)


def datasets(job: Job) -> tuple[Faces, Faces]:
    """Training and validation images."""
    recipe = RECIPES[job.recipe]
    train, valid = Faces(Path(job.folder), "train"), Faces(Path(job.folder), "valid")
    normalised = [T.ToTensor(), T.Normalize(MEAN, STD)]
    cut: list[Any] = [T.RandomResizedCrop(job.size, scale=(recipe.scale, 1), ratio=recipe.ratio)]
    if recipe.scale == 1:
        cut = [] if train[0][0].shape[1:] == job.size else [T.Resize(job.size)]
    jitter = [T.ColorJitter(*[recipe.jitter] * 3)] if recipe.jitter else []
    train.transform = T.Compose([*cut, T.RandomHorizontalFlip(), *jitter, *normalised])
    valid.transform = T.Compose([T.Resize(job.size), *normalised])
    return train, valid


def loaders(job: Job) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Batches of both; the last one of an epoch of training is left out where it is short, as everywhere here."""
    shared: dict[str, Any] = {"num_workers": job.workers, "pin_memory": DEVICE.type == "cuda"}
    if job.by_hand:
        shared |= {"persistent_workers": True, "prefetch_factor": 4}
    train, valid = datasets(job)
    return (
        DataLoader(train, job.batch_size, shuffle=True, drop_last=True, **shared),
        DataLoader(valid, job.batch_size, **shared),
    )


def network(job: Job, attributes: int) -> nn.Module:
    net = resnet18(num_classes=attributes).to(DEVICE)
    return net.to(memory_format=torch.channels_last) if job.by_hand else net


def learning_rate(job: Job) -> float:
    recipe = RECIPES[job.recipe]
    return recipe.lr * job.batch_size / 256 if recipe.optimizer == "sgd" else recipe.lr


def optimizer(job: Job, net: nn.Module) -> torch.optim.Optimizer:
    recipe, lr = RECIPES[job.recipe], learning_rate(job)
    fused = {"fused": True} if job.by_hand else {}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), lr, 0.9, weight_decay=recipe.weight_decay, **fused)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(net.parameters(), lr, weight_decay=recipe.weight_decay, **fused)


def schedule(job: Job, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over so many steps; it is told of each."""
    kind, lr = RECIPES[job.recipe].schedule, torch.optim.lr_scheduler
    if kind == "one-cycle":
        return lr.OneCycleLR(optimizer, learning_rate(job), steps)
    if kind == "cosine":
        return lr.CosineAnnealingLR(optimizer, steps)
    return lr.StepLR(optimizer, steps // 3 + 1) if kind == "thirds" else lr.ConstantLR(optimizer, 1.0)


def autocast(job: Job) -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=job.by_hand and job.precision == "bf16")


def torchvision_reference(job: Job, record: Record) -> None:
    """The loop of torchvision's references/classification: it looks at the loss and the accuracy in every step."""
    batches, valid = loaders(job)
    net = network(job, valid.dataset.targets.shape[1])
    opt = optimizer(job, net)
    rates = schedule(job, opt, job.epochs * len(batches))
    criterion = nn.BCEWithLogitsLoss()
    record.begin()
    for epoch in range(job.epochs):
        net.train()
        seen = {"loss": 0.0, "accuracy": 0.0}
        for images, targets in on_device(job, batches):
            with autocast(job):
                logits = net(images)
                loss = criterion(logits, targets)
            opt.zero_grad()
            loss.backward()
            opt.step()
            rates.step()
            if not job.by_hand:
                seen["loss"] += loss.item()
                seen["accuracy"] += right(logits, targets).item()
        record.epoch(validate(job, net, valid))
        state = {"model": net.state_dict(), "optimizer": opt.state_dict(), "lr": rates.state_dict(), "epoch": epoch}
        torch.save(state, f"{job.out}.checkpoint.pth")


def timm_loaders(job: Job) -> tuple[Any, Any]:
    """The batches of `loaders`, by timm's transforms, normalised as they are collected."""
    from timm.data import create_loader

    recipe = RECIPES[job.recipe]
    train, valid = Faces(Path(job.folder), "train"), Faces(Path(job.folder), "valid")
    shared: dict[str, Any] = {
        "input_size": (3, *job.size), "batch_size": job.batch_size, "num_workers": job.workers, "device": DEVICE,
        "pin_memory": DEVICE.type == "cuda", "mean": MEAN, "std": STD,
    }  # fmt: skip
    batches = create_loader(
        train,
        is_training=True,
        scale=(recipe.scale, 1),
        ratio=recipe.ratio,
        color_jitter=recipe.jitter or None,
        **shared,
    )
    return batches, create_loader(valid, crop_pct=1.0, **shared)


def timm_train(job: Job, record: Record) -> None:
    """The parts of timm's train.py: its model, transforms, loader, optimiser, loss, meters and checkpoints."""
    import timm
    from timm.loss import BinaryCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter, CheckpointSaver

    batches, valid = timm_loaders(job)
    recipe, attributes = RECIPES[job.recipe], valid.dataset.targets.shape[1]
    net = timm.create_model("resnet18", num_classes=attributes).to(DEVICE)
    if job.by_hand:
        net = net.to(memory_format=torch.channels_last)
    fused = {"fused": True} if job.by_hand else {}
    opt = create_optimizer_v2(net, recipe.optimizer, learning_rate(job), recipe.weight_decay, **fused)
    rates = schedule(job, opt, job.epochs * len(batches))
    criterion, losses = BinaryCrossEntropy(smoothing=0.0), AverageMeter()
    saver = CheckpointSaver(net, opt, checkpoint_dir=str(Path(job.out).parent), checkpoint_prefix=Path(job.out).stem)
    record.begin()
    for epoch in range(job.epochs):
        net.train()
        for step, (images, targets) in enumerate(on_device(job, batches)):
            with autocast(job):
                loss = criterion(net(images), targets)
            opt.zero_grad()
            loss.backward()
            opt.step()
            rates.step()
            if step % 50 == 0:
                losses.update(loss.item(), len(images))
        record.epoch(validate(job, net, valid))
        saver.save_checkpoint(epoch, metric=-losses.avg)


def lightning_trainer(job: Job, record: Record) -> None:
    """A LightningModule and a Trainer."""
    import lightning.pytorch as pl

    batches, valid = loaders(job)

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(job, valid.dataset.targets.shape[1])
            self.criterion = nn.BCEWithLogitsLoss()
            self.said: list[torch.Tensor] = []

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            images, targets = batch
            return (images.to(memory_format=torch.channels_last) if job.by_hand else images), targets

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images, targets = batch
            loss = self.criterion(self.net(images), targets)
            if not job.by_hand:
                self.log("train_loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            images, targets = batch
            logits = self.net(images)
            self.log("val_loss", self.criterion(logits, targets))
            self.log("val_accuracy", ((logits > 0) == targets).float().mean())
            self.said.append(logits)

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                record.epoch(torch.cat(self.said))
            self.said.clear()

        def configure_optimizers(self) -> Any:
            opt = optimizer(job, self)
            rates = schedule(job, opt, job.epochs * len(batches))
            return {"optimizer": opt, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    quiet: dict[str, Any] = {}
    if job.by_hand:
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
    precision = "bf16-mixed" if job.by_hand and job.precision == "bf16" else "32-true"
    accelerator = "gpu" if DEVICE.type == "cuda" else "cpu"
    trainer = pl.Trainer(
        max_epochs=job.epochs, accelerator=accelerator, devices=1, precision=precision,
        default_root_dir=f"{job.out}.lightning", **quiet,
    )  # fmt: skip
    classifier = Classifier()
    record.begin()  # the workers start within
    trainer.fit(classifier, batches, valid)


def accelerate_loop(job: Job, record: Record) -> None:
    """The loop of Accelerate's guide."""
    from accelerate import Accelerator

    precision = job.precision if job.by_hand else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=DEVICE.type == "cpu")
    batches, valid = loaders(job)
    net = network(job, valid.dataset.targets.shape[1])
    opt = optimizer(job, net)
    rates = schedule(job, opt, job.epochs * len(batches))
    net, opt, batches, valid, rates = accelerator.prepare(net, opt, batches, valid, rates)
    criterion = nn.BCEWithLogitsLoss()
    record.begin()
    for _ in range(job.epochs):
        net.train()
        seen = torch.zeros((), device=DEVICE)
        for images, targets in batches:
            if job.by_hand:
                images = images.to(memory_format=torch.channels_last)
            opt.zero_grad()
            loss = criterion(net(images), targets)
            accelerator.backward(loss)
            opt.step()
            rates.step()
            if not job.by_hand:
                seen += loss.detach()
        net.eval()
        said, accuracy = [], torch.zeros((), device=DEVICE)
        for images, targets in valid:
            with torch.no_grad():
                logits = net(images.to(memory_format=torch.channels_last) if job.by_hand else images)
            logits, targets = accelerator.gather_for_metrics((logits, targets))
            accuracy += right(logits, targets) * len(targets)
            said.append(logits)
        record.epoch(torch.cat(said))
        accelerator.save_state(f"{job.out}.state")


def on_device(job: Job, batches: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for images, targets in batches:
        images, targets = images.to(DEVICE, non_blocking=True), targets.to(DEVICE, non_blocking=True)
        yield (images.contiguous(memory_format=torch.channels_last) if job.by_hand else images), targets


@torch.inference_mode()
def validate(job: Job, net: nn.Module, batches: Any) -> torch.Tensor:
    """The logits [N, A] of all validation images; loss and accuracy are counted in passing, as loops do."""
    net.eval()
    criterion, said = nn.BCEWithLogitsLoss(), []
    loss, accuracy = torch.zeros((), device=DEVICE), torch.zeros((), device=DEVICE)
    for images, targets in on_device(job, batches):
        with autocast(job):
            logits = net(images)
        loss += criterion(logits, targets) * len(images)
        accuracy += right(logits, targets) * len(images)
        said.append(logits)
    print(f"validation loss {loss.item():.1f}, accuracy {accuracy.item():.1f}, of {len(batches.dataset)}")
    return torch.cat(said)


def right(logits_BA: torch.Tensor, targets_BA: torch.Tensor) -> torch.Tensor:
    return ((logits_BA > 0) == targets_BA).float().mean()


TRAINERS = {
    "torchvision's reference": torchvision_reference,
    "timm": timm_train,
    "Lightning": lightning_trainer,
    "Accelerate": accelerate_loop,
}
# What each is installed as.
PACKAGES = {
    "torchvision's reference": "torchvision", "timm": "timm", "Lightning": "lightning", "Accelerate": "accelerate",
}  # fmt: skip


def main() -> None:
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    job = job._replace(size=tuple(job.size))
    torch.manual_seed(job.seed)
    torch.backends.cudnn.benchmark = True  # as torchvision's and timm's scripts have it
    if job.by_hand:
        torch.set_num_threads(job.workers)
    record = Record()
    TRAINERS[job.trainer](job, record)
    np.savez(job.out, seconds=np.array(record.seconds), logits=np.stack(record.logits))


if __name__ == "__main__":
    main()
