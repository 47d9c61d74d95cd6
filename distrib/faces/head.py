"""Everything around the features but hair: background, body, neck, ears, skull and jewellery."""

import numpy as np
from PIL import Image

from distrib.faces.attributes import Face
from distrib.faces.canvas import (
    HEIGHT,
    SCALE,
    WIDTH,
    Colour,
    closed_curve,
    ellipse,
    mirrored,
    mix,
    open_curve,
    shade,
    shifted,
)
from distrib.faces.portrait import CLOTH, Portrait, pick

_METAL: tuple[Colour, ...] = ((236, 186, 70), (214, 218, 226), (246, 240, 232), (60, 170, 160), (200, 60, 90))
_SHIRT: tuple[Colour, ...] = ((246, 246, 248), (206, 222, 242), (240, 226, 214))
_TIE: tuple[Colour, ...] = ((150, 24, 40), (30, 52, 110), (30, 96, 74), (90, 44, 110), (206, 150, 40), (28, 28, 34))


def background(face: Face) -> Image.Image:
    """A room, a sky or lights out of focus, at the canvas's size."""
    generator = face.passing("background")
    hue, tone, kind = generator.random(), generator.uniform(0.25, 0.8), generator.random()
    base = _hue(hue, generator.uniform(0.08, 0.42), tone)
    other = _hue(
        hue + generator.uniform(-0.12, 0.12), generator.uniform(0.08, 0.42), tone * generator.uniform(0.6, 1.2)
    )
    # Soft from the start: painted at a quarter of the size and stretched.
    width, height = WIDTH // 4, HEIGHT // 4
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    angle = generator.uniform(0, 2 * np.pi)
    blend = np.clip(0.5 + np.cos(angle) * (across - 0.5) + np.sin(angle) * (down - 0.5), 0, 1)[..., None]
    pixels = np.asarray(base) * (1 - blend) + np.asarray(other) * blend
    if kind < 0.4:  # lights
        count = 9
        x, y, radius = generator.random(count), generator.random(count), generator.uniform(0.06, 0.17, count)
        glow = generator.uniform(0.15, 0.45, count)
        for light in range(count):
            distance = np.hypot((across - x[light]) * WIDTH / HEIGHT, down - y[light]) / radius[light]
            disc = np.clip((1 - distance) * 5, 0, 1)[..., None] * glow[light]
            pixels = pixels * (1 - disc) + np.asarray(mix(other, (255, 250, 235), 0.6)) * disc
    elif kind < 0.7:  # panels, curtains, shelves
        along = across if generator.random() < 0.6 else down
        edges = np.sort(generator.random(6))
        tones = generator.uniform(0.78, 1.18, 7)
        pixels = pixels * tones[np.searchsorted(edges, along)][..., None]
    small = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    smooth = small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    return smooth.resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.NEAREST)


def _hue(hue: float, saturation: float, value: float) -> Colour:
    """The colour of a hue that goes round once from 0 to 1."""
    wheel = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    red, green, blue = (255 * value * (1 - saturation * (1 - wheel))).tolist()
    return (red, green, blue)


def regions(portrait: Portrait) -> None:
    """Declare where each attribute would show, so that a box tells of its absence as well."""
    region = portrait.canvas.region
    chin = portrait.chin_y
    for name, left, top, right, bottom in (
        ("scalp", -54, 26, 54, 112),
        ("crown", -62, 14, 62, 79),
        ("forehead", -38, 42, 38, 80),
        ("temples", -46, 84, 46, 140),
        ("eye_area", -46, 100, 46, 126),
        ("under_eyes", -32, 114, 32, 125),
        ("cheeks", -42, 116, 42, 148),
        ("upper_lip", -17, 134, 17, 149),
        ("jaw", -44, 100, 44, chin + 3),
        ("chin", -17, 156, 17, chin + 3),
        ("under_chin", -34, chin - 8, 34, chin + 16),
        ("left_earlobe", -55, 117, -43, 142),
        ("right_earlobe", 43, 117, 55, 142),
        ("neckline", -36, chin, 36, 212),
        ("collar", -36, 182, 36, 222),
    ):
        region(name, np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64))


def shoulders(portrait: Portrait) -> None:
    """The garment from shoulder to shoulder."""
    canvas = portrait.canvas
    generator = portrait.face.passing("garment")
    cloth = CLOTH[generator.integers(len(CLOTH))]
    slope, width = generator.uniform(-2, 2), generator.uniform(0, 6)
    right_half = [
        (0, 190),
        (24, 190),
        (44 + width, 198 + slope),
        (70 + width, 207 + slope),
        (92 + width, 226),
        (100, 268),
        (0, 270),
    ]
    body = closed_curve(mirrored(right_half))
    with canvas.part("body"):
        canvas.fill(body, cloth)
        with canvas.clip(body):
            pattern = generator.random()
            if pattern < 0.3:  # stripes
                heights = np.arange(196, 250, generator.uniform(6, 10))
                paths = np.stack([[(x, y) for x in np.linspace(-100, 100, 9)] for y in heights])
                paths[..., 1] += 0.0016 * paths[..., 0] ** 2
                canvas.strokes(paths, 2.2, [shade(cloth, 0.78)] * len(paths), taper=0)
            for side in (-1, 1):
                canvas.glow(side * 60, 214, 40, 16, shade(cloth, 1.25), 0.5)
                canvas.stroke(
                    open_curve([(side * 74, 214), (side * 66, 226), (side * 64, 240)]), 1.6, shade(cloth, 0.7)
                )


def neck(portrait: Portrait) -> None:
    """The neck, in the shadow of the chin, and the fold of a double chin."""
    canvas, skin = portrait.canvas, portrait.skin
    half = 25.0 if portrait.has("Male") else 18.5
    chin = portrait.chin_y
    right_half = [
        (0, 140),
        (half, 142),
        (half - 0.5, 172),
        (half + 1.5, 186),
        (half + 11, 196),
        (half + 2, 203),
        (0, 206),
    ]
    outline = closed_curve(mirrored(right_half))
    with canvas.part("neck", "skin"):
        canvas.fill(outline, mix(skin, portrait.skin_shadow, 0.25))
        with canvas.clip(outline):
            canvas.glow(0, chin - 6, half + 22, 30, portrait.skin_shadow, 0.95)
            for side in (-1, 1):
                collar_bone = open_curve([(side * 5, 201), (side * 16, 198), (side * 28, 196)])
                canvas.stroke(collar_bone, 1.4, mix(skin, portrait.skin_shadow, 0.55))
    if portrait.has("Double_Chin"):
        full = 8.0 if portrait.has("Chubby") else 0.0
        fold = closed_curve(
            mirrored([(0, 150), (25 + full, 156), (24 + full, chin + 4), (12 + full, chin + 11), (0, chin + 12.5)])
        )
        with canvas.part("skin", "double_chin", "under_chin"):
            canvas.fill(shifted(fold, 0, 2.4), shade(portrait.skin_shadow, 0.62))
            canvas.fill(fold, mix(skin, portrait.skin_shadow, 0.12))
            with canvas.clip(fold):
                canvas.glow(0, chin - 4, 34 + full, 11, shade(portrait.skin_shadow, 0.85), 1.0)


def neckline(portrait: Portrait) -> None:
    """The edge of the garment at the neck, a necktie and a necklace."""
    canvas = portrait.canvas
    cloth = CLOTH[portrait.face.passing("garment").integers(len(CLOTH))]
    generator = portrait.face.passing("neckline")
    kind, shirt, tie = generator.random(), pick(generator, _SHIRT), pick(generator, _TIE)
    striped, metal = generator.random() < 0.5, pick(generator, _METAL)
    with canvas.part("collar"):
        if portrait.has("Wearing_Necktie") or kind < 0.3:
            with canvas.part("shirt"):
                canvas.fill(np.array([(-25, 192), (0, 206), (25, 192), (15, 240), (-15, 240)]), shirt)
                for side in (-1, 1):
                    flap = np.array([(side * 26, 185), (side * 30, 194), (side * 14, 211), (side * 1, 203)])
                    canvas.fill(shifted(flap, 0, 1.5), shade(shirt, 0.72))
                    canvas.fill(flap, shirt)
        elif kind < 0.65:  # round
            canvas.stroke(
                open_curve([(-33, 194), (-20, 204), (0, 208), (20, 204), (33, 194)]), 5, shade(cloth, 0.82), 0
            )
        else:  # a deep V
            with canvas.part("skin"):
                canvas.fill(np.array([(-24, 198), (24, 198), (0, 226)]), mix(portrait.skin, portrait.skin_shadow, 0.2))
            for side in (-1, 1):
                canvas.stroke(np.array([(side * 31.0, 193.0), (side * 16, 209), (0, 227)]), 4.5, shade(cloth, 0.82), 0)
        if portrait.has("Wearing_Necktie"):
            with canvas.part("necktie"):
                canvas.fill(np.array([(-7, 201), (7, 201), (4.5, 210), (-4.5, 210)]), shade(tie, 0.85))
                blade = np.array([(-4.5, 210), (4.5, 210), (10, 244), (-10, 244)])
                canvas.fill(blade, tie)
                if striped:
                    with canvas.clip(blade):
                        for y in range(210, 240, 7):
                            canvas.stroke(
                                np.array([(-10.0, y + 6), (10.0, y - 4)]), 2, mix(tie, (255, 240, 220), 0.6), 0
                            )
    if portrait.has("Wearing_Necklace"):
        chain = open_curve([(-23, 184), (-18, 193), (-9, 200), (0, 203), (9, 200), (18, 193), (23, 184)], 4)
        with canvas.part("necklace", "neckline"):
            for x, y in chain[::2].tolist():
                canvas.fill(ellipse(x, y + 0.8, 2.5, 2.5, 10), shade(metal, 0.5))
                canvas.fill(ellipse(x, y, 2.3, 2.3, 10), metal)
            canvas.fill(ellipse(0, 206, 4.2, 4.8, 16), shade(metal, 0.75))
            canvas.fill(ellipse(-1, 205, 2, 2.4, 12), mix(metal, (255, 255, 255), 0.7))


def ears(portrait: Portrait) -> None:
    """Both ears."""
    canvas = portrait.canvas
    for name, side in (("left_ear", -1), ("right_ear", 1)):
        with canvas.part(name, "skin"):
            canvas.fill(
                closed_curve([(side * 41, 98), (side * 49, 97), (side * 51, 106), (side * 48, 118), (side * 43, 122)]),
                mix(portrait.skin, portrait.skin_shadow, 0.18),
            )
            canvas.stroke(
                open_curve([(side * 45, 101), (side * 48.5, 103), (side * 47, 111), (side * 44, 114)]),
                1.5,
                mix(portrait.skin, portrait.skin_shadow, 0.75),
            )


def skull(portrait: Portrait) -> None:
    """The face's skin with its shading, and the shine of a bald head."""
    canvas, skin = portrait.canvas, portrait.skin
    outline = portrait.outline
    lamp = portrait.face.passing("lamp").uniform(-1, 1)
    with canvas.part("face", "skin"):
        canvas.fill(outline, skin)
        with canvas.clip(outline):
            for side in (-1, 1):
                strength = 0.40 + 0.25 * side * lamp
                canvas.glow(side * 50, 118, 26, 74, portrait.skin_shadow, strength)
            canvas.glow(0, 182, 44, 24, portrait.skin_shadow, 0.35)
            canvas.glow(-6 * lamp, 78, 34, 26, shade(skin, 1.12), 0.5)
            for side in (-1, 1):  # eye sockets
                canvas.glow(side * 20, 106, 18, 13, portrait.skin_shadow, 0.30)
        if portrait.has("Bald"):
            with canvas.clip(outline), canvas.part("scalp"):
                canvas.glow(-14 * lamp - 4, 58, 22, 11, mix(skin, (255, 255, 255), 0.75), 0.9)


def earrings(portrait: Portrait) -> None:
    """A stud, a drop or a hoop at each lobe."""
    if not portrait.has("Wearing_Earrings"):
        return
    canvas = portrait.canvas
    generator = portrait.face.passing("earrings")
    kind, metal = generator.random(), pick(generator, _METAL)
    for side, name in ((-1, "left_earlobe"), (1, "right_earlobe")):
        x, y = side * 47.5, 122.0
        with canvas.part("earrings", name):
            if kind < 0.4:  # hoop
                ring = ellipse(x + side, y + 8, 5.4, 7.6)
                canvas.stroke(np.concatenate([ring, ring[:1]]), 3.4, shade(metal, 0.5), 0)
                canvas.stroke(np.concatenate([ring, ring[:1]]), 2.4, metal, 0)
            elif kind < 0.75:  # drop
                canvas.stroke(np.array([(x, y), (x, y + 8)]), 1.8, shade(metal, 0.6), 0)
                drop = closed_curve([(x, y + 4), (x + 4.6, y + 13), (x, y + 18), (x - 4.6, y + 13)])
                canvas.fill(shifted(drop, 0, 0.8), shade(metal, 0.5))
                canvas.fill(drop, metal)
                canvas.fill(ellipse(x - 1.2, y + 12, 1.3, 2, 10), mix(metal, (255, 255, 255), 0.8))
            else:  # pearl
                canvas.fill(ellipse(x, y + 4.6, 5.6, 5.6), shade(metal, 0.5))
                canvas.fill(ellipse(x, y + 4, 5.2, 5.2), metal)
                canvas.fill(ellipse(x - 1.4, y + 2.4, 1.7, 1.7, 12), mix(metal, (255, 255, 255), 0.85))
