"""The face's features: brows, eyes, nose, mouth, cheeks, beard and glasses."""

import numpy as np

from distrib.faces.canvas import (
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
from distrib.faces.portrait import Portrait

_LIPSTICK: tuple[Colour, ...] = ((200, 22, 48), (166, 18, 66), (226, 50, 92), (214, 62, 44), (124, 16, 52))
_EYE_SHADOW: tuple[Colour, ...] = ((104, 60, 140), (40, 92, 150), (36, 120, 110), (150, 50, 90), (84, 54, 44))
_IRIS: tuple[Colour, ...] = ((84, 54, 34), (58, 40, 32), (70, 118, 160), (82, 128, 86), (110, 130, 140), (140, 96, 44))
_FRAMES: tuple[Colour, ...] = ((28, 26, 30), (92, 48, 28), (150, 30, 40), (40, 60, 110), (60, 60, 64))
_SIDES = (("left", -1), ("right", 1))  # as the viewer sees them
_EYE_X, _EYE_Y = 20.0, 111.0


def brows(portrait: Portrait) -> None:
    """Arched ones rise to a peak and fall; the others run level or slant in one line."""
    canvas = portrait.canvas
    own, now = portrait.face.lasting("brows"), portrait.face.passing("brows")
    arch_height, flat_bend, thickness, tone, length = own.random(5).tolist()
    lift, slant, peak, uneven = now.uniform(-1, 1, 4).tolist()
    generator = portrait.face.passing("brow hairs")
    bushy = portrait.has("Bushy_Eyebrows")
    colour = mix(portrait.hair, (40, 26, 24), 0.5 + 0.25 * tone)
    if portrait.has("Bald"):
        colour = mix((70, 50, 40), (40, 26, 24), tone)
    width = (7.6 + 1.6 * thickness) if bushy else (3.1 + 1.5 * thickness)
    # Height above the line between both ends, at 0 (inner end), 0.25, 0.5, 0.72 and 1 (outer end) of the length.
    if portrait.has("Arched_Eyebrows"):
        rise = np.array([0.0, 3.6, 6.4, 5.8, -1.4]) * (0.92 + 0.3 * arch_height) - [0, 0, 0.8 * peak, -0.8 * peak, 0]
        tilt = 1.2 * slant - 1
    else:
        rise = np.array([0.0, 0.3, 0.5, 0.3, 0.0]) * (2.4 * flat_bend - 0.7)
        tilt = 2.2 * slant
    inner, outer = 8.5, 34.0 + 2 * length
    x = inner + (outer - inner) * np.array([0, 0.25, 0.5, 0.72, 1])
    for name, side in _SIDES:
        y = 95.6 - 0.8 * bushy + 1.2 * lift + 0.5 * uneven * side - rise - tilt * np.linspace(-1, 1, 5)
        path = open_curve(np.stack([side * x, y], axis=1), 6)
        with canvas.part("brows", f"{name}_brow"):
            # Full at the inner end, thin at the outer one.
            swell = np.interp(np.linspace(0, 1, len(path)), [0, 0.12, 0.5, 1], [0.62, 1.0, 0.9, 0.25]) * width / 2
            edge = np.stack([np.zeros(len(path)), swell], axis=1)
            canvas.fill(np.concatenate([path - edge, (path + edge)[::-1]]), colour)
            count = 26 if bushy else 14
            place = generator.integers(1, len(path) - 3, count)
            root = shifted(path[place], 0, generator.uniform(-0.9, 0.7, count) * swell[place])
            # The hairs lie along the brow, upright at its inner end.
            along = (path[place + 2] - path[place - 1]) * (3.6 if bushy else 2.4) / 5
            upright = np.clip(1 - 3 * place / len(path), 0.12, 1) * (3.0 if bushy else 1.6)
            tip = shifted(root + along, 0, -upright * generator.uniform(0.3, 1, count))
            tones = generator.choice(np.array([0.75, 1.0, 1.3]), count)
            canvas.strokes(
                np.stack([root, (root + tip) / 2, tip], axis=1),
                1.0,
                shades(colour, tones),
            )


def eyes(portrait: Portrait) -> None:
    """Eyes wide or narrow, with lids, lashes and whatever is painted on them."""
    canvas = portrait.canvas
    own, now = portrait.face.lasting("eyes"), portrait.face.passing("eyes")
    iris = _IRIS[own.integers(len(_IRIS))]
    size, slant = own.uniform(0.95, 1.1), own.uniform(-1.2, 1.2)
    gaze_x, gaze_y = now.uniform(-2.2, 2.2), now.uniform(-0.8, 0.8)
    paint = _EYE_SHADOW[now.integers(len(_EYE_SHADOW))]
    lash = 2.2 if portrait.has("Male") else 2.8
    made_up = portrait.has("Heavy_Makeup")
    upper, lower = (2.7, 2.0) if portrait.has("Narrow_Eyes") else (6.6, 5.0)
    for name, side in _SIDES:
        x = side * _EYE_X
        corners = [
            (x - side * 9.8 * size, _EYE_Y + 1.2),
            (x - side * 4.0, _EYE_Y - upper * 0.86),
            (x + side * 2.5, _EYE_Y - upper),
            (x + side * 7.5, _EYE_Y - upper * 0.62 - slant * 0.5),
            (x + side * 10.8 * size, _EYE_Y - 0.4 - slant),
        ]
        lid = open_curve(corners)
        bottom = open_curve(
            [corners[-1], (x + side * 4, _EYE_Y + lower * 0.9), (x - side * 3, _EYE_Y + lower), corners[0]]
        )
        outline = np.concatenate([lid, bottom[1:-1]])
        with canvas.part("eyes", f"{name}_eye"):
            if made_up:
                wing = open_curve([corners[0], (x - side * 5, 103.5), (x + side * 4, 101.8), (x + side * 14.5, 104.5)])
                canvas.fill(np.concatenate([wing, lid[::-1]]), mix(portrait.skin, paint, 0.72))
            else:
                crease = open_curve([(cx, cy - 2.6) for cx, cy in corners[:-1]] + [(x + side * 11, _EYE_Y - 4)])
                canvas.stroke(crease, 1.2, portrait.skin_shadow)
            canvas.fill(outline, (250, 247, 244))
            with canvas.clip(outline):
                cx, cy = x + gaze_x, _EYE_Y - 0.6 + gaze_y
                canvas.fill(ellipse(cx, cy, 5.9, 5.9), shade(iris, 0.55))
                canvas.fill(ellipse(cx, cy + 0.3, 5.0, 5.0), iris)
                canvas.glow(cx, cy + 3.0, 4.2, 3.0, mix(iris, (255, 240, 200), 0.6), 0.8)
                canvas.fill(ellipse(cx, cy, 2.5, 2.5, 16), (16, 12, 14))
                canvas.fill(ellipse(cx - 1.8, cy - 1.9, 1.5, 1.5, 12), (255, 255, 255))
                canvas.stroke(shifted(lid, 0, 1.2), 2.2, (196, 186, 190), 0.3)
            canvas.stroke(bottom, 0.9, mix(portrait.skin_shadow, portrait.ink, 0.3))
            canvas.stroke(lid, lash + 1.4 * made_up, portrait.ink, 0.7)
            if not portrait.has("Male") or made_up:
                tip = np.array(corners[-1])
                canvas.stroke(
                    np.stack([lid[-6], tip, shifted(tip, side * (3.4 + made_up), -2.6 - made_up)]), 2.4, portrait.ink
                )


def under_eyes(portrait: Portrait) -> None:
    """Bags: dark, swollen crescents below the lower lids."""
    if not portrait.has("Bags_Under_Eyes"):
        return
    canvas = portrait.canvas
    dark = mix(portrait.skin_shadow, (84, 50, 92), 0.5)
    with canvas.part("bags", "under_eyes"):
        for side in (-1, 1):
            x = side * _EYE_X
            pouch = closed_curve(
                [(x - side * 10, 114), (x, 117), (x + side * 11, 113.5), (x + side * 7, 121), (x - side * 4, 122)]
            )
            canvas.fill(pouch, mix(portrait.skin, dark, 0.55))
            canvas.stroke(open_curve([(x - side * 10, 117.5), (x - side * 2, 122.6), (x + side * 9, 119.5)]), 1.7, dark)


def nose(portrait: Portrait) -> None:
    """Wide or slim, round or pointed."""
    canvas, skin = portrait.canvas, portrait.skin
    length, round_ = portrait.face.lasting("nose").uniform(-1, 1, 2).tolist()
    lamp = portrait.face.passing("lamp").uniform(-1, 1)
    big, pointy = portrait.has("Big_Nose"), portrait.has("Pointy_Nose")
    dim = mix(skin, portrait.skin_shadow, 0.7)
    y = 133 + length + 2 * big
    half = (14.2 if big else 6.6) + 0.6 * round_
    shaded = 1 if lamp > 0 else -1
    with canvas.part("nose"):
        bridge = open_curve([(shaded * 5.0, 104), (shaded * 4.0, 116), (shaded * (half - 3.0), y - 4)])
        canvas.stroke(bridge, 3.2, mix(skin, portrait.skin_shadow, 0.42), 0.8)
        if pointy:
            # A sharp wedge: one side of the ridge in the shade, meeting the other in a point.
            tip = y + 5.5
            wedge = np.array([(0.0, 108.0), (shaded * half, y - 0.5), (0.0, tip)])
            canvas.fill(wedge, mix(skin, portrait.skin_shadow, 0.62))
            canvas.stroke(np.array([(-half, y - 1.0), (0.0, tip), (half, y - 1.0)]), 2.0, shade(dim, 0.8), 0.3)
            canvas.stroke(np.array([(-0.6 * shaded, 112.0), (-0.6 * shaded, tip - 3)]), 1.8, shade(skin, 1.13))
        else:
            for side in (-1, 1):
                canvas.fill(ellipse(side * half * 0.66, y, half * 0.42, 4.2), mix(skin, portrait.skin_shadow, 0.34))
            ball = ellipse(0, y - 0.5, half * 0.72, 4.2 + 0.28 * half)
            canvas.fill(ball, mix(skin, portrait.blush, 0.34 if big else 0.2))
            with canvas.clip(ball):
                canvas.glow(-lamp * 2, y - 3, half * 0.5, 4, mix(skin, (255, 255, 255), 0.6), 0.9)
            for side in (-1, 1):
                canvas.fill(
                    ellipse(side * half * 0.42, y + 3.9, half * 0.2 + 0.6, 1.7, 14), mix(portrait.ink, dim, 0.35)
                )
                wing = open_curve(
                    [(side * half * 0.9, y - 4.5), (side * half * 1.08, y), (side * half * 0.72, y + 4.4)]
                )
                canvas.stroke(wing, 2.6 if big else 1.6, shade(dim, 0.85 if big else 1))


def mouth(portrait: Portrait) -> None:
    """Lips thin or full, painted or not, smiling or not, closed or open."""
    canvas = portrait.canvas
    own, now = portrait.face.lasting("mouth"), portrait.face.passing("mouth")
    smile, open_, big = portrait.has("Smiling"), portrait.has("Mouth_Slightly_Open"), portrait.has("Big_Lips")
    paint = _LIPSTICK[now.integers(len(_LIPSTICK))]
    corner, gap, breadth = now.uniform(-1, 1, 3).tolist()
    lips = mix(portrait.skin, (176, 72, 78), 0.42)
    if portrait.has("Wearing_Lipstick"):
        lips = paint
    half = (19.5 if smile else 14.5) + own.uniform(-1, 1) + 0.6 * breadth
    rise = (6.2 + 0.8 * corner) if smile else (-0.6 + 0.9 * corner)  # of the corners above the middle
    gap = (8.5 + 1.5 * gap) if open_ else 0.0
    full = 8.6 if big else 3.4
    y = 151.5 - gap * 0.25
    left, right = (-half, y - rise), (half, y - rise)

    def line(middle: float, inner: float) -> Points:
        """From corner to corner, through `middle` below the seam at the midline."""
        return open_curve(
            [
                left,
                (-half * 0.55, y - rise * 0.25 + inner),
                (0, y + middle),
                (half * 0.55, y - rise * 0.25 + inner),
                right,
            ]
        )

    seam, bottom_seam = line(0, -0.3), line(gap, gap * 0.72)
    upper = open_curve(
        [
            right,
            (half * 0.55, y - rise * 0.45 - full * 0.62),
            (3.4, y - full),
            (0, y - full * 0.72),
            (-3.4, y - full),
            (-half * 0.55, y - rise * 0.45 - full * 0.62),
            left,
        ]
    )
    lower = line(gap + full * 1.25, gap * 0.72 + full * 0.9)
    with canvas.part("mouth"):
        canvas.glow(0, y + gap + full * 1.25 + 3.5, 11, 3.6, portrait.skin_shadow, 0.8)
        canvas.fill(np.concatenate([seam, upper[1:-1]]), shade(lips, 0.88))
        canvas.fill(np.concatenate([bottom_seam, lower[::-1]]), lips)
        canvas.glow(-1, y + gap + full * 0.7, half * 0.45, full * 0.4 + 0.8, mix(lips, (255, 255, 255), 0.6), 0.8)
        if open_:
            inside = np.concatenate([seam, bottom_seam[::-1]])
            canvas.fill(inside, (92, 20, 28))
            with canvas.clip(inside):
                canvas.fill(ellipse(0, y + gap + 1.0, half * 0.45, gap * 0.42), (204, 92, 98))
                teeth = np.concatenate([shifted(seam, -0, -3), (shifted(seam, 0, gap * 0.46))[::-1]])
                canvas.fill(teeth, (250, 248, 242))
        else:
            canvas.stroke(seam, 1.7, mix(shade(lips, 0.45), portrait.ink, 0.4), 0.8)
        if smile:
            for side in (-1, 1):
                fold = open_curve(
                    [
                        (side * (half + 1.5), y - rise - 4),
                        (side * (half + 3.4), y - rise),
                        (side * (half + 1.6), y - rise + 4),
                    ]
                )
                canvas.stroke(fold, 1.6, portrait.skin_shadow)


def cheeks(portrait: Portrait) -> None:
    """High cheekbones (lit above, hollow below) and rosy cheeks."""
    canvas = portrait.canvas
    with canvas.clip(portrait.outline):
        for side in (-1, 1):
            if portrait.has("High_Cheekbones"):
                with canvas.part("cheekbones", "cheeks"):
                    for x, y in ((38, 132), (33, 136), (28, 140), (24, 144)):
                        canvas.glow(side * x, y, 8, 7.5, shade(portrait.skin_shadow, 0.85), 0.75)
                    canvas.glow(side * 31, 124, 14, 7, mix(portrait.skin, (255, 250, 240), 0.55), 1.0)
            if portrait.has("Rosy_Cheeks"):
                with canvas.part("blush", "cheeks"):
                    canvas.glow(side * 27, 133, 17, 14, portrait.blush, 1.0)


def wrinkles(portrait: Portrait) -> None:
    """What years leave: furrows on the forehead, folds beside the nose and mouth, crow's feet."""
    if portrait.has("Young"):
        return
    canvas, line = portrait.canvas, shade(portrait.skin_shadow, 0.9)
    with canvas.part("wrinkles", "face"), canvas.clip(portrait.outline):
        for y, half in ((69, 18), (74.5, 22), (80, 15)):
            canvas.stroke(
                open_curve(
                    [(-half, y + 0.8), (-half / 2, y - 0.8), (0, y + 0.3), (half / 2, y - 0.8), (half, y + 0.8)]
                ),
                1.5,
                line,
            )
        for side in (-1, 1):
            fold = open_curve([(side * 12, 131), (side * 19, 138), (side * 24.5, 147), (side * 25, 157)])
            canvas.stroke(fold, 2.2, line)
            feet = np.array([[(side * 34, 111), (side * 41, y)] for y in (106.5, 111.5, 116.5)], dtype=np.float64)
            canvas.strokes(feet, 1.5, [line] * 3)


def beard(portrait: Portrait) -> None:
    """Stubble, goatee and mustache; sideburns go with the hair."""
    canvas, colour, chin = portrait.canvas, portrait.beard, portrait.chin_y
    generator = portrait.face.passing("beard")
    if portrait.has("5_o_Clock_Shadow"):
        area = closed_curve(
            mirrored([(0, 140), (16, 138), (26, 146), (36, 128), (48, 122), (48, 160), (24, chin + 4), (0, chin + 6)])
        )
        with canvas.part("stubble", "beard", "jaw"), canvas.clip(portrait.outline), canvas.clip(area):
            canvas.fill(area, mix(portrait.skin, (52, 50, 58), 0.36))
            count = 300
            root = np.stack([generator.uniform(-46, 46, count), generator.uniform(122, chin, count)], axis=1)
            canvas.strokes(np.stack([root, shifted(root, 0.3, 1.6)], axis=1), 0.8, [shade(colour, 0.9)] * count, 0)
    if portrait.has("Goatee"):
        patch = closed_curve(
            mirrored([(0, 159.5), (8, 160.5), (14, 165), (13, chin - 1), (7, chin + 2.0), (0, chin + 2.6)])
        )
        with canvas.part("goatee", "beard", "chin", "jaw"):
            canvas.fill(patch, colour)
            with canvas.clip(patch):
                count = 30
                root = np.stack([generator.uniform(-13, 13, count), generator.uniform(158, chin, count)], axis=1)
                tones = generator.choice(np.array([0.7, 1.3, 1.5]), count)
                paths = np.stack([root, shifted(root, 0.2, 4), shifted(root * [0.9, 1], 0, 8)], axis=1)
                canvas.strokes(paths, 1.1, shades(colour, tones))
    if portrait.has("Mustache"):
        left_half = [(0, 145.4), (-5, 146.6), (-12, 147.4), (-19, 148), (-13, 142), (-6, 139.5), (0, 140.5)]
        whiskers = closed_curve(mirrored(left_half))
        with canvas.part("mustache", "beard", "upper_lip", "jaw"):
            canvas.fill(whiskers, colour)
            with canvas.clip(whiskers):
                count = 26
                x = generator.uniform(-16, 16, count)
                root = np.stack([x, np.full(count, 139.0)], axis=1)
                tones = generator.choice(np.array([0.7, 1.3, 1.5]), count)
                paths = np.stack([root, shifted(root, x * 0.12, 4), shifted(root, x * 0.3, 9)], axis=1)
                canvas.strokes(paths, 1.0, shades(colour, tones))


def glasses(portrait: Portrait) -> None:
    """Frames that leave the brows free."""
    if not portrait.has("Eyeglasses"):
        return
    canvas = portrait.canvas
    generator = portrait.face.passing("glasses")
    kind, frame = generator.random(), _FRAMES[generator.integers(len(_FRAMES))]
    width = generator.uniform(2.2, 3.2)
    with canvas.part("glasses", "eye_area"):
        for side in (-1, 1):
            x = side * 20.5
            if kind < 0.5:
                rim = ellipse(x, 114, 14.5, 10)
            else:
                rim = closed_curve(
                    [
                        (x - 14, 105),
                        (x, 104),
                        (x + 14, 105),
                        (x + 13.2, 119),
                        (x + 6, 123),
                        (x - 6, 123),
                        (x - 13.2, 119),
                    ]
                )
            with canvas.clip(rim):
                canvas.stroke(
                    np.array([(x - 9.0, 124.0), (x + 2.0, 101.0)]), 3.0, mix(portrait.skin, (255, 255, 255), 0.8), 0
                )
            canvas.stroke(np.concatenate([rim, rim[:2]]), width, frame, 0)
            canvas.stroke(np.array([(side * 34.5, 110.0), (side * 46.0, 107.0)]), width, frame, 0)
        canvas.stroke(open_curve([(-6.5, 111), (0, 108.5), (6.5, 111)]), width, frame, 0)
