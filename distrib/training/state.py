"""The state of a training: made, put back out of a checkpoint, stepped and read."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from distrib.base.errors import UserError, first_line, out_of_memory
from distrib.data.augmentation import Augmentation
from distrib.data.batch import Batch
from distrib.model.network import AttributeClassifier
from distrib.ranks.stopping import Agreement
from distrib.training.checkpoint import Checkpoint, Progress
from distrib.training.compilation import of_the_compiler
from distrib.training.ema import MovingAverage
from distrib.training.grouping import Grouping
from distrib.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from distrib.training.position import Position
from distrib.training.step import StepLook, StepStats, TrainStep
from distrib.training.training_run import TrainingRun


@dataclass(frozen=True)
class Look:
    """What the steps of an epoch had come to at a moment of it.

    Attributes:
        position: of the run then.
        learning_rate: the head's, in the last step before.
        seconds: spent on the steps of the epoch until then.
        stats: what the device had computed.
        speed: metrics of how fast that was, by their names in W&B.
    """

    position: Position
    learning_rate: float
    seconds: float
    stats: StepStats
    speed: Mapping[str, float]


class TrainState:
    """What the steps of a run change: the network, DDP around it, the optimiser, fp16's scaler, and the position.

    Which layers are trained, on which images, how these are augmented, and at which learning rate are functions of the
    position, and no state.

    Args:
        run: what is trained on what.
        net: as it begins; a checkpoint's weights replace its own.
        grouping: how a global batch is cut up.
        agreement: of the ranks, which goes with every step.
        checkpoint: to resume from; None: the run is new.

    Attributes:
        net: the network itself.
        model: the same as accelerate prepares it: with autocast, and in DDP where there are several ranks.
        optimizer: over all that is ever trained.
        average: of the network's weights, which is what is validated and kept; None without `train.ema`.
        position: how many steps it has come.

    Raises:
        UserError: if the checkpoint is not the state of this network and this optimiser, or of such epochs.
    """

    _train_step: TrainStep  # of the epoch under way

    def __init__(
        self,
        run: TrainingRun,
        net: AttributeClassifier,
        grouping: Grouping,
        agreement: Agreement,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._config, self._accelerator, self._agreement = run.config, run.accelerator, agreement
        self._positive_weight = positive_weight(run)
        self._augment = Augmentation(run.config.augment, run.config.train.seed)
        progress = Progress() if checkpoint is None else checkpoint.progress
        self.position = Position(progress.epoch, progress.step, run.plan.steps_per_epoch)
        self._looks: deque[tuple[Position, float, StepLook, Mapping[str, float]]] = deque()
        if checkpoint is not None and self.position.step > self.position.steps_per_epoch:
            raise UserError(
                f"{checkpoint.folder} is at step {self.position.step} of an epoch of {self.position.steps_per_epoch} "
                "steps: name another, or start anew in another run.folder"
            )
        self.net = net.to(run.accelerator.device)
        if grouping.synchronised:
            net.synchronise_norms()
        # One optimiser for all that is ever trained, which is what is trained at the end: each stage frees more.
        net.freeze(run.config.model.freeze_in(run.config.train.epochs))
        optimizer = make_optimizer(net, run.config.optim)
        net.freeze(run.config.model.freeze_in(progress.epoch + 1))
        # The graph is the same every step, but no_sync, which accumulation needs, is not made for static graphs.
        run.accelerator.ddp_handler.static_graph = grouping.accumulation == 1
        ema = run.config.train.ema
        self.average = None if ema is None else MovingAverage(net, ema)
        self.model, self.optimizer = run.accelerator.prepare(net, optimizer)
        if self.average is not None:
            run.accelerator.prepare_model(self.average.net, evaluation_mode=True)  # autocast, and no DDP
            self.average.begin()  # only now all ranks have rank 0's weights, by DDP
        if checkpoint is not None:
            restore(checkpoint, net, self.optimizer, run.accelerator, self.average)

    @property
    def kept(self) -> AttributeClassifier:
        """The network that is validated and kept: the average, where there is one."""
        return self.net if self.average is None else self.average.net

    @property
    def learning_rate(self) -> float:
        """The head's learning rate in the last step."""
        return self._learning_rate_in(self.position.run_step - 1)

    def enter_epoch(self, progress: Progress) -> bool:
        """Train the layers of the epoch under way from here on.

        Args:
            progress: of the run; the sum of the losses and the skipped steps continue from there.

        Returns:
            Whether these are other layers than before.
        """
        changed = self.net.freeze(self._config.model.freeze_in(self.position.epoch + 1))
        if changed:
            del self.model, self._train_step  # and with the last reference to DDP its hooks
            self.model = wrap_again(self._accelerator, self.net)
        self.model.train()
        if self.average is not None:
            self.average.attach()
        self._train_step = TrainStep(
            self._config,
            self._accelerator,
            self.model,
            self.optimizer,
            self._positive_weight,
            self._agreement,
            progress.skipped,
            self.average,
        )
        self._train_step.begin_epoch(progress.loss_sum)
        return changed

    def step(self, micro_batches: Sequence[Batch]) -> None:
        """Train on this rank's share of the next global batch, augmented, without waiting for the device.

        Raises:
            UserError: if the network has to be compiled anew, which the probe should have seen, and cannot be.
        """
        number = self.position.run_step
        set_learning_rate(self.optimizer, self._learning_rate_in(number))
        augmented = [self._augment(batch, self.position.epoch) for batch in micro_batches]
        try:
            self._train_step(augmented, number)
        except Exception as error:
            if out_of_memory(error) or not of_the_compiler(error):
                raise
            train, run = self._config.train, self._config.run
            assert run.folder is not None
            raise UserError(
                f"train.compile is {train.compile}, and compiling the network failed in step {number + 1} (epoch "
                f"{self.position.epoch + 1}): {first_line(error)}; resume without it: --config "
                f"{run.folder / 'config.yaml'} --resume auto --train.compile no"
            ) from error
        self.position = self.position.after_step()

    def wait(self) -> None:
        """Wait for the device."""
        self._train_step.read()

    def look(self, seconds: float, speed: Mapping[str, float]) -> None:
        """Begin to look at what the steps of this epoch have come to, without waiting for the device.

        Args:
            seconds: spent on them so far.
            speed: metrics of how fast that was, by their names in W&B.
        """
        self._looks.append((self.position, seconds, self._train_step.look(), speed))

    def looks(self, wait: bool) -> Iterator[Look]:
        """The looks that the device has come to, in their order; the same on every rank.

        Args:
            wait: for the device, so that all of them are there.
        """
        while self._looks:
            position, seconds, look, speed = self._looks[0]
            if not wait and self.position.run_step - position.run_step < look.numbers.lag:
                return
            self._looks.popleft()
            yield Look(position, self._learning_rate_in(position.run_step - 1), seconds, look.stats(), speed)

    def _learning_rate_in(self, step: int) -> float:
        return learning_rate(self._config.optim, step, self.position.steps_per_epoch, self._config.train.epochs)


def positive_weight(run: TrainingRun) -> torch.Tensor | None:
    """Negatives / positives of each attribute in the training split, float [A]; None where the loss is not weighted."""
    if run.config.train.positive_weight == "none":
        return None
    positives = run.table.targets[run.splits.train].sum(axis=0, dtype=np.int64)
    weight = (len(run.splits.train) - positives) / np.maximum(positives, 1)
    return torch.tensor(weight, dtype=torch.float32, device=run.accelerator.device)


def wrap_again(accelerator: Accelerator, net: AttributeClassifier) -> torch.nn.Module:
    """The network as `accelerator.prepare` returns it, for a net of which another part is trained than before.

    DDP knows the parameters that were trained when it was made. Of the earlier one there is no reference left but the
    accelerator's.
    """
    accelerator.free_memory()
    if accelerator.num_processes > 1:
        # Without this it would put autocast around autocast.
        accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    model: torch.nn.Module = accelerator.prepare(net)
    return model


def restore(
    checkpoint: Checkpoint,
    net: AttributeClassifier,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    average: MovingAverage | None = None,
) -> None:
    """Put a checkpoint's state into the network, the optimiser, the scaler and the average of the weights.

    Raises:
        UserError: if it is not the state of this network and this optimiser.
    """
    try:
        if average is None:
            net.net.load_state_dict(checkpoint.weights)
        else:
            average.net.net.load_state_dict(checkpoint.weights)
            net.net.load_state_dict(checkpoint.trainer["network"])
        # The state and the last step's learning rate are the checkpoint's, but the settings (weight decay, momentum)
        # are those of today's configuration.
        settings = [{k: group[k] for k in group if k not in ("params", "lr")} for group in optimizer.param_groups]
        optimizer.load_state_dict(checkpoint.trainer["optimizer"])
        for group, today in zip(optimizer.param_groups, settings, strict=True):
            group.update(today)
        refuse_misfit(optimizer)
        lay_out(optimizer)
        if accelerator.scaler is not None and checkpoint.trainer["scaler"] is not None:
            accelerator.scaler.load_state_dict(checkpoint.trainer["scaler"])
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch has another for each kind of state that does not fit
        problem = " ".join(str(error).split())[:160]
        raise UserError(
            f"{checkpoint.folder} does not fit this training ({problem}): name another checkpoint, or start anew in "
            "another run.folder"
        ) from None


def refuse_misfit(optimizer: AcceleratedOptimizer) -> None:
    """Refuse a state that is not of the optimiser's own parameters: its fused kernels would write where it is not.

    Raises:
        ValueError: naming what does not fit.
    """
    for group in optimizer.param_groups:
        names = {"momentum_buffer"} if "momentum" in group else {"step", "exp_avg", "exp_avg_sq"}
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if set(state) != names:
                raise ValueError(f"the optimiser's state has {sorted(state)}, expected {sorted(names)}")
            for name, value in state.items():
                wanted = torch.Size() if name == "step" else parameter.shape
                if not torch.is_tensor(value) or value.shape != wanted or not value.is_floating_point():
                    raise ValueError(f"the optimiser's {name} does not have the shape {list(wanted)}")


def lay_out(optimizer: AcceleratedOptimizer) -> None:
    """Give each restored tensor its parameter's own memory layout.

    `load_state_dict` keeps the strides that were saved, and the fused kernels walk through parameter and state alike in
    the order of memory: where `train.channels_last` has changed they would pair values that do not belong together.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
