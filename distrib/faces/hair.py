"""What is on the head: hair, bangs, sideburns and hats."""

import numpy as np

from distrib.faces.canvas import (
    Canvas,
    Colour,
    Points,
    closed_curve,
    ellipse,
    mirrored,
    mix,
    open_curve,
    shade,
    shades,
    shifted,
)
from distrib.faces.portrait import CLOTH, Portrait, pick


def _hairline(portrait: Portrait) -> tuple[Points, Points]:
    """The hair's outer and inner edge from the left ear over the top to the right ear, [P, 2] each."""
    height, volume, tilt = portrait.face.lasting("hair").uniform(0, 1, 3).tolist()
    cropped = not (portrait.has("Straight_Hair") or portrait.has("Wavy_Hair"))
    volume = 2.5 + 1.5 * volume if cropped else 6 + 4 * volume
    height, tilt = 57 + 6 * height, 0.12 * (tilt - 0.5)
    temple = height + 7
    if portrait.has("Receding_Hairline"):
        height, temple, tilt = 50, 47, 0
    outer = mirrored(
        [
            (0, 41 - volume),
            (24, 43.5 - volume),
            (39 + volume / 3, 56 - volume / 2),
            (46 + volume / 2, 78),
            (48 + volume / 3, 98),
            (45, 110),
            (0, 0),
        ]
    )
    inner = mirrored([(0, height), (20, temple - 3), (33, temple + 4), (39.5, 80), (41, 94), (45, 110), (0, 0)])
    inner[:, 1] += tilt * inner[:, 0] * (inner[:, 1] < 78)
    # `mirrored` lists the right half downwards and the left half upwards: turn it to run from ear to ear.
    return open_curve(np.roll(outer, 5, 0)[:11]), open_curve(np.roll(inner, 5, 0)[:11])


def hair_behind(portrait: Portrait) -> None:
    """What grows on the back of the head, hangs behind the neck or is pinned up above."""
    if portrait.has("Bald"):
        return
    with portrait.canvas.part("hair"):
        back_of_head, _ = _hairline(portrait)
        portrait.canvas.fill(back_of_head, shade(portrait.hair, 0.8))
        if portrait.face.long_hair:
            _long_hair(portrait)


def _long_hair(portrait: Portrait) -> None:
    """A knot, or hair that falls to the shoulders."""
    canvas, hair = portrait.canvas, portrait.hair
    volume, length, place = portrait.face.lasting("long hair").random(3).tolist()
    generator = portrait.face.passing("long hair")
    if not portrait.hair_falls:
        x, y = (place - 0.5) * 20, 31.0
        if portrait.has("Wearing_Hat"):  # no room on top: in the nape
            x, y = (34.0 if place < 0.5 else -34.0), 158.0
        knot = ellipse(x, y, 15 + 3 * volume, 12 + 2 * volume)
        canvas.fill(knot, shade(hair, 0.86))
        with canvas.clip(knot):
            for turn in range(4):
                arc = ellipse(x + 2 * turn, y + 2, 14 - 3 * turn, 11 - 2.4 * turn)[12:]
                canvas.stroke(arc, 1.6, shade(hair, 1.25 if turn % 2 else 0.7))
        return
    wide, low = 6 * volume, 172 + 46 * length
    controls = [
        (0, 40),
        (30, 42),
        (46 + wide, 70),
        (51 + wide, 105),
        (52 + wide, 0.5 * (105 + low)),
        (48 + wide, low - 6),
        (36, low),
        (18, low - 8),
        (0, low - 10),
    ]
    outline = closed_curve(mirrored(controls), 12)
    wavy = portrait.has("Wavy_Hair")
    if wavy:
        outline[:, 0] += np.sign(outline[:, 0]) * _waves(outline[:, 1], 4.6) * (np.abs(outline[:, 0]) > 30)
    canvas.fill(outline, shade(hair, 0.78))
    with canvas.clip(outline):
        count = 44
        t = np.linspace(0, 1, 24)
        start = generator.uniform(26, 52 + wide, count) * np.where(np.arange(count) % 2, 1, -1)
        paths = np.empty((count, 24, 2))
        paths[..., 1] = 66 + (low - 62) * t
        paths[..., 0] = start[:, None] * (0.94 + 0.1 * np.sin(np.pi * t))
        if wavy:
            paths[..., 0] += np.sign(start)[:, None] * _waves(paths[..., 1], 4.6)
        tones = generator.choice(np.array([0.62, 0.9, 1.05, 1.3]), count)
        canvas.strokes(paths, generator.uniform(1.2, 3.4, count), shades(hair, tones))


def _waves(y: Points, height: float) -> Points:
    """How far a wave stands out at each height of the image."""
    return np.asarray(height * np.sin(y * (2 * np.pi / 23)), dtype=np.float64)


def hair(portrait: Portrait) -> None:
    """What grows on the skull in front: the cap of hair, its texture and the bangs."""
    if portrait.has("Bald"):
        return
    canvas, colour = portrait.canvas, portrait.hair
    generator = portrait.face.passing("hair")
    parting = 0.5 + portrait.face.lasting("parting").uniform(-0.16, 0.16)
    outer, inner = _hairline(portrait)
    wavy, straight = portrait.has("Wavy_Hair"), portrait.has("Straight_Hair")
    with canvas.part("hair"):
        if wavy:
            curls = outer[2:-2:3]
            sizes, tones = generator.uniform(4.5, 8.5, len(curls)), generator.uniform(0.78, 1.0, len(curls))
            for (x, y), size, tone in zip(curls.tolist(), sizes.tolist(), tones.tolist(), strict=True):
                canvas.fill(ellipse(x * 0.98, y + 2, size, size, 16), shade(colour, tone))
        cap = np.concatenate([outer, inner[::-1]])
        canvas.fill(cap, colour)
        with canvas.clip(cap):
            _strands(canvas, generator, colour, outer, inner, parting, 4.0 if wavy else 0.0)
            if not (wavy or straight or portrait.face.long_hair):  # cropped: short bristles
                count = 90
                t, depth = generator.random(count), generator.random(count)[:, None]
                place = (t * (len(outer) - 1)).astype(int)
                root = outer[place] * (1 - depth) + inner[place] * depth
                paths = np.stack([root, shifted(root, 0.4, 3.2)], axis=1)
                tones = generator.choice(np.array([0.74, 1.2]), count)
                canvas.strokes(paths, 0.9, shades(colour, tones), taper=0)
            else:
                lamp = portrait.face.passing("lamp").uniform(-1, 1)
                canvas.glow(-20 * lamp, 48, 26, 9, mix(shade(colour, 1.3), (255, 250, 240), 0.25), 0.55)
    if portrait.has("Bangs"):
        _bangs(portrait, inner, parting)
    if portrait.has("Sideburns"):
        generator = portrait.face.passing("sideburns")
        with canvas.part("sideburns", "beard", "temples", "jaw"), canvas.clip(portrait.outline):
            for side in (-1, 1):
                burn = closed_curve(
                    [(side * 38, 90), (side * 47, 90), (side * 47, 128), (side * 40, 137), (side * 36, 120)]
                )
                canvas.fill(burn, portrait.beard)
                with canvas.clip(burn):
                    count = 22
                    root = np.stack(
                        [side * generator.uniform(35, 46, count), generator.uniform(88, 134, count)], axis=1
                    )
                    paths = np.stack([root, shifted(root, -side * 0.6, 3), shifted(root, -side * 1.8, 6)], axis=1)
                    tones = generator.choice(np.array([0.7, 1.25, 1.4]), count)
                    canvas.strokes(paths, 1.0, shades(portrait.beard, tones))


def _strands(
    canvas: Canvas,
    generator: np.random.Generator,
    colour: Colour,
    outer: Points,
    inner: Points,
    parting: float,
    wave: float,
) -> None:
    """Combed from the parting down to both ears, between the outer and the inner edge."""
    count, steps = 44, 18
    depth = generator.uniform(0.04, 0.98, count)
    begin = parting + generator.uniform(-0.01, 0.01, count)
    end = np.where(np.arange(count) % 2, 1.0, 0.0)
    t = begin[:, None] + (end - begin)[:, None] * np.linspace(0, 1, steps)
    place = np.clip((t * (len(outer) - 1)).round().astype(int), 0, len(outer) - 1)
    # At the parting all strands start near the outer edge.
    sink = depth[:, None] * np.clip(np.abs(t - parting) * 6 + 0.6, 0, 1)
    paths = outer[place] * (1 - sink)[..., None] + inner[place] * sink[..., None]
    if wave:
        paths[..., 0] += wave * np.sin(np.linspace(0, 4 * np.pi, steps) + generator.uniform(0, 6, count)[:, None]) * 0.7
        paths[..., 1] += wave * np.cos(np.linspace(0, 4 * np.pi, steps) + generator.uniform(0, 6, count)[:, None]) * 0.5
    tones = generator.choice(np.array([0.66, 0.82, 1.18, 1.34]), count)
    canvas.strokes(paths, generator.uniform(0.8, 2.2, count), shades(colour, tones))


def _bangs(portrait: Portrait, hairline: Points, parting: float) -> None:
    """Locks over the forehead that end above the brows."""
    canvas, colour = portrait.canvas, portrait.hair
    generator = portrait.face.passing("bangs")
    sweep = generator.uniform(-7, 7)
    tips = np.linspace(-36, 36, 17)
    low = 77.5 - 0.004 * tips**2 * 2.2 - generator.uniform(0, 3.5, len(tips))
    with canvas.part("hair", "bangs", "forehead"):
        fringe = np.concatenate([np.array([(-40.0, 70.0)]), hairline[30:-30] - [0, 8], np.array([(40.0, 70.0)])])
        ends = np.stack([tips[::-1], low[::-1] - 2.5], axis=1)
        canvas.fill(np.concatenate([fringe, ends]), shade(colour, 0.95))
        roots = np.stack(
            [40 * (parting - 0.5) + tips * 0.82 - sweep, np.full(len(tips), 46.0) + 0.009 * tips**2], axis=1
        )
        t = np.linspace(0, 1, 10)[None, :, None]
        middle = (roots + np.stack([tips, low], axis=1)) / 2 + [sweep * 0.4, -1]
        ends = np.stack([tips, low], axis=1)
        paths = roots[:, None] * (1 - t) ** 2 + 2 * middle[:, None] * t * (1 - t) + ends[:, None] * t**2
        if portrait.has("Wavy_Hair"):
            paths[..., 0] += 1.8 * np.sin(np.linspace(0, 3 * np.pi, 10))
        tones = generator.choice(np.array([0.72, 0.9, 1.06, 1.25]), len(tips))
        canvas.strokes(paths, generator.uniform(4, 6.5, len(tips)), shades(colour, tones))


def hat(portrait: Portrait) -> None:
    """A woollen hat, a cap or a brimmed hat; its brim stays above the brows."""
    if not portrait.has("Wearing_Hat"):
        return
    canvas = portrait.canvas
    generator = portrait.face.passing("hat")
    kind, cloth = generator.random(), pick(generator, CLOTH)
    trim = mix(pick(generator, CLOTH), (250, 240, 225), 0.3)
    dark = shade(cloth, 0.7)
    with canvas.part("hat", "crown"):
        dome = closed_curve(mirrored([(0, 22), (24, 25), (43, 38), (52, 60), (51, 74), (28, 73), (0, 73)]))
        if kind < 0.4:  # woollen
            canvas.fill(ellipse(0, 21, 9, 8), trim)
            canvas.fill(dome, cloth)
            with canvas.clip(dome):
                ribs = np.stack(
                    [open_curve([(x * 0.25, 22), (x * 0.8, 38), (x, 74)], 6) for x in np.linspace(-50, 50, 13)]
                )
                canvas.strokes(ribs, 1.8, [dark] * 13, taper=0)
            band = closed_curve(mirrored([(0, 60), (30, 60), (53, 61), (54, 74), (30, 77.5), (0, 78)]))
            canvas.fill(band, trim)
            with canvas.clip(band):
                for x in range(-52, 53, 6):
                    canvas.stroke(np.array([(x, 58.0), (x, 80.0)]), 1.5, shade(trim, 0.75), 0)
        elif kind < 0.7:  # cap
            canvas.fill(dome, cloth)
            with canvas.clip(dome):
                for x in (-26, 0, 26):
                    canvas.stroke(open_curve([(x * 0.2, 22), (x, 42), (x * 1.3, 74)]), 1.4, dark, 0)
                canvas.glow(0, 52, 13, 11, trim, 1.0)
            canvas.fill(ellipse(0, 22.5, 3, 2, 12), dark)
            visor = closed_curve(mirrored([(0, 66), (30, 65), (53, 70), (46, 75), (24, 77.5), (0, 78.5)]))
            canvas.fill(visor, dark)
            canvas.stroke(open_curve([(-44, 69), (-20, 67), (0, 66.5), (20, 67), (44, 69)]), 1.5, trim)
        else:  # brimmed
            crown = closed_curve(mirrored([(0, 27), (16, 23), (34, 26), (42, 46), (46, 72), (0, 74)]))
            canvas.fill(crown, cloth)
            with canvas.clip(crown):
                canvas.stroke(open_curve([(-50, 60), (0, 65), (50, 60)]), 11, trim, 0)
                canvas.stroke(open_curve([(0, 24), (-2, 34), (0, 44)]), 3, dark)
            brim = closed_curve(mirrored([(0, 68), (36, 67), (60, 64), (62, 70), (38, 77), (0, 78.5)]))
            canvas.fill(brim, shade(cloth, 0.84))
            canvas.stroke(open_curve([(-58, 66), (-30, 69.5), (0, 70.5), (30, 69.5), (58, 66)]), 1.6, dark)
