"""The second pass over the video: workers prepare strips, the caller lays them down in order."""

from collections.abc import Iterator, Mapping, Sequence

from fewer.core.progress import Progress
from fewer.stitch.frames.quality import highlight_mask
from fewer.stitch.frames.source import Frame
from fewer.stitch.mosaic.canvas import Canvas, Laid
from fewer.stitch.mosaic.exposure import Exposure
from fewer.stitch.mosaic.survey import Survey
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.output.thumbnail import MOST, Thumbnail, make_thumbnail


def lay_down(
    survey: Survey,
    canvases: Sequence[Canvas],
    lights: Sequence[Exposure | None],
    where: Mapping[int, tuple[int, int]],
    progress: Progress,
    workers: Workers,
) -> dict[int, Thumbnail]:
    """`where` leads from a frame's number to its canvas and its place there. Returns small pictures of at
    most two hundred frames for the page.
    """
    shown = set(list(where)[:: -(-len(where) // MOST)])
    thumbnails: dict[int, Thumbnail] = {}

    def prepare(frame: Frame) -> tuple[int, Laid]:
        number, place = where[frame.index]
        field = survey.view_of(frame.picture).field
        clear = field.usable & ~highlight_mask(frame.picture)
        if frame.index in shown:
            thumbnails[frame.index] = make_thumbnail(frame.picture, field)
        return number, canvases[number].prepare(place, frame.index, frame.picture, clear, lights[number])

    def wanted() -> Iterator[Frame]:
        left = len(where)
        for frame in survey.picked():
            if frame.index in where:
                yield frame
                left -= 1
            if not left:  # what comes after the last frame of the map need not be read again
                return

    progress.start("painting the map", len(where))
    try:
        ahead = workers.ahead(max(canvas.bytes_laid for canvas in canvases))
        for number, laid in workers.in_order(prepare, wanted(), ahead):
            canvases[number].add(laid)
            progress.advance()
    finally:
        progress.stop()
    return dict(sorted(thumbnails.items()))
