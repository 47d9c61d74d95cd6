"""What the parts of one drawing have in common: the canvas, the colours and the shape of the head."""

from functools import cached_property

import numpy as np

from distrib.faces.attributes import HAIR_TEXTURES, Face
from distrib.faces.canvas import Canvas, Colour, Points, closed_curve, mirrored, mix, shade

_SKIN: tuple[Colour, ...] = (
    (236, 194, 162), (228, 180, 144), (214, 162, 124), (196, 142, 104), (170, 118, 84), (142, 95, 66),
)  # fmt: skip
_PALE_SKIN: Colour = (248, 226, 210)
_HAIR: dict[str, tuple[Colour, ...]] = {
    "Black_Hair": ((30, 27, 31), (38, 32, 34), (24, 25, 32)),
    "Brown_Hair": ((98, 62, 38), (84, 52, 36), (116, 76, 46)),
    "Blond_Hair": ((226, 190, 112), (236, 208, 140), (210, 170, 92)),
    "Gray_Hair": ((172, 172, 176), (192, 192, 194), (150, 152, 158)),
}
_OTHER_HAIR: tuple[Colour, ...] = ((176, 66, 34), (196, 88, 40), (150, 44, 38), (60, 130, 140), (190, 90, 130))
# Of garments and hats.
CLOTH: tuple[Colour, ...] = (
    (52, 62, 92), (150, 52, 58), (60, 104, 92), (222, 214, 200), (92, 72, 104), (206, 140, 70), (66, 70, 74),
    (120, 160, 190), (232, 178, 178), (110, 120, 60), (36, 40, 50), (176, 96, 76),
)  # fmt: skip
_INK: Colour = (44, 28, 28)


def pick(generator: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    """One of the colours."""
    return colours[generator.integers(len(colours))]


class Portrait:
    """One face being drawn.

    Attributes:
        face: what to draw.
        canvas: where to.
    """

    def __init__(self, face: Face, canvas: Canvas) -> None:
        self.face = face
        self.canvas = canvas

    def has(self, name: str) -> bool:
        """Whether the face has this attribute."""
        return self.face.attributes[name]

    @cached_property
    def skin(self) -> Colour:
        """The skin where the light meets it."""
        generator = self.face.lasting("skin")
        tone, warmth = generator.random() * (len(_SKIN) - 1), generator.uniform(-5, 5)
        if self.has("Pale_Skin"):
            return shade(_PALE_SKIN, 1 + warmth / 400)
        first = int(tone)
        red, green, blue = mix(_SKIN[first], _SKIN[first + 1], tone - first)
        return (red, green, blue - warmth)

    @cached_property
    def skin_shadow(self) -> Colour:
        """The skin in the shade: darker and redder."""
        return mix(shade(self.skin, 0.72), (120, 40, 40), 0.16)

    @cached_property
    def blush(self) -> Colour:
        """The skin where blood shows."""
        return mix(self.skin, (214, 70, 74), 0.62)

    @cached_property
    def hair(self) -> Colour:
        """The hair's middle tone."""
        generator = self.face.lasting("hair colour")
        choice, brightness = generator.random(), generator.uniform(0.94, 1.06)
        unnamed = _HAIR["Brown_Hair"] if self.has("Bald") else _OTHER_HAIR
        tones = next((tones for name, tones in _HAIR.items() if self.has(name)), unnamed)
        return shade(tones[int(choice * len(tones))], brightness)

    @cached_property
    def beard(self) -> Colour:
        """The beard's tone: the hair's, darkened where that would vanish on the skin."""
        return mix(self.hair, _INK, 0.3)

    @cached_property
    def ink(self) -> Colour:
        """The darkest lines: lashes, nostrils, the open mouth's depth."""
        return mix(_INK, self.skin, 0.08)

    @property
    def hair_falls(self) -> bool:
        """Whether long hair falls beside the neck instead of being pinned up."""
        return self.face.long_hair and not self.has("Bald") and any(self.has(name) for name in HAIR_TEXTURES)

    @cached_property
    def _shape(self) -> tuple[float, float, float, float]:
        """How far the jaw, the chin's width, the chin's height and the cheeks stand out, in image pixels."""
        jaw, chin, length, cheek = self.face.lasting("face").uniform(-1, 1, 4).tolist()
        if self.has("Male"):
            return 3.6 + 1.2 * jaw, 5 + 1.5 * chin, 2 + 1.5 * length, cheek
        return -2.2 + 1.2 * jaw, 1.5 * chin, -1 + 1.5 * length, cheek

    @cached_property
    def chin_y(self) -> float:
        """How far down the chin reaches."""
        return 174.5 + self._shape[2]

    @cached_property
    def outline(self) -> Points:
        """The face from the top of the skull to the chin."""
        jaw, chin, length, cheek = self._shape
        full = 1.0 if self.has("Chubby") else 0.0
        right_half = [
            (0, 44),
            (21, 47),
            (36, 60),
            (43, 82),
            (44, 103),
            (42.5 + jaw / 3 + cheek + 4.5 * full, 126),
            (37.5 + jaw + cheek + 10 * full, 146),
            (25.5 + jaw + 12 * full, 162 + length),
            (10.5 + chin + 9 * full, 172 + length),
            (0, self.chin_y),
        ]
        return closed_curve(mirrored(right_half))
