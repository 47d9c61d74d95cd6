"""Trains ResNet18 on face attributes.

accelerate launch --config_file launch/cpu.yaml distrib/train.py --config configs/celeba.yaml --optim.lr 3e-4
python distrib/train.py --config configs/celeba.yaml      # one process, the same options
"""

import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # A script's own folder comes first on sys.path, where distrib/data and its like would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distrib.ranks.stopping import StopRequests
    from distrib.ranks.waiting import choose_waiting

    REQUESTS = StopRequests()
    REQUESTS.listen()  # the imports below take seconds
    choose_waiting()  # torch, which they import, reads it then

from distrib.base.errors import UserError
from distrib.base.streams import standard_streams
from distrib.config import Config, load_config
from distrib.ranks.ending import run_program
from distrib.ranks.machine import fallbacks, resolve, use_all_cores
from distrib.ranks.printing import say, warn
from distrib.ranks.stopping import StopRequests
from distrib.runs.folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distrib.training.precision import Precision
    from distrib.training.training_run import Judge, TrainingRun

# What to do where memory runs out, and the loop is not there yet, which knows its numbers.
MAKE_ROOM = (
    "lower train.norm_size, the images that a rank holds at a time, set data.resident to never, or lower, in a new "
    "run, train.batch_size or data.image_size"
)


@standard_streams()
def main(argv: Sequence[str] | None = None, requests: StopRequests | None = None) -> int:
    """Run the program.

    Args:
        argv: the command line; None: this process's own.
        requests: to stop; None: from this process's signals, while this runs.

    Returns:
        The exit status: 0; 1 if another rank was lost; 2 for what the user can mend; 3 if memory ran out; 75 if it was
        asked to stop and did, after saving.
    """
    show_log()
    requests = requests or StopRequests()

    def prepare() -> "tuple[Config, Precision, Accelerator, list[str]]":
        asked, name = load_config(sys.argv[1:] if argv is None else argv)
        # Whoever asks for help, or is wrong about an option, does not wait for these.
        from distrib.ranks.meeting import check_ranks, from_rank_0, make_accelerator, meet
        from distrib.training.precision import Precision, choose_precision
        from distrib.training.start import name_folder

        check_ranks(asked)
        config = resolve(asked)
        ranks = meet(config)
        config = from_rank_0(ranks, name_folder, config, name)
        precision = Precision(config.train.precision, {})
        if precision.name == "auto":
            precision = from_rank_0(ranks, choose_precision, config, ranks.num_processes)
            config = config.replace("train", precision=precision.name)
        return config, precision, make_accelerator(config), fallbacks(asked, config)

    def work(ready: "tuple[Config, Precision, Accelerator, list[str]]") -> int:
        from distrib.training.run import run_training

        return run_training(*ready, requests, open_judge, make_report)

    with requests.listening():
        return run_program(prepare, work, "distrib: interrupted", MAKE_ROOM)


def show_log() -> None:
    """Let what the package logs, such as an outage of W&B, appear beside its own lines."""
    log = logging.getLogger("distrib")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("distrib: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def open_judge(folder: RunFolder) -> "Judge":
    """Who says after each epoch whether to continue: the study, where this run is a trial of one; on rank 0.

    A study that cannot be reached prunes nothing, and ends nothing.
    """
    from distrib.training.training_run import never

    if not folder.trial.exists():
        return never
    from distrib.studies.search import TrialJudge

    try:
        judge = TrialJudge(folder.trial)
    except Exception as error:
        warn(f"the study of this run cannot be reached ({error}): the run continues without pruning")
        return never

    def judged(row: Mapping[str, float]) -> bool:
        try:
            return judge(row)
        except Exception as error:  # databases and file systems each have their own
            warn(f"the study of this run cannot be reached ({error}): the run continues")
            return False

    return judged


def make_report(run: "TrainingRun") -> str:
    """Make the report of a run that has been trained; whatever happens here, the trained model is safe.

    Returns:
        A line on how it went.
    """
    if run.config.run.device == "cpu":
        use_all_cores(local_ranks=1)
    say("")
    again = f"distrib explain {run.folder.path}"
    try:
        from distrib.explaining.report import explain, open_run
        from distrib.reporting.panels import PANELS

        failed = explain(open_run(run.folder.path, run.config), tuple(PANELS), run.tracker, say)
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        return f"report: none ({error}); the model is safe; make the report with: {again}"
    page = f"report: {run.folder.page}"
    return f"{page} (failed: {', '.join(failed)}; make it again with: {again})" if failed else page


if __name__ == "__main__":
    sys.exit(main(requests=REQUESTS))
