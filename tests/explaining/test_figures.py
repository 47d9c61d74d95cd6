import numpy as np
import pytest

from distrib.explaining.figures import sheet


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_a_title_fits_above_a_sheet(columns: int) -> None:
    card = (np.zeros((8, 8, 3), dtype=np.uint8), None, "Not 5 o Clock Shadow")
    title = "Grad-CAM of the decision, at layer4: red speaks for the attribute, blue against it, in every image"
    figure = sheet(title, [card] * columns, columns, (2.0, 2.4))
    figure.draw_without_rendering()
    (above,) = [text for text in figure.texts if "Grad-CAM" in text.get_text()]
    left, right = above.get_window_extent().intervalx
    assert left >= 0
    assert right <= figure.bbox.width
    assert above.get_text().split() == title.split()
