import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.config import DataConfig
from distrib.config.growing import growing_epochs
from distrib.data.batch import Request
from distrib.data.plan import Plan, evaluation_batches, philox

ROWS = np.arange(1000, 2003, dtype=np.int64)  # 1003 rows, so that an epoch leaves some out


def views(*requests: Request) -> dict[int, tuple[float, float, float, bool]]:
    """What is done to each image."""
    return {
        int(row): (float(zoom), float(top), float(left), bool(flip))
        for part in requests
        for row, zoom, top, left, flip in zip(part.ids, part.zoom, part.top, part.left, part.flip, strict=True)
    }


def all_ids(requests: list[Request]) -> list[int]:
    return [int(row) for part in requests for row in part.ids]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # kat_vectors of Random123, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    ids = np.array([counter[0] | counter[1] << 32], dtype=np.uint64).view(np.int64)
    found = philox(key[0] | key[1] << 32, epoch=counter[3], purpose=counter[2], ids=ids)
    assert found.dtype == np.uint32
    assert found[:, 0].tolist() == list(words)


def test_philox_of_many_is_philox_of_each() -> None:
    ids = np.array([0, 7, 2**31, 2**32, 2**40 + 5])
    together = philox(3, 4, 1, ids)
    for i in range(len(ids)):
        assert (together[:, i] == philox(3, 4, 1, ids[i : i + 1])[:, 0]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10_000), st.integers(1, 400))
def test_an_order_is_a_permutation_of_the_rows(seed: int, epoch: int, count: int) -> None:
    rows = np.arange(count, dtype=np.int64) * 3 + 1
    order = Plan(rows, seed, 1).order(epoch)
    assert sorted(order.tolist()) == rows.tolist()
    assert (order == Plan(rows, seed, 7).order(epoch)).all()


def test_every_epoch_and_every_seed_has_its_own_order() -> None:
    orders = {tuple(Plan(ROWS, seed, 64).order(epoch).tolist()) for seed in (0, 1, 2**32) for epoch in range(5)}
    assert len(orders) == 15


def test_orders_are_not_related() -> None:
    # Of a random permutation about one element stays in place.
    plan = Plan(np.arange(5000), 0, 64)
    assert (plan.order(0) == plan.order(1)).sum() < 12
    assert (plan.order(0) == np.arange(5000)).sum() < 12


def test_batches_are_slices_of_the_order() -> None:
    plan = Plan(ROWS, 3, 64)
    assert plan.steps_per_epoch == 15
    order = plan.order(2)
    for step in range(15):
        assert (plan.batch(2, step).ids == order[step * 64 : (step + 1) * 64]).all()


def test_an_epoch_has_no_image_twice_and_leaves_out_others_each_time() -> None:
    plan = Plan(ROWS, 3, 64)
    left_out = []
    for epoch in range(3):
        seen = all_ids([plan.batch(epoch, step) for step in range(plan.steps_per_epoch)])
        assert len(set(seen)) == len(seen) == 15 * 64
        left_out.append(set(ROWS.tolist()) - set(seen))
    assert left_out[0] != left_out[1] != left_out[2]


def test_a_step_that_an_epoch_does_not_have() -> None:
    plan = Plan(ROWS, 0, 64)
    for step in (-1, 15):
        with pytest.raises(IndexError):
            plan.batch(0, step)


def test_a_set_of_exactly_one_batch_and_one_smaller_than_a_batch() -> None:
    assert len(Plan(ROWS[:64], 0, 64).batch(0, 0)) == 64
    assert Plan(ROWS[:63], 0, 64).steps_per_epoch == 0
    assert list(Plan(ROWS[:63], 0, 64).rank_batches(0, 0, 0, 1)) == []


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_global_batches_are_the_same_for_any_number_of_ranks_and_micro_batches(ranks: int, accumulation: int) -> None:
    plan = Plan(ROWS, 5, 64, min_zoom=0.5)
    parts = [list(plan.rank_batches(3, 0, rank, ranks, accumulation)) for rank in range(ranks)]
    for mine in parts:
        assert len(mine) == plan.steps_per_epoch * accumulation
        assert {len(request) for request in mine} == {64 // ranks // accumulation}
    for step in range(plan.steps_per_epoch):
        micro = [mine[step * accumulation + i] for mine in parts for i in range(accumulation)]
        wanted = plan.batch(3, step)
        assert sorted(all_ids(micro)) == sorted(wanted.ids.tolist())
        assert views(*micro) == views(wanted)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_groups_of_a_batch_are_the_same_for_any_number_of_ranks(ranks: int) -> None:
    plan, groups = Plan(ROWS, 5, 64), 8
    parts = [list(plan.rank_batches(2, 0, rank, ranks, groups // ranks)) for rank in range(ranks)]
    for step in range(plan.steps_per_epoch):
        ids = plan.batch(2, step).ids.tolist()
        for group in range(groups):
            turn, rank = divmod(group, ranks)
            assert all_ids([parts[rank][step * (groups // ranks) + turn]]) == ids[group::groups]


@pytest.mark.parametrize("first_step", [0, 1, 7, 14, 15])
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(first_step: int) -> None:
    whole = list(Plan(ROWS, 5, 64, 0.7).rank_batches(1, 0, 1, 2, 2))
    resumed = list(Plan(ROWS, 5, 64, 0.7).rank_batches(1, first_step, 1, 2, 2))
    assert len(resumed) == (15 - first_step) * 2
    for one, other in zip(whole[first_step * 2 :], resumed, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert views(one) == views(other)


def test_a_run_goes_on_with_another_number_of_ranks() -> None:
    plan = Plan(ROWS, 5, 64)
    seen = all_ids([part for rank in range(8) for part in list(plan.rank_batches(0, 0, rank, 8))[:6]])
    seen += all_ids([part for rank in range(2) for part in plan.rank_batches(0, 6, rank, 2)])
    assert sorted(seen) == sorted(plan.order(0)[: 15 * 64].tolist())


def test_crop_and_flip_depend_on_seed_epoch_and_image_alone() -> None:
    def epoch_views(plan: Plan, epoch: int) -> dict[int, tuple[float, float, float, bool]]:
        return views(*(plan.batch(epoch, step) for step in range(plan.steps_per_epoch)))

    base = epoch_views(Plan(ROWS, 5, 17, 0.5), 2)  # 1003 = 17 * 59: every image is in it
    assert len(base) == len(ROWS)
    other_batch_size = epoch_views(Plan(ROWS, 5, 1, 0.5), 2)
    assert other_batch_size == base
    fewer_rows = epoch_views(Plan(ROWS[::3].copy(), 5, 1, 0.5), 2)
    assert fewer_rows == {row: base[row] for row in fewer_rows}
    for changed in (epoch_views(Plan(ROWS, 5, 17, 0.5), 3), epoch_views(Plan(ROWS, 6, 17, 0.5), 2)):
        assert sum(changed[row][1] == base[row][1] for row in base) == 0


def test_views_are_spread_evenly() -> None:
    request = Plan(np.arange(20_000), 1, 20_000, min_zoom=0.6).batch(0, 0)
    assert abs(request.flip.mean() - 0.5) < 0.02
    assert (request.zoom >= 0.6).all()
    assert (request.zoom <= 1).all()
    for values, low, high in ((request.zoom, 0.6, 1.0), (request.top, 0.0, 1.0), (request.left, 0.0, 1.0)):
        assert (values >= low).all()
        assert (values <= high).all()
        counts, _ = np.histogram(values, bins=10, range=(low, high))
        assert abs(counts - 2000).max() < 250
    table = np.corrcoef(np.stack((request.zoom, request.top, request.left, request.flip)))
    assert abs(table - np.eye(4)).max() < 0.03


def test_without_augmentation_pictures_are_as_in_evaluation() -> None:
    request = Plan(ROWS, 1, 500, min_zoom=1.0, flip=False).batch(0, 0)
    assert (request.zoom == 1).all()
    assert not request.flip.any()
    assert request.flip.dtype == np.bool_


def test_an_image_is_mirrored_in_some_epochs_and_not_in_others() -> None:
    plan = Plan(ROWS, 1, len(ROWS))
    flips = np.array([[seen[3] for _, seen in sorted(views(plan.batch(epoch, 0)).items())] for epoch in range(40)])
    rate = flips.mean(axis=0)
    assert rate.min() > 0.1
    assert rate.max() < 0.9


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 60), size=st.integers(1, 20), ranks=st.integers(1, 70))
def test_evaluation_covers_every_row_exactly_once(count: int, size: int, ranks: int) -> None:
    rows = np.arange(count, dtype=np.int64) * 2 + 5
    parts = [list(evaluation_batches(rows, size, rank, ranks, 0.9)) for rank in range(ranks)]
    assert sorted(all_ids([request for mine in parts for request in mine])) == rows.tolist()
    for rank, mine in enumerate(parts):
        assert all_ids(mine) == rows[rank::ranks].tolist()
        assert all(1 <= len(request) <= size for request in mine)
        assert all(len(request) == size for request in mine[:-1])
        for request in mine:
            assert (request.zoom == 0.9).all()
            assert (request.top == 0.5).all()
            assert (request.left == 0.5).all()
            assert not request.flip.any()


def growing(grow: str, rows: int, batch: int, epochs: int) -> Plan:
    data = DataConfig(image_size=(64, 64), grow=grow)
    return Plan(ROWS[:rows], 3, batch, stages=data.stages, epochs=epochs)


def test_images_grow_with_the_step_in_which_their_share_of_the_run_lies() -> None:
    plan = growing("16@0 32@0.3 48@0.55 64@0.9", rows=41, batch=10, epochs=5)  # 20 steps
    heights = [plan.batch(epoch, step).size[0] for epoch in range(5) for step in range(4)]  # type: ignore[index]
    assert heights == [16] * 6 + [32] * 5 + [48] * 7 + [64] * 2
    of_100 = growing("16@0 64@0.55", rows=100, batch=10, epochs=10)  # 0.55 x 100 is more than 55 in floating point
    assert of_100.sizes == {0: (16, 16), 55: (64, 64)}


def test_the_last_step_of_the_shortest_run_has_full_size() -> None:
    assert growing("16@0 32@0.3 64@0.999", rows=20, batch=10, epochs=1).sizes == {0: (32, 32), 1: (64, 64)}
    assert growing("16@0 64@0.999", rows=10, batch=10, epochs=1).batch(0, 0).size == (64, 64)


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 30), epochs=st.integers(1, 40), thousandths=st.integers(1, 999))
def test_epochs_of_full_size_are_those_whose_last_step_has_it(steps: int, epochs: int, thousandths: int) -> None:
    grow = f"16@0 64@{thousandths / 1000}"
    plan = growing(grow, rows=steps, batch=1, epochs=epochs)
    full = [plan.size((epoch + 1) * steps - 1) == (64, 64) for epoch in range(epochs)]
    assert full.index(True) == growing_epochs(grow, epochs)
    assert full[-1]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_groups_of_a_step_have_its_size(ranks: int) -> None:
    plan = growing("16@0 64@0.4", rows=64, batch=8, epochs=1)
    for rank in range(ranks):
        sizes = [request.size for request in plan.rank_batches(0, 2, rank, ranks, 4 // ranks)]
        assert sizes == [plan.size(step) for step in range(2, 8) for _ in range(4 // ranks)]
    assert [request.size for request in evaluation_batches(ROWS, 500, 0, 1, 1)] == [None] * 3


def test_golden_values_of_the_plan() -> None:
    """If this fails, runs can no longer be resumed or repeated with this version: is that what you want?"""
    request = Plan(np.arange(1000), seed=0, batch_size=8, min_zoom=0.8).batch(epoch=0, step=0)
    assert request.ids.tolist() == GOLDEN_IDS
    assert request.flip.astype(int).tolist() == GOLDEN_FLIP
    np.testing.assert_allclose(request.zoom[:4], GOLDEN_ZOOM, rtol=0, atol=1e-7)
    np.testing.assert_allclose(request.top[:4], GOLDEN_TOP, rtol=0, atol=1e-7)
    np.testing.assert_allclose(request.left[:4], GOLDEN_LEFT, rtol=0, atol=1e-7)
    assert Plan(np.arange(1000), seed=2**40 + 1, batch_size=8).batch(epoch=3, step=100).ids.tolist() == GOLDEN_LATER


GOLDEN_IDS = [568, 29, 542, 534, 535, 262, 991, 613]
GOLDEN_FLIP = [0, 0, 1, 0, 1, 1, 0, 1]
GOLDEN_ZOOM = [0.95507779, 0.98394602, 0.8199138, 0.87846447]
GOLDEN_TOP = [0.17875559, 0.84776163, 0.49059352, 0.35162422]
GOLDEN_LEFT = [0.15361986, 0.04808719, 0.51993461, 0.36275318]
GOLDEN_LATER = [567, 921, 70, 183, 713, 24, 203, 80]
