"""Which images are for training, which for validation and which for the test.

Legend: N images of the table, I identities.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.words import listed, plural
from distrib.config import DataConfig
from distrib.data.table import SPLITS, Table

# What a set of images is called in a sentence.
TITLES = {"train": "the training split", "valid": "the validation split", "test": "the test split"}
# Each random choice has its own stream of the one seed, so that none follows from another.
_SPLIT_STREAM, _SUBSET_STREAM, _FOLD_STREAM = 0, 1, 2


@dataclass(frozen=True)
class Splits:
    """Rows of the table, in ascending order.

    Attributes:
        train: int64, rows to train on.
        valid: int64, rows to choose the best epoch and the thresholds by.
        test: int64, rows for the final scores.
        notes: warnings for the user, a sentence each.
    """

    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]
    notes: tuple[str, ...]


def make_splits(
    table: Table, config: DataConfig, group: NDArray[np.int64] | None = None, needs: Collection[str] = SPLITS
) -> Splits:
    """The three splits of a table; a pure function of its arguments, the same on every machine.

    data.split says how: official, the one that comes with the data set; identity, random and whole identities each;
    image, random image by image. data.fold then makes one fold of the training split the validation split. data.subset
    draws from what is to be trained on alone; with the same seed a smaller subset is contained in a larger one.

    Args:
        table: of N images.
        config: of the data set.
        group: int64 [N], for a random split that is to keep more together: images with the same number stay in one
            split. The number is an identity (split by identity) or a row (by image) of the group's own, and the group
            is drawn in its place; None: identities, or images, as they are.
        needs: which of `SPLITS` the caller uses. The others may be empty, are not noted on, and take no subset.

    Raises:
        UserError: if the data set lacks what the split needs, a split that is needed comes out empty, there are more
            folds than can be made, or the subset is larger than the training split.
    """
    part = _PARTS[config.split](table, config, group)
    rows = {name: np.flatnonzero(part == number).astype(np.int64) for number, name in enumerate(SPLITS)}
    if config.fold_of is not None and len(rows["train"]):
        rows["train"], rows["valid"] = _validate_on_fold(table, rows["train"], config, *config.fold_of)
    _refuse_empty(table, rows, config, needs)
    if "train" in needs:
        rows["train"] = _draw_subset(rows["train"], config)
    used = {name: rows[name] for name in needs}
    notes = _leak(table, used, config)
    for name, chosen in used.items():
        notes += one_class(table, chosen, TITLES[name])
    return Splits(**rows, notes=tuple(notes))


def splits_of_training(table: Table, config: DataConfig, data: str | None) -> Splits | None:
    """The splits that a model was trained with, if this is the table that it was trained on, wherever it lies now.

    Args:
        table: with the model's attributes, in their order.
        config: of the data set, as it stands in the run.
        data: `digest` of the training and validation images of the run; None: unknown.

    Returns:
        None if the table is another one, so that nothing is known of what the model has seen of it.
    """
    try:
        splits = make_splits(table, config)
    except UserError:  # such as a split of the training that this table cannot have
        return None
    return splits if digest(table, splits.train, splits.valid) == data else None


def digest(table: Table, *splits: NDArray[np.int64]) -> str:
    """SHA-256 of the names and labels of the images in some splits, in the order of the table."""
    sha = hashlib.sha256()
    for rows in splits:
        sha.update("\n".join(table.names[row] for row in rows).encode())
        sha.update(table.targets[rows].tobytes())
    return sha.hexdigest()


def nothing_in(name: str, rows: Mapping[str, NDArray[np.int64]], config: DataConfig) -> str:
    """That a split is empty, and how many images the splits have; what to do about it is for the caller to say."""
    sizes = ", ".join(f"{TITLES[other].split()[1]} {len(chosen)}" for other, chosen in rows.items())
    return f"{TITLES[name]} of {config.root} is empty under data.split {config.split} ({sizes} images)"


def other_split(config: DataConfig, drawn: str) -> str:
    """A note that a data set's own split is taken, where the model was trained on a random one of other data.

    Args:
        config: of the data set.
        drawn: data.split of the training.
    """
    return (
        f"{config.root} is not the data that the model was trained on, whose split (data.split {drawn}) says nothing "
        f"about it: its own split is used; --data.split {drawn} draws one"
    )


def _official(table: Table, config: DataConfig, _: NDArray[np.int64] | None) -> NDArray[np.int8]:
    if table.split is None:
        columns = (*table.attributes, *table.flaws)
        near = next((name for name in columns if name.casefold() in ("partition", "fold", "subset", "set")), None)
        remedy = "add one" if near is None else f"rename the column {near} to split if it is one, or add one"
        raise UserError(
            f"data.split is official, but the data set in {config.root} has no split of its own (no "
            f"list_eval_partition file, no column split): {remedy}, or set data.split to {_random_splits(table)}"
        )
    return table.split


def _by_image(table: Table, config: DataConfig, group: NDArray[np.int64] | None) -> NDArray[np.int8]:
    row = np.arange(len(table)) if group is None else group
    order, _, part = _cut_queue(row, len(table), config)
    part_of_row = np.empty(len(table), dtype=np.int8)
    part_of_row[order] = part
    return part_of_row[row]


def _by_identity(table: Table, config: DataConfig, group: NDArray[np.int64] | None) -> NDArray[np.int8]:
    if table.identity is None:
        raise UserError(
            f"data.split is identity, but the data set in {config.root} names no identities (no identity_CelebA file, "
            f"no column group): add them, or set data.split to image"
        )
    identities = np.unique(table.identity)
    identity = np.searchsorted(identities, table.identity if group is None else group)
    order, sizes, part = _cut_queue(identity, len(identities), config)
    # Identities move, one at a time, while a move brings the sizes nearer to the fractions (in least squares).
    wanted = np.array(config.split_fractions) * len(table)
    while True:
        excess = np.bincount(part, weights=sizes, minlength=3) - wanted
        change = sizes[:, None] * (sizes[:, None] - excess[part][:, None] + excess[None, :])  # [I, 3]
        mover, target = np.unravel_index(np.argmin(change), change.shape)
        if change[mover, target] > -1e-6:
            break
        part[mover] = target
    part_of_identity = np.empty(len(sizes), dtype=np.int8)
    part_of_identity[order] = part
    return part_of_identity[identity]


_PARTS = {"official": _official, "identity": _by_identity, "image": _by_image}


def _cut_queue(
    member: NDArray[np.int64], count: int, config: DataConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """A shuffled queue of identities, or of images, cut in three.

    Args:
        member: int64 [N], which of them each image belongs to. One without images keeps its place and takes no room, so
            that the others are where they would be if nothing was joined.
        count: of them, I.
        config: with the fractions and the seed.

    Returns:
        In the order of the queue, int64 [I]: which it is, its number of images, and its split.
    """
    order = _shuffle(count, config.split_seed, _SPLIT_STREAM)
    sizes = np.bincount(member, minlength=count)[order]
    # Where training and validation end, in whole images.
    ends = np.round(np.cumsum(config.split_fractions)[:2] * len(member))
    # Where the middle of an identity falls decides; that is off by half an identity at each end.
    return order, sizes, np.searchsorted(ends, np.cumsum(sizes) - sizes / 2, side="right")


def _shuffle(count: int, seed: int, stream: int) -> NDArray[np.int64]:
    # NumPy promises that a bit generator's raw numbers never change; of `Generator.permutation` it does not.
    keys = np.random.Philox([seed, stream]).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def _random_splits(table: Table) -> str:
    """Which random splits a table can have, for a sentence."""
    return "image" if table.identity is None else "image or identity"


def _refuse_empty(
    table: Table, rows: Mapping[str, NDArray[np.int64]], config: DataConfig, needs: Collection[str]
) -> None:
    for name in needs:
        if not len(rows[name]):
            remedy = (
                f"set data.split to {_random_splits(table)}"
                if config.split == "official"
                else f"give it a larger share in data.split_fractions, now {config.split_fractions}"
            )
            raise UserError(f"{nothing_in(name, rows, config)}: {remedy}")


def _validate_on_fold(
    table: Table, train: NDArray[np.int64], config: DataConfig, number: int, folds: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The training split without one of its folds, and that fold, which is of its size but for an identity at most."""
    identity = None if config.split == "image" else table.identity
    members, member = np.unique(train if identity is None else identity[train], return_inverse=True)
    order = _shuffle(len(members), config.split_seed, _FOLD_STREAM)
    sizes = np.bincount(member)[order]
    fold_of_member = np.empty(len(members), dtype=np.int64)
    # Where the middle of an identity falls decides.
    fold_of_member[order] = (2 * np.cumsum(sizes) - sizes) * folds // (2 * len(train))
    held_out = fold_of_member[member] == number
    if not 0 < held_out.sum() < len(train):
        kept = "" if identity is None else ", and no identity is cut in two"
        raise UserError(
            f"data.fold is {config.fold}, which leaves nothing to {'train' if held_out.any() else 'validate'} on: the "
            f"training split of {config.root} has {plural(len(train), 'image')}{kept}; ask for fewer folds"
        )
    return train[~held_out], train[held_out]


def _draw_subset(train: NDArray[np.int64], config: DataConfig) -> NDArray[np.int64]:
    if config.subset is None:
        return train
    if config.subset > len(train):
        raise UserError(
            f"data.subset is {config.subset}, more than the {len(train)} images of the training split: choose at most "
            f"{len(train)}, or leave it out to train on all"
        )
    return np.sort(train[_shuffle(len(train), config.split_seed, _SUBSET_STREAM)[: config.subset]])


def crossing(member: NDArray[np.int64], part: NDArray[np.int64] | NDArray[np.int8]) -> NDArray[np.int64]:
    """Those of the members int64 [N] that are in more than one part."""
    order = np.lexsort((part, member))
    members, parts = member[order], part[order]
    return np.unique(members[1:][(members[1:] == members[:-1]) & (parts[1:] != parts[:-1])])


def _leak(table: Table, rows: Mapping[str, NDArray[np.int64]], config: DataConfig) -> list[str]:
    """A note if images of the same identity are in two splits, so that scores flatter the model."""
    if table.identity is None or len(rows) < 2:
        return []
    identity = table.identity[np.concatenate([*rows.values()])]
    people = crossing(identity, np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows.values()]))
    if not len(people):
        return []
    images = int(np.isin(identity, people).sum())
    return [
        f"Identities in more than one split under data.split {config.split}: {len(people)}, with {images} images; "
        f"scores flatter a model that has seen these people, and data.split identity keeps them apart."
    ]


def seen_in_training(table: Table, rows: NDArray[np.int64], trained: NDArray[np.int64], where: str) -> list[str]:
    """Notes if a model has been trained on some of these images, or on others of the same identities.

    Args:
        table: of the images.
        rows: int64 [N], which are to be scored.
        trained: int64, rows that the model was trained on.
        where: what the former are, such as "the test split".
    """
    notes = []
    images = np.isin(rows, trained)
    if images.any():
        notes.append(
            f"The model was trained on {images.sum()} of the {len(rows)} images in {where}: scores flatter it."
        )
    if table.identity is not None:
        people = np.isin(table.identity[rows], table.identity[trained]) & ~images
        if people.any():
            notes.append(
                f"Identities in {where} that are in the training images too: "
                f"{len(np.unique(table.identity[rows[people]]))}, with {people.sum()} images; scores flatter a model "
                f"that has seen these people."
            )
    return notes


def one_class(table: Table, rows: NDArray[np.int64], where: str) -> list[str]:
    """A note if an attribute is always or never there in some rows.

    Args:
        table: of the images.
        rows: int64 [N], at least one.
        where: what these rows are, such as "the test split".
    """
    targets = table.targets[rows]
    single = [table.attributes[i] for i in np.flatnonzero(targets.min(axis=0) == targets.max(axis=0))]
    if not single:
        return []
    return [f"ROC AUC is undefined for {listed(single)} in {where}: every image there has the same value."]
