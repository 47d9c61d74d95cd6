"""The `distrib` command: the programs of this folder as subcommands.

distrib train configs/celeba.yaml --optim.lr 3e-4
distrib explain runs/celeba
distrib predict runs/celeba photo.jpg
"""

import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from distrib.errors import UserError
from distrib.paths import expanded_path
from distrib.streams import standard_streams

USAGE = """usage: distrib COMMAND …

  train CONFIG          train, on all GPUs of this machine, or on two ranks on its CPU, or as --launch FILE says
  check CONFIG          what `train` would refuse about configuration, data, weights and run folder, without a GPU;
                        with --here about this machine too
  explain RUN           scores, figures, explanations and the report page of a run
  evaluate MODEL        exact scores on a split of a data set
  compare RUN RUN …     a page with several runs side by side
  predict MODEL PHOTO … attributes of the faces in photographs
  export MODEL          the model as one ONNX file
  sweep STUDY           many trainings that differ in a few settings
  reproduce             the experiments of the report that this project began from, beside what it says
  prepare               make or prepare a data set

MODEL is a run, its best/, a checkpoint or an exported .onnx file. `distrib COMMAND --help` tells more of each."""


@standard_streams()
def main() -> int:
    """Run the subcommand that the command line names; returns its exit status."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in COMMANDS:
        print(f"distrib: error: there is no command {name}: choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[name](arguments)


def train(arguments: list[str]) -> int:
    """Check the configuration and the data, then train on all ranks of this machine.

    Returns:
        The exit status of the ranks, as `distrib/train.py` says; 128 + N where signal N ended the launcher.
    """
    from distrib.train import main as train_here

    try:
        file, arguments = _take_launch(_with_config(arguments))
        command = launch_command(arguments, file)
    except UserError as error:
        print(f"distrib: error: {error}", file=sys.stderr)
        return error.exit_status
    return train_here(arguments) if command is None else launch(command)


def check(arguments: list[str]) -> int:
    """Say what a training with these options would be of, or why it would be refused; nothing is written.

    Before a job waits for hours in a queue, for example. This machine is asked for what the training needs only after
    --here.
    """
    from distrib.config import load_config
    from distrib.train import check_start
    from distrib.training.runtime import resolve

    here = "--here" in arguments
    try:
        config, _ = load_config(_with_config([each for each in arguments if each != "--here"]))
        config = resolve(config) if here else config
        table, splits = check_start(config, config.run.ranks or 1)
    except UserError as error:
        print(f"distrib: error: {error}", file=sys.stderr)
        return error.exit_status
    for note in table.notes:
        print(f"distrib: warning: {note}", file=sys.stderr)
    print(f"data:    {config.data.root}")
    print(f"images:  {len(splits.train):,} train, {len(splits.valid):,} valid, {len(splits.test):,} test")
    print(f"labels:  {', '.join(table.attributes)}")
    print(f"folder:  {config.run.folder or 'none'}")
    return 0


def launch_command(arguments: Sequence[str], file: Path | None = None) -> list[str] | None:
    """The arguments of `accelerate launch` for this machine; None where one process is meant and needs no launcher.

    Args:
        arguments: of the training.
        file: configuration of accelerate's, which says how many ranks and where; None: that for this machine.

    Raises:
        UserError: for whatever is wrong before the first step: it is said here once, without a launcher around it.
    """
    import torch

    from distrib.config import load_config
    from distrib.train import check_start
    from distrib.training.runtime import cores, resolve

    config, _ = load_config(arguments)
    config = resolve(config)
    if file is not None:
        check_start(config, config.run.ranks or 1)
        port = [] if _of_several_machines(file) else ["--main_process_port", "0"]
        return ["--config_file", str(file), *port, str(Path(__file__).resolve().parent / "train.py"), *arguments]
    gpus = torch.cuda.device_count() if config.run.device == "cuda" else 0
    ranks = config.run.ranks or gpus or min(2, cores())
    if gpus and ranks > gpus:
        raise UserError(f"run.ranks is {ranks}, and this machine has {gpus} GPUs: ask for at most {gpus}")
    check_start(config, ranks)
    if ranks == 1:
        return None
    here = Path(__file__).resolve().parent
    folder = next(folder for folder in (here / "launch", here.parent / "launch") if folder.is_dir())
    file = folder / ("one_node.yaml" if gpus else "cpu.yaml")
    # Port 0: a free one, for several trainings on one machine.
    options = ["--config_file", str(file), "--num_processes", str(ranks), "--main_process_port", "0"]
    return [*options, str(here / "train.py"), *arguments]


@standard_streams(goes_on=True)
def launch(command: Sequence[str]) -> int:
    """`accelerate launch` in this process, with the ranks' own exit status and without a traceback of the launcher.

    Returns:
        0; the status of the rank that failed first; 3 where the kernel has killed it for want of memory; or 128 + N
        where signal N ended the launcher.
    """
    import logging

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from distrib.training.memory import kernel_kills
    from distrib.training.runtime import OUT_OF_MEMORY

    kills = kernel_kills()
    logging.disable(logging.ERROR)  # what the ranks say about their own end is enough
    try:
        launch_command(launch_command_parser().parse_args(list(command)))
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        killed = [rank for rank, each in error.failures.items() if each.exitcode == -signal.SIGKILL]
        if killed and kernel_kills() > kills:
            print(
                f"distrib: error: rank {killed[0]} was killed by the kernel, for want of memory on the machine or in "
                "the job: ask for more, start fewer ranks, or lower train.batch_size or data.prefetch",
                file=sys.stderr,
            )
            return OUT_OF_MEMORY
        if failure.exitcode < 0:
            print(f"distrib: rank {number} was ended by signal {-failure.exitcode}", file=sys.stderr)
            return 1
        return failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _take_launch(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The file that `--launch FILE` names, and the other arguments.

    Raises:
        UserError: if there is no such file.
    """
    if "--launch" not in arguments:
        return None, arguments
    place = arguments.index("--launch")
    file = expanded_path(Path(*arguments[place + 1 : place + 2]))
    if not file.is_file():
        raise UserError(f"--launch {file} is not a file: name a configuration of accelerate's, such as launch/cpu.yaml")
    return file, arguments[:place] + arguments[place + 2 :]


def _of_several_machines(file: Path) -> bool:
    """Whether a configuration of accelerate's is for several machines, which meet at a port that it names.

    Raises:
        UserError: if it cannot be read.
    """
    from distrib.config import read_mapping

    return bool(read_mapping(file, "--launch ", "keys such as num_processes:").get("num_machines", 1) != 1)


def _with_config(arguments: list[str]) -> list[str]:
    return ["--config", *arguments] if arguments and not arguments[0].startswith("-") else arguments


def program(name: str) -> Callable[[list[str]], int]:
    """The `main` of `distrib/NAME.py`, imported when it is called: no command waits for another's libraries."""

    def main_of(arguments: list[str]) -> int:
        status: int = import_module(f"distrib.{name}").main(arguments)
        return status

    return main_of


PROGRAMS = ("explain", "evaluate", "compare", "predict", "export", "sweep", "reproduce", "prepare")
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "check": check,
    **{name: program(name) for name in PROGRAMS},
}

if __name__ == "__main__":
    sys.exit(main())
