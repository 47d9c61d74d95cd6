"""What the ranks agree on: to stop, to save by rank 0's clock, to give up for a failed write; on two real ranks."""

import io
import resource
from concurrent.futures import wait
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from forked_ranks import on_ranks
from launching import read_events, read_metrics
from small_run import settings, the_plan

from distrib import train as program
from distrib.config import Config
from distrib.ranks import ending
from distrib.ranks import meeting as runtime
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreed, Agreement, StopRequests
from distrib.training.checkpoint import CheckpointWriter, Contents, Progress, WriteFirst
from distrib.training.checkpointer import Checkpointer
from distrib.training.state import TrainState

# Bytes of a file in which the weights and no optimiser have room, and in which the weights have none.
WITHOUT_OPTIMISER, WITHOUT_WEIGHTS = 60_000_000, 30_000_000


def some_rounds() -> list[Agreed]:
    """On this rank: what was agreed on in rounds in which none, rank 0, rank 1 and none wishes something."""
    accelerator = start_ranks(resolve(Config().replace("run", device="cpu"), like="no"))
    first = accelerator.is_main_process
    requests = StopRequests()
    agreement = Agreement(requests, accelerator)
    answers = [agreement.round()]
    agreement.wish(save=first, failed=False, replaced=False)
    answers.append(agreement.round())
    agreement.wish(save=False, failed=first, replaced=False)
    answers.append(agreement.round())
    agreement.wish(save=False, failed=False, replaced=False)
    if not first:
        requests.ask("somebody")
    answers += [agreement.round(), agreement.round()]
    accelerator.end_training()
    return answers


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_one_rank_wishes_all_hear_of_after_the_same_round(ranks: int) -> None:
    stops = ranks == 2  # it is the second one that is asked to
    expected = [(False,) * 4, (False, True, False, False), (False, False, True, False), (stops, False, False, False)]
    assert on_ranks(ranks, some_rounds) == [[*expected, expected[-1]]] * ranks


def saved_after(*arguments: object) -> list[int]:
    """Train on this rank; after which steps of the run it has taken part in a checkpoint."""
    steps = []
    save = Checkpointer.save

    def watched(self: Checkpointer, progress: Progress, *first: WriteFirst) -> None:
        steps.append(self._state.position.run_step)
        save(self, progress, *first)

    Checkpointer.save = watched
    assert program.main([str(each) for each in arguments]) == 0
    return steps


def test_the_clock_of_rank_0_has_all_ranks_save_after_the_same_step(faces: Path, tmp_path: Path) -> None:
    half_a_second = 0.5 / 60
    options = settings(faces, tmp_path / "run", "--checkpoint.every-minutes", half_a_second, "--train.epochs", 1,
                       "--checkpoint.every-steps", 1000, "--checkpoint.keep", 99)  # fmt: skip
    of_rank_0, of_rank_1 = on_ranks(2, saved_after, *options)
    assert of_rank_0 == of_rank_1
    ends = {row["step"] for row in read_metrics(tmp_path / "run")}
    assert set(of_rank_0) > ends
    kept = {int(path.name.removeprefix("step-")) for path in (tmp_path / "run/checkpoints").iterdir()}
    assert kept == set(of_rank_0)


def told(limit: int, *arguments: object) -> tuple[int, int, str]:
    """Train on this rank, whose files cannot grow past so many bytes.

    Returns:
        How many steps were made, the exit status, and the last line of what it said.
    """
    steps = []
    make_step, save = TrainState.step, CheckpointWriter.save

    def watched_step(self: TrainState, micro_batches: list) -> None:
        make_step(self, micro_batches)
        steps.append(self.position.run_step)

    def save_and_wait(self: CheckpointWriter, contents: Contents, *first: WriteFirst) -> None:
        save(self, contents, *first)
        wait([self._pending])  # so that rank 0 knows of it before the next step

    TrainState.step, CheckpointWriter.save = watched_step, save_and_wait
    runtime.SPEAK_WITHIN = 0  # every rank says its own
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    ending.SPEAK_WITHIN = 0  # no launcher ends rank 1 here once rank 0 has spoken
    said = io.StringIO()
    with redirect_stderr(said):
        status = program.main([str(each) for each in arguments])
    return len(steps), status, said.getvalue().splitlines()[-1]


@pytest.mark.parametrize("moment", ["in a step", "at the end"])
def test_a_checkpoint_that_cannot_be_written_stops_all_ranks_alike(moment: str, faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    every = 4 if moment == "in a step" else 1000
    options = settings(faces, folder, "--checkpoint.every-steps", every, "--train.epochs", 1, "--train.log-every", 1000)
    of_rank_0, of_rank_1 = on_ranks(2, told, WITHOUT_OPTIMISER, *options)
    assert of_rank_0 == of_rank_1
    steps, status, sentence = of_rank_0
    assert steps == (every + 1 if moment == "in a step" else the_plan(faces, folder).steps_per_epoch)
    assert status == 2
    assert "cannot be written" in sentence
    assert "check the free space and permissions of" in sentence
    [error] = read_events(folder, "error")
    assert sentence == f"distrib: error: {error['reason']}"


def test_results_that_cannot_be_written_stop_all_ranks_alike_whatever_checkpoints_may_do(
    faces: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = settings(faces, folder, "--checkpoint.every-steps", 1000, "--checkpoint.on-failure", "continue",
                       "--train.batch-size", 64)  # fmt: skip
    of_rank_0, of_rank_1 = on_ranks(2, told, WITHOUT_WEIGHTS, *options)
    assert of_rank_0 == of_rank_1
    steps, status, sentence = of_rank_0
    per_epoch = len(the_plan(faces, folder).rows) // 64
    assert steps == per_epoch + 1  # the next epoch has begun beside the writing
    assert status == 2
    assert sentence.startswith(f"distrib: error: {folder / 'best'} cannot be written (")
    assert sentence.endswith(f"check the free space and permissions of {folder}, then resume with --resume auto")
    assert [event["event"] for event in read_events(folder)][1:] == ["error"]
    assert not (folder / "best").exists()
    assert not (folder / "metrics.csv").exists()
    assert list(folder.glob("checkpoints/*")) == []
