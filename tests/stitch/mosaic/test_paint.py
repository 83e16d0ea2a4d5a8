import numpy as np

from fewer.core.progress import SilentProgress
from fewer.stitch.frames.source import ArrayFrames
from fewer.stitch.mosaic.canvas import Canvas
from fewer.stitch.mosaic.layout import Layout
from fewer.stitch.mosaic.paint import lay_down
from fewer.stitch.mosaic.survey import Survey
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import StitchOptions
from fewer.stitch.panorama import Panorama


class Counted(ArrayFrames):
    """A list that counts the frames read from it."""

    read = 0

    def __iter__(self):
        for frame in super().__iter__():
            self.read += 1
            yield frame


def test_frames_are_laid_down_in_order_and_reading_ends_with_the_last(
    small_frames: list, small_options: StitchOptions, small_map: Panorama
) -> None:
    segment = small_map.segments[0]
    source = Counted(small_frames)
    survey = Survey(source, small_options)
    survey.view_of(small_frames[0])
    source.read = 0
    images = []
    for count in (1, 3):
        canvas = Canvas(Layout(segment.geometry, segment.poses[:4], 400, small_options.blend))
        with Workers(count) as workers:
            where = {index: (0, index) for index in range(4)}
            small = lay_down(survey, [canvas], [None], where, SilentProgress(), workers)
        images.append(canvas.finish()[0])
        assert list(small) == [0, 1, 2, 3]
        assert set(np.unique(canvas.frame)) <= {-1, 0, 1, 2, 3}
    assert (images[0] == images[1]).all()
    assert images[0].max() > 50
    assert source.read == 8
