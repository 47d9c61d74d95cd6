"""One face from the first to the last brush stroke."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from distrib.faces import features, hair, head
from distrib.faces.attributes import Face
from distrib.faces.canvas import HEIGHT, SCALE, WIDTH, Box, Canvas, Pose
from distrib.faces.portrait import Portrait


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn face.

    Attributes:
        image: RGB, 178 wide and 218 high.
        boxes: for each part (left, top, right, bottom) in image pixels, right and bottom exclusive.
    """

    image: Image.Image
    boxes: dict[str, Box]


def draw_face(face: Face) -> Drawing:
    """Draw a face. The same face gives the same pixels.

    A part's box holds every pixel that the part touches. In every image there are boxes of

    - what everybody has: `picture`, `body`, `head`, `skin`, `neck`, `face`, `left_ear`, `right_ear`, `brows`,
      `left_brow`, `right_brow`, `eyes`, `left_eye`, `right_eye`, `nose`, `mouth`;
    - regions where an attribute would show, whether or not something was drawn there: `scalp`, `crown`, `forehead`,
      `temples`, `eye_area`, `under_eyes`, `cheeks`, `upper_lip`, `jaw`, `chin`, `under_chin`, `left_earlobe`,
      `right_earlobe`, `neckline`, `collar`;

    and, only where they are drawn, of `hair`, `bangs`, `hat`, `glasses`, `bags`, `blush`, `cheekbones`, `wrinkles`,
    `beard`, `stubble`, `goatee`, `mustache`, `sideburns`, `double_chin`, `earrings`, `necklace`, `necktie`, `shirt`.
    """
    portrait = Portrait(face, Canvas(head.background(face), _pose(face)))
    head.regions(portrait)
    head.shoulders(portrait)
    with portrait.canvas.part("head"):
        hair.hair_behind(portrait)
        head.neck(portrait)
    head.neckline(portrait)
    with portrait.canvas.part("head"):
        head.ears(portrait)
        head.skull(portrait)
        features.cheeks(portrait)
        features.wrinkles(portrait)
        features.beard(portrait)
        features.under_eyes(portrait)
        features.mouth(portrait)
        features.nose(portrait)
        features.eyes(portrait)
        features.brows(portrait)
        hair.hair(portrait)
        head.earrings(portrait)
        hair.hat(portrait)
        features.glasses(portrait)
    image, spread = _photograph(face, portrait.canvas.image)
    boxes = {"picture": (0, 0, WIDTH, HEIGHT)} | portrait.canvas.boxes()
    return Drawing(image, {name: _grown(box, spread) for name, box in boxes.items()})


def _pose(face: Face) -> Pose:
    generator = face.passing("pose")
    roll, zoom, right, down, yaw, pitch = generator.uniform(-1, 1, 6).tolist()
    return Pose(
        roll=0.13 * roll, zoom=1 + 0.045 * zoom, right=2.5 * right, down=2.5 * down, yaw=8 * yaw, pitch=2.5 * pitch
    )


def _photograph(face: Face, canvas: Image.Image) -> tuple[Image.Image, int]:
    """The finished image (light, focus, grain) and by how many pixels the lens spreads what was drawn."""
    generator = face.passing("camera")
    direction, contrast, exposure, warmth, grain, focus = generator.random(6).tolist()
    picture = canvas.reduce(SCALE)
    spread = 0
    if face.attributes["Blurry"]:
        radius = 2.0 + 1.0 * focus
        picture, spread = picture.filter(ImageFilter.GaussianBlur(radius)), round(2 * radius)

    # The light falls from one side: a gradient over the image, in the colour of the lamp.
    angle = np.pi * (0.1 + 0.8 * direction)
    across, down = np.linspace(-1, 1, WIDTH, dtype=np.float32), np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None]
    slope = (0.05 + 0.12 * contrast) * (np.float32(np.cos(angle)) * across - np.float32(np.sin(angle)) * down)
    lamp = np.array([1 + 0.05 * (warmth - 0.5), 1, 1 - 0.10 * (warmth - 0.5)], dtype=np.float32)
    light = (0.93 + 0.13 * exposure + slope)[..., None] * lamp
    noise = generator.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32) * np.float32(1.0 + 2.5 * grain)
    pixels = np.asarray(picture, dtype=np.float32) * light + noise
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8)), spread


def _grown(box: Box, margin: int) -> Box:
    left, top, right, bottom = box
    return (max(left - margin, 0), max(top - margin, 0), min(right + margin, WIDTH), min(bottom + margin, HEIGHT))
