"""The `distrib` command: the programs of this folder as subcommands.

distrib train configs/celeba.yaml --optim.lr 3e-4
distrib explain runs/celeba
distrib predict runs/celeba photo.jpg
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from distrib.errors import UserError

USAGE = """usage: distrib COMMAND …

  train CONFIG          train, on all GPUs of this machine, or on two ranks on its CPU
  explain RUN           scores, figures, explanations and the report page of a run
  evaluate MODEL        exact scores on a split of a data set
  compare RUN RUN …     a page with several runs side by side
  predict MODEL PHOTO … attributes of the faces in photographs
  export MODEL          the model as one ONNX file
  prepare               make or prepare a data set

MODEL is a run, its best/, a checkpoint or an exported .onnx file. `distrib COMMAND --help` tells more of each."""


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
    """Check the configuration and the data, then hand over to `accelerate launch`."""
    from distrib.train import main as train_here

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    try:
        command = launch_command(arguments)
    except UserError as error:
        print(f"distrib: error: {error}", file=sys.stderr)
        return error.exit_status
    if command is not None:
        os.execv(command[0], command)  # this process becomes the launcher: signals and exit status are its own
    return train_here(arguments)


def launch_command(arguments: Sequence[str]) -> list[str] | None:
    """How to launch the training on this machine; None where one process is meant and needs no launcher.

    Raises:
        UserError: for whatever is wrong before the first step: it is said here once, without a launcher around it.
    """
    import torch

    from distrib.config import load_config
    from distrib.train import read_data
    from distrib.training.run_folder import RunFolder
    from distrib.training.runtime import check_batch, resolve

    config, _ = load_config(arguments)
    config = resolve(config)
    gpus = torch.cuda.device_count() if config.run.device == "cuda" else 0
    ranks = config.run.ranks or gpus or 2
    if gpus and ranks > gpus:
        raise UserError(f"run.ranks is {ranks}, and this machine has {gpus} GPUs: ask for at most {gpus}")
    check_batch(config, ranks)
    read_data(config)
    if config.run.folder is not None:
        RunFolder(config.run.folder).check(config.run.resume)
    if ranks == 1 and not gpus:
        return None
    kind = "cpu" if not gpus else "one_gpu" if ranks == 1 else "one_node"
    here = Path(__file__).resolve().parent
    folder = next(folder for folder in (here / "launch", here.parent / "launch") if folder.is_dir())
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / f"{kind}.yaml")]
    return [*launcher, "--num_processes", str(ranks), str(here / "train.py"), *arguments]


def program(name: str) -> Callable[[list[str]], int]:
    """The `main` of `distrib/NAME.py`, imported when it is called: no command waits for another's libraries."""

    def main_of(arguments: list[str]) -> int:
        status: int = import_module(f"distrib.{name}").main(arguments)
        return status

    return main_of


PROGRAMS = ("explain", "evaluate", "compare", "predict", "export", "prepare")
COMMANDS: dict[str, Callable[[list[str]], int]] = {"train": train, **{name: program(name) for name in PROGRAMS}}

if __name__ == "__main__":
    sys.exit(main())
