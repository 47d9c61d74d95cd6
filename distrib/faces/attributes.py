"""Who a face is and what it wears: the 40 attributes, how they go together, and where each one shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from types import MappingProxyType
from typing import NamedTuple
from zlib import crc32

import numpy as np

# CelebA's own names in CelebA's own order.
ATTRIBUTES: tuple[str, ...] = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip

# Where each visible attribute shows, as parts of `boxes.csv`; several parts stand for the union of their boxes.
# The other attributes (Attractive, Oval_Face) only go along with visible ones.
VISIBLE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "5_o_Clock_Shadow": ("jaw",),
        "Arched_Eyebrows": ("brows",),
        "Bags_Under_Eyes": ("under_eyes",),
        "Bald": ("scalp",),
        "Bangs": ("forehead",),
        "Big_Lips": ("mouth",),
        "Big_Nose": ("nose",),
        "Black_Hair": ("hair", "brows", "beard"),
        "Blond_Hair": ("hair", "brows", "beard"),
        "Blurry": ("picture",),
        "Brown_Hair": ("hair", "brows", "beard"),
        "Bushy_Eyebrows": ("brows",),
        "Chubby": ("face",),
        "Double_Chin": ("under_chin",),
        "Eyeglasses": ("eye_area",),
        "Goatee": ("chin",),
        "Gray_Hair": ("hair", "brows", "beard"),
        "Heavy_Makeup": ("eyes",),
        "High_Cheekbones": ("cheeks",),
        "Male": ("head",),
        "Mouth_Slightly_Open": ("mouth",),
        "Mustache": ("upper_lip",),
        "Narrow_Eyes": ("eyes",),
        "No_Beard": ("jaw",),
        "Pale_Skin": ("skin",),
        "Pointy_Nose": ("nose",),
        "Receding_Hairline": ("scalp",),
        "Rosy_Cheeks": ("cheeks",),
        "Sideburns": ("temples",),
        "Smiling": ("mouth",),
        "Straight_Hair": ("hair",),
        "Wavy_Hair": ("hair",),
        "Wearing_Earrings": ("left_earlobe", "right_earlobe"),
        "Wearing_Hat": ("crown",),
        "Wearing_Lipstick": ("mouth",),
        "Wearing_Necklace": ("neckline",),
        "Wearing_Necktie": ("collar",),
        "Young": ("face",),
    }
)

HAIR_COLOURS = ("Black_Hair", "Brown_Hair", "Blond_Hair", "Gray_Hair")
HAIR_TEXTURES = ("Straight_Hair", "Wavy_Hair")
BEARDS = ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns")


class Tendency(NamedTuple):
    """How often an attribute holds.

    Attributes:
        rate: probability when none of the attributes in `shifts` holds.
        shifts: what each attribute that holds adds to the log odds.
        steady: share of an identity's images that follow the identity's own disposition; the rest are drawn anew.
    """

    rate: float
    shifts: Mapping[str, float]
    steady: float


# An attribute may lean only on those above it. The brows' arch leans on Male alone, and mildly: a model that knows
# everything else about a face still has to look at the brows.
TENDENCIES: Mapping[str, Tendency] = MappingProxyType(
    {
        "Male": Tendency(0.48, {}, 1.0),
        "Young": Tendency(0.66, {}, 0.9),
        "Chubby": Tendency(0.18, {"Male": 0.4, "Young": -0.4}, 0.95),
        "Double_Chin": Tendency(0.10, {"Chubby": 1.8, "Young": -0.4}, 0.9),
        "Oval_Face": Tendency(0.34, {"Chubby": -1.5}, 0.9),
        "Pale_Skin": Tendency(0.20, {}, 0.95),
        "Arched_Eyebrows": Tendency(0.50, {"Male": -0.65}, 0.6),
        "Bushy_Eyebrows": Tendency(0.18, {"Male": 0.8}, 0.8),
        "Big_Nose": Tendency(0.22, {"Male": 0.7, "Young": -0.2}, 0.75),
        "Pointy_Nose": Tendency(0.42, {"Male": -0.5, "Big_Nose": -1.2}, 0.75),
        "Big_Lips": Tendency(0.34, {"Male": -0.6}, 0.9),
        "Smiling": Tendency(0.52, {"Male": -0.3}, 0.15),
        "Mouth_Slightly_Open": Tendency(0.36, {"Smiling": 0.8}, 0.1),
        "Narrow_Eyes": Tendency(0.16, {"Smiling": 0.5}, 0.6),
        "Bags_Under_Eyes": Tendency(0.26, {"Male": 0.5, "Young": -0.6}, 0.7),
        "High_Cheekbones": Tendency(0.30, {"Smiling": 1.3, "Male": -0.5, "Chubby": -0.5}, 0.6),
        "Bald": Tendency(0.004, {"Male": 4.5, "Young": -0.6}, 0.97),
        "Receding_Hairline": Tendency(0.14, {"Male": 1.4, "Young": -0.8}, 0.9),
        "Bangs": Tendency(0.36, {"Male": -0.7}, 0.6),
        "5_o_Clock_Shadow": Tendency(0.003, {"Male": 4.75}, 0.6),
        "Goatee": Tendency(0.003, {"Male": 4.75}, 0.8),
        "Mustache": Tendency(0.003, {"Male": 4.75}, 0.8),
        "Sideburns": Tendency(0.004, {"Male": 4.75}, 0.8),
        "Wearing_Hat": Tendency(0.11, {"Male": 0.5}, 0.1),
        "Eyeglasses": Tendency(0.14, {"Male": 0.3, "Young": -0.4}, 0.6),
        "Wearing_Lipstick": Tendency(0.72, {"Male": -3.4}, 0.6),
        "Heavy_Makeup": Tendency(0.07, {"Wearing_Lipstick": 2.5, "Male": -0.8}, 0.6),
        "Rosy_Cheeks": Tendency(0.14, {"Heavy_Makeup": 1.2, "Smiling": 0.3}, 0.6),
        "Wearing_Earrings": Tendency(0.45, {"Male": -1.8}, 0.4),
        "Wearing_Necklace": Tendency(0.34, {"Male": -1.9}, 0.3),
        "Wearing_Necktie": Tendency(0.05, {"Male": 2.2}, 0.3),
        "Blurry": Tendency(0.11, {}, 0.0),
        "Attractive": Tendency(0.36, {"Young": 0.9, "Heavy_Makeup": 0.7, "Male": -0.5, "Chubby": -1.0}, 0.8),
    }
)

# Black, brown, blond, grey; what is left has a colour without a name in CelebA (red, auburn, dyed).
HAIR_COLOUR_RATES = {True: (0.27, 0.27, 0.22, 0.08), False: (0.20, 0.20, 0.15, 0.35)}  # by Young
HAIR_TEXTURE_RATES = {True: (0.38, 0.26), False: (0.34, 0.44)}  # straight, wavy, by Male; else cropped or pinned up
LONG_HAIR_RATES = {True: 0.10, False: 0.78}  # by Male


@dataclass(frozen=True, slots=True)
class Face:
    """One image before it is drawn.

    Attributes:
        seed: of the whole set.
        index: which image of the set, from 0.
        identity: whose image, from 0.
        attributes: the 40 attributes by name.
        long_hair: whether the hair, where there is any, falls past the ears or is pinned up.
    """

    seed: int
    index: int
    identity: int
    attributes: Mapping[str, bool]
    long_hair: bool

    def lasting(self, purpose: str) -> np.random.Generator:
        """The generator of what all images of this identity share, one for each purpose."""
        return _generator(self.seed, "identity", self.identity, purpose)

    def passing(self, purpose: str) -> np.random.Generator:
        """The generator of what this image has for itself, one for each purpose."""
        return _generator(self.seed, "picture", self.index, purpose)


def _generator(seed: int, whose: str, number: int, purpose: str) -> np.random.Generator:
    # One generator for each purpose: whether a hat is drawn must not move a single hair of the beard.
    entropy = (seed, crc32(whose.encode()), number, crc32(purpose.encode()))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


_CHUNK = 4096  # identities whose image counts are drawn together
FEWEST_PICTURES, MOST_PICTURES = 6, 16  # of one identity


@lru_cache(maxsize=64)
def _picture_counts(seed: int, chunk: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    generator = _generator(seed, "identities", chunk, "pictures")
    return generator.integers(FEWEST_PICTURES, MOST_PICTURES + 1, size=_CHUNK)


def identity_of(seed: int, index: int) -> int:
    """The identity, from 0, whose image `index` is: each identity owns a run of 6 to 16 images."""
    chunk, before = 0, 0
    while before + (pictures := int(_picture_counts(seed, chunk).sum())) <= index:
        chunk, before = chunk + 1, before + pictures
    ends = before + np.cumsum(_picture_counts(seed, chunk))
    return chunk * _CHUNK + int(np.searchsorted(ends, index, side="right"))


def sample_face(seed: int, index: int) -> Face:
    """Image `index` of the set with this seed: its identity and attributes, nothing drawn yet.

    Args:
        seed: not negative.
        index: not negative; the image's file name is `index + 1`.
    """
    identity = identity_of(seed, index)
    lasting = _generator(seed, "identity", identity, "attributes")
    passing = _generator(seed, "picture", index, "attributes")
    # Columns: the identity's disposition, the image's own throw, whether the image follows the identity.
    throws = np.stack([lasting.random(40), passing.random(40), passing.random(40)], axis=1).tolist()

    attributes = dict.fromkeys(ATTRIBUTES, False)
    for (name, tendency), (own, fresh, follow) in zip(TENDENCIES.items(), throws, strict=False):
        odds = log(tendency.rate / (1 - tendency.rate))
        odds += sum(shift for parent, shift in tendency.shifts.items() if attributes[parent])
        attributes[name] = (own if follow < tendency.steady else fresh) < 1 / (1 + exp(-odds))

    colour, texture, length = throws[len(TENDENCIES) : len(TENDENCIES) + 3]
    _choose(attributes, HAIR_COLOURS, HAIR_COLOUR_RATES[attributes["Young"]], colour, steady=0.9)
    _choose(attributes, HAIR_TEXTURES, HAIR_TEXTURE_RATES[attributes["Male"]], texture, steady=0.7)
    long_hair = length[0] < LONG_HAIR_RATES[attributes["Male"]]
    return Face(seed, index, identity, settle(attributes, long_hair), long_hair)


def _choose(
    attributes: dict[str, bool], names: tuple[str, ...], rates: tuple[float, ...], throw: list[float], steady: float
) -> None:
    """Give at most one of `names`, each with its rate."""
    own, fresh, follow = throw
    place = int(np.searchsorted(np.cumsum(rates), own if follow < steady else fresh, side="right"))
    if place < len(names):
        attributes[names[place]] = True


def settle(attributes: Mapping[str, bool], long_hair: bool) -> dict[str, bool]:
    """The same attributes without contradictions: what cannot be seen, or cannot be at the same time, is False."""
    settled = dict(attributes)

    def drop(*names: str) -> None:
        settled.update(dict.fromkeys(names, False))

    if settled["Wearing_Hat"]:  # covers the scalp and the forehead; hair falls or sticks out below the brim
        drop("Bald", "Bangs", "Receding_Hairline")
        if not long_hair:
            drop(*HAIR_TEXTURES)
    if settled["Bald"]:
        drop("Bangs", "Receding_Hairline", *HAIR_COLOURS, *HAIR_TEXTURES)
    if settled["Bangs"]:
        drop("Receding_Hairline")
    if settled["Wearing_Necktie"]:
        drop("Wearing_Necklace")
    settled["No_Beard"] = not any(settled[name] for name in BEARDS)
    return settled
