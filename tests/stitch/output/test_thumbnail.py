import cv2
import numpy as np

from fewer.stitch.frames.field import Field
from fewer.stitch.output.thumbnail import make_thumbnail


def test_only_the_field_is_shown_and_places_agree() -> None:
    rows, columns = np.indices((200, 300))
    mask = np.hypot(columns - 180, rows - 90) <= 100  # cut by the frame's upper edge
    picture = np.full((200, 300, 3), 255, np.uint8)
    picture[mask] = (40, 60, 120)
    small = make_thumbnail(picture, Field(mask, np.zeros_like(mask), (180.0, 90.0), 100.0, True))
    shown = cv2.imdecode(np.frombuffer(small.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (240, 240, 3)
    assert shown.max() < 160  # the white outside is gone
    assert (small.left, small.top, small.side) == (80, -10, 200)
    centre = ((180 - small.left) / small.side * 240, (90 - small.top) / small.side * 240)
    assert np.allclose(shown[int(centre[1]), int(centre[0])], (40, 60, 120), atol=6)
