"""The `distrib` command: the programs of this folder as subcommands.

distrib train configs/celeba.yaml --optim.lr 3e-4
distrib explain runs/celeba
distrib predict runs/celeba photo.jpg
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from distrib.base.errors import UserError
from distrib.base.paths import expanded_path
from distrib.base.program import program

USAGE = """usage: distrib COMMAND …

  train CONFIG          train, on all GPUs of this machine, or on two ranks on its CPU, or as --launch FILE says
  check CONFIG          what `train` would refuse about configuration, data, weights and run folder, without a GPU;
                        with --here about this machine too
  check --gpu           whether this machine keeps the promises that a training relies on; no data set is needed
  explain RUN           scores, figures, explanations and the report page of a run
  evaluate MODEL        exact scores on a split of a data set
  compare RUN RUN …     a page with several runs side by side
  predict MODEL PHOTO … attributes of the faces in photographs
  export MODEL          the model as one ONNX file
  sweep STUDY           many trainings that differ in a few settings
  reproduce             the experiments of the student's report that this project began from, beside what it says
  prepare               make or prepare a data set

MODEL is a run, its best/, a checkpoint or an exported .onnx file. `distrib COMMAND --help` tells more of each."""


def main() -> int:
    """Run the subcommand that this process's command line names; returns its exit status."""
    return run(sys.argv[1:])


@program
def run(arguments: Sequence[str]) -> int:
    """Run a subcommand, which is imported when it is called: no command waits for another's libraries."""
    name, *others = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name in OWN:
        return OWN[name](others)
    if name not in PROGRAMS:
        raise UserError(f"there is no command {name}: choose one of {', '.join((*OWN, *PROGRAMS))}")
    status: int = import_module("distrib.evaluate" if name == "evaluate" else f"distrib.cli.{name}").main(others)
    return status


@program
def train(arguments: Sequence[str]) -> int:
    """Check the configuration and the data, then train on all ranks of this machine.

    Returns:
        The exit status of the ranks, as `distrib/train.py` says; 75 also where a signal came before there were any.
    """
    from distrib.ranks.stopping import StopRequests
    from distrib.ranks.waiting import choose_waiting

    file, arguments = _take_launch(_with_config(arguments))
    if {"-h", "--help"} & {*arguments}:
        from distrib.config import load_config

        load_config(arguments, "distrib train [CONFIG] [--launch FILE]")
    requests = StopRequests()
    with requests.listening():  # first, because the imports below take seconds
        choose_waiting()  # torch, which they import, reads it then
        from distrib.ranks.launch import plan_launch, start
        from distrib.train import main as train_here
        from distrib.training.check import check_start

        launch = plan_launch(arguments, file, check_start)
        # One rank needs no launcher, which would have a status, and a way with signals, of its own.
        return train_here(arguments, requests) if launch.ranks == 1 else start(launch, arguments, requests)


@program
def check(arguments: Sequence[str]) -> int:
    """Say what a training with these options would be of, or why it would be refused; nothing is written.

    Before a job waits for hours in a queue, for example. This machine is asked for what the training needs only after
    --here. With --gpu it is the machine itself that is checked (`distrib.checking`).
    """
    if "--gpu" in arguments:
        from distrib.cli.check_gpu import main as check_gpu

        return check_gpu([each for each in arguments if each != "--gpu"])
    from distrib.config import load_config
    from distrib.ranks.machine import resolve
    from distrib.training.check import check_start

    here = "--here" in arguments
    options = _with_config([each for each in arguments if each != "--here"])
    does = "Says what a training with these options would be of, or why it would be refused."
    config, _ = load_config(options, "distrib check [CONFIG] [--here | --gpu]", does)
    config = resolve(config) if here else config
    table, splits = check_start(config, config.run.ranks or config.train.ranks_asked_for or 1)
    for note in (*table.notes, *splits.notes):
        print(f"distrib: warning: {note}", file=sys.stderr)
    print(f"data:    {config.data.root}")
    print(f"images:  {len(splits.train):,} train, {len(splits.valid):,} valid, {len(splits.test):,} test")
    print(f"attributes: {', '.join(table.attributes)}")
    print(f"folder:  {config.run.folder or 'none'}")
    return 0


def _take_launch(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that `--launch FILE` or `--launch=FILE` names, and the other arguments.

    Raises:
        UserError: if there is no such file, or several are named.
    """
    such = "name a configuration of accelerate's, such as launch/cpu.yaml"
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--launch", nargs="?", const="", action="append", default=[])
    taken, others = parser.parse_known_args(arguments)
    files = taken.launch
    if len(files) > 1:
        raise UserError(f"--launch is given {len(files)} times ({', '.join(files)}): give it once")
    if not files:
        return None, others
    if not files[0] or files[0].startswith("-"):
        raise UserError(f"--launch names no file: {such}")
    file = expanded_path(Path(files[0]))
    try:
        there = file.is_file()
    except OSError as error:
        raise UserError(f"--launch {file} cannot be read ({error.strerror}): {such}") from None
    if not there:
        raise UserError(f"--launch {file} is {'a folder' if file.is_dir() else 'not a file'}: {such}")
    return file, others


def _with_config(arguments: Sequence[str]) -> Sequence[str]:
    return ["--config", *arguments] if arguments and not arguments[0].startswith("-") else arguments


OWN = {"train": train, "check": check}
PROGRAMS = ("explain", "evaluate", "compare", "predict", "export", "sweep", "reproduce", "prepare")

if __name__ == "__main__":
    sys.exit(main())
