import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.base.errors import UserError
from distrib.config import DataConfig
from distrib.data.splits import Splits, digest, make_splits, seen_in_training, splits_of_training
from distrib.data.store import FolderStore
from distrib.data.table import Table


def a_table(count: int = 1000, identities: int | None = 100, official: bool = True) -> Table:
    rows = np.arange(count)
    names = [f"{row:06}.jpg" for row in rows]
    return Table(
        store=FolderStore(Path("images"), names),
        names=names,
        attributes=("even", "third"),
        targets=np.stack([rows % 2 == 0, rows % 3 == 0], axis=1).astype(np.uint8),
        split=np.where(rows < 0.8 * count, 0, np.where(rows < 0.9 * count, 1, 2)).astype(np.int8) if official else None,
        identity=None if identities is None else (rows * identities // count + 7).astype(np.int64),
        notes=(),
    )


def parts(splits: Splits) -> list[list[int]]:
    return [splits.train.tolist(), splits.valid.tolist(), splits.test.tolist()]


def assert_a_partition(splits: Splits, count: int) -> None:
    assert sorted(itertools.chain(*parts(splits))) == list(range(count))
    for rows in (splits.train, splits.valid, splits.test):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


def refusal(table: Table, config: DataConfig, *words: str) -> None:
    with pytest.raises(UserError) as error:
        make_splits(table, config)
    for word in words:
        assert word in str(error.value)


def test_official() -> None:
    splits = make_splits(a_table(), DataConfig(split="official"))
    assert parts(splits) == [list(range(800)), list(range(800, 900)), list(range(900, 1000))]
    assert splits.notes == ()


def test_random_by_image() -> None:
    splits = make_splits(a_table(), DataConfig(split="image", split_fractions=(0.7, 0.2, 0.1)))
    assert_a_partition(splits, 1000)
    assert [len(part) for part in parts(splits)] == [700, 200, 100]


def test_random_by_identity_keeps_identities_whole() -> None:
    table = a_table()
    splits = make_splits(table, DataConfig(split="identity", split_fractions=(0.7, 0.2, 0.1)))
    assert_a_partition(splits, 1000)
    assert [len(part) for part in parts(splits)] == [700, 200, 100]
    assert table.identity is not None
    people = [set(table.identity[part].tolist()) for part in parts(splits)]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    assert splits.notes == ()


@given(
    sizes=st.lists(st.integers(1, 35), min_size=30, max_size=200),
    fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.34, 0.33, 0.33)]),
    seed=st.integers(0, 2**63 - 1),
)
@settings(deadline=None, max_examples=60)
def test_sizes_by_identity_are_near_the_fractions(
    sizes: list[int], fractions: tuple[float, float, float], seed: int
) -> None:
    count = sum(sizes)
    table = a_table(count, official=False)
    identity = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)
    table = Table(table.store, table.names, table.attributes, table.targets, None, identity, ())
    splits = make_splits(table, DataConfig(split="identity", split_fractions=fractions, split_seed=seed))
    assert_a_partition(splits, count)
    # No single identity could move and bring the sizes nearer; with the smallest one of size s, each pair of splits
    # is at most s out of balance.
    excess = [len(part) - fraction * count for part, fraction in zip(parts(splits), fractions, strict=True)]
    for part, over in zip(parts(splits), excess, strict=True):
        smallest = np.unique(identity[part], return_counts=True)[1].min()
        assert over - min(excess) <= smallest + 1e-6


@pytest.mark.parametrize("split", ["image", "identity"])
def test_a_pure_function_of_the_seed(split) -> None:
    table = a_table()
    first, again = (make_splits(table, DataConfig(split=split, split_seed=3)) for _ in range(2))
    other = make_splits(table, DataConfig(split=split, split_seed=4))
    assert parts(first) == parts(again)
    assert parts(first) != parts(other)


def test_the_same_on_every_machine() -> None:
    table = a_table(20, identities=10)
    by_image = make_splits(table, DataConfig(split="image", split_seed=1))
    by_identity = make_splits(table, DataConfig(split="identity", split_seed=1))
    subset = make_splits(table, DataConfig(split_seed=1, subset=4))
    assert parts(by_image)[1:] == [[3, 10], [9, 17]]
    assert parts(by_identity)[1:] == [[6, 7], [18, 19]]
    assert subset.train.tolist() == [1, 6, 7, 10]
    by_fold = make_splits(table, DataConfig(split_seed=1, fold="2/5"))
    assert by_fold.valid.tolist() == [6, 7]


@pytest.mark.parametrize("split", ["official", "image", "identity"])
def test_subsets_are_nested_and_leave_validation_and_test_whole(split) -> None:
    table = a_table()
    whole, small, large = (make_splits(table, DataConfig(split=split, subset=size)) for size in (None, 100, 200))
    assert len(small.train) == 100
    assert len(large.train) == 200
    assert set(small.train) < set(large.train) < set(whole.train)
    assert (np.diff(large.train) > 0).all()
    for splits in (small, large):
        assert parts(splits)[1:] == parts(whole)[1:]


def test_subset_follows_the_seed() -> None:
    one, again, other = (make_splits(a_table(), DataConfig(subset=100, split_seed=seed)) for seed in (1, 1, 2))
    assert one.train.tolist() == again.train.tolist()
    assert one.train.tolist() != other.train.tolist()


def test_subset_may_be_the_whole_training_split() -> None:
    assert make_splits(a_table(), DataConfig(subset=800)).train.tolist() == list(range(800))
    refusal(a_table(), DataConfig(subset=801), "data.subset is 801", "800 images")


@pytest.mark.parametrize("split", ["official", "image", "identity"])
def test_folds_share_out_the_training_split(split) -> None:
    table = a_table()
    whole = make_splits(table, DataConfig(split=split, split_seed=3))
    folds = [make_splits(table, DataConfig(split=split, split_seed=3, fold=f"{k}/5")) for k in range(1, 6)]
    assert sorted(itertools.chain(*(fold.valid.tolist() for fold in folds))) == whole.train.tolist()
    for fold in folds:
        assert sorted([*fold.train, *fold.valid]) == whole.train.tolist()
        assert fold.test.tolist() == whole.test.tolist()
        assert abs(len(fold.valid) - 160) <= 10  # an identity has ten images
        crossed = set(table.identity[fold.train]) & set(table.identity[fold.valid])
        assert bool(crossed) == (split == "image")
    other = make_splits(table, DataConfig(split=split, split_seed=4, fold="1/5"))
    assert split != "official" or other.valid.tolist() != folds[0].valid.tolist()


def test_a_subset_of_a_fold_leaves_its_validation_images_alone() -> None:
    fold, few = (make_splits(a_table(), DataConfig(fold="2/4", subset=subset)) for subset in (None, 300))
    assert len(few.train) == 300
    assert set(few.train) < set(fold.train)
    assert few.valid.tolist() == fold.valid.tolist()
    refusal(a_table(), DataConfig(fold="2/4", subset=601), "data.subset is 601", "600 images")


def test_a_fold_takes_the_place_of_a_validation_split_that_is_not_there() -> None:
    table = a_table()
    assert table.split is not None
    table = dataclasses.replace(table, split=np.where(table.split == 1, 2, table.split))
    refusal(table, DataConfig(), "validation split")
    fold = make_splits(table, DataConfig(fold="1/5"))
    assert 150 <= len(fold.valid) <= 170
    assert len(fold.test) == 200


def test_without_identities_folds_are_of_images() -> None:
    fold = make_splits(a_table(identities=None), DataConfig(fold="3/8"))
    assert (len(fold.train), len(fold.valid)) == (700, 100)


@pytest.mark.parametrize(
    ("identities", "fold", "what"), [(None, "9/900", "validate"), (1, "1/2", "validate"), (1, "2/2", "train")]
)
def test_a_fold_that_leaves_nothing(identities: int | None, fold: str, what: str) -> None:
    config = DataConfig(fold=fold)
    refusal(a_table(100, identities), config, f"data.fold is {fold}, which leaves nothing to {what} on", "80 images")


def test_a_group_stays_together_and_leaves_the_others_where_they_are() -> None:
    table = a_table()
    assert table.identity is not None
    for split, own, joined in (
        ("identity", table.identity, [(10, 50, 106), (40, 41)]),
        ("image", np.arange(1000), [(3, 400, 999), (500, 501)]),
    ):
        for seed in range(20):
            config = DataConfig.model_validate({"split": split, "split_seed": seed})
            group = own.copy()
            for first, *others in joined:
                group[np.isin(own, others)] = first
            alone, together = make_splits(table, config, own), make_splits(table, config, group)
            assert parts(alone) == parts(make_splits(table, config))
            assert_a_partition(together, 1000)
            for members in joined:
                rows = set(np.flatnonzero(np.isin(own, members)).tolist())
                assert sum(bool(rows & set(part)) for part in parts(together)) == 1
            # Five of them are in groups; the ends of the three parts may move by a few more.
            pairs = [*zip(parts(alone), parts(together), strict=True)]
            assert sum(len(set(one) - set(other)) for one, other in pairs) <= (100 if split == "identity" else 10)
            assert all(abs(len(one) - len(other)) <= (20 if split == "identity" else 2) for one, other in pairs)


def test_official_without_a_split() -> None:
    refusal(a_table(official=False), DataConfig(root=Path("faces")), "data.split is official", "faces", "image")


def test_a_column_that_may_be_the_split_under_another_name_is_named() -> None:
    table = dataclasses.replace(a_table(official=False), attributes=("even", "Partition"))
    refusal(table, DataConfig(), "rename the column Partition to split if it is one")


def test_identity_without_identities() -> None:
    refusal(a_table(identities=None), DataConfig(split="identity"), "data.split is identity", "data.split to image")


def test_empty_splits_are_named() -> None:
    table = a_table()
    assert table.split is not None
    table.split[:] = np.minimum(table.split, 1)
    refusal(table, DataConfig(), "test split", "empty", "training 800, validation 200, test 0", "data.split to image")
    refusal(table, DataConfig(split="image", split_fractions=(0.5, 0, 0.5)), "validation split", "data.split_fractions")
    refusal(a_table(9, identities=2), DataConfig(split="identity"), "empty", "data.split_fractions")


def test_only_what_is_needed_is_asked_for_and_noted_on() -> None:
    table = a_table()
    assert table.split is not None
    table.split[:] = 2
    table.targets[:, 0] = 1
    splits = make_splits(table, DataConfig(subset=5), needs=("test",))
    assert parts(splits) == [[], [], list(range(1000))]
    assert splits.notes == ("ROC AUC is undefined for even in the test split: every image there has the same value.",)
    assert make_splits(table, DataConfig(), needs=()).notes == ()
    with pytest.raises(UserError, match=r"the validation split of .* is empty"):
        make_splits(table, DataConfig(), needs=("valid", "test"))
    crossing = make_splits(a_table(), DataConfig(split="image"), needs=("test",))
    assert crossing.notes == (), "of one split there is nothing to cross"


def test_the_remedy_is_one_that_the_table_allows() -> None:
    without = a_table(identities=None, official=False)
    refusal(without, DataConfig(), "set data.split to image")
    with pytest.raises(UserError) as error:
        make_splits(without, DataConfig())
    assert "identity" not in str(error.value)
    refusal(a_table(official=False), DataConfig(), "set data.split to image or identity")


def test_the_table_of_a_training_is_known_again() -> None:
    table, config = a_table(), DataConfig(split="identity", split_seed=3, subset=100)
    splits = make_splits(table, config)
    known = digest(table, splits.train, splits.valid)
    found = splits_of_training(
        dataclasses.replace(table, store=FolderStore(Path("elsewhere"), table.names)), config, known
    )
    assert found is not None
    assert parts(found) == parts(splits)
    assert splits_of_training(table, config.model_copy(update={"split_seed": 4}), known) is None
    assert splits_of_training(a_table(900), config, known) is None
    assert splits_of_training(a_table(identities=None), config, known) is None
    assert splits_of_training(table, config, None) is None


def test_images_and_people_of_the_training_are_noted() -> None:
    table = a_table(100, identities=10)
    rows, trained = np.arange(20, 40), np.arange(25)
    images, people = seen_in_training(table, rows, trained, "the test split")
    assert "trained on 5 of the 20 images in the test split" in images
    assert "1, with 5 images" in people
    assert seen_in_training(table, rows, np.arange(50, 90), "the test split") == []
    assert seen_in_training(dataclasses.replace(table, identity=None), rows, np.arange(20), "it") == []


def test_identities_in_two_splits_are_noted() -> None:
    splits = make_splits(a_table(), DataConfig(split="image"))
    (note,) = splits.notes
    # Rows 0 to 9 are the first person, and so on.
    people = np.concatenate([np.unique(np.array(part) // 10) for part in parts(splits)])
    crossing = int((np.bincount(people) > 1).sum())
    assert f"split image: {crossing}, with {10 * crossing} images" in note
    assert "data.split identity" in note
    # Rows 14 to 19 are one person; 14 and 15 are in training, 16 and 17 in validation, 18 and 19 in the test.
    notes = make_splits(a_table(20, identities=3), DataConfig()).notes
    assert "split official: 1, with 6 images" in notes[0]


def test_attributes_with_one_class_are_noted() -> None:
    table = a_table()
    table.targets[800:900, 1] = 0
    table.targets[900:, :] = 1
    notes = make_splits(table, DataConfig()).notes
    assert len(notes) == 2
    assert "undefined for third in the validation split" in notes[0]
    assert "undefined for even, third in the test split" in notes[1]


def test_many_attributes_with_one_class_are_summed_up() -> None:
    table = a_table()
    constant = Table(
        table.store, table.names, tuple("abcde"), np.ones((1000, 5), dtype=np.uint8), table.split, None, ()
    )
    notes = make_splits(constant, DataConfig()).notes
    assert len(notes) == 3
    assert "a, b, c and 2 more" in notes[0]
