"""The second pass over the video: workers prepare strips, the caller lays them down in order."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from fewer.core.progress import Progress
from fewer.stitch.frames.quality import highlight_mask
from fewer.stitch.frames.source import Frame
from fewer.stitch.mosaic.canvas import Canvas, Laid
from fewer.stitch.mosaic.exposure import Exposure
from fewer.stitch.mosaic.group import AT_ONCE, TOGETHER, Group
from fewer.stitch.mosaic.survey import Survey
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.output.thumbnail import MOST, Thumbnail, make_thumbnail

if TYPE_CHECKING:
    import torch

    from fewer.stitch.device.canvas import DeviceCanvas


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

    progress.start("painting the map", len(where))
    try:
        ahead = workers.ahead(max(canvas.bytes_laid for canvas in canvases))
        for number, laid in workers.in_order(prepare, _wanted(survey, where), ahead):
            canvases[number].add(laid)
            progress.advance()
    finally:
        progress.stop()
    return dict(sorted(thumbnails.items()))


def _wanted(survey: Survey, where: Mapping[int, tuple[int, int]]) -> Iterator[Frame]:
    left = len(where)
    for frame in survey.picked():
        if frame.index in where:
            yield frame
            left -= 1
        if not left:  # what comes after the last frame of the map need not be read again
            return


def lay_down_together(
    survey: Survey,
    canvases: "Sequence[DeviceCanvas]",
    where: Mapping[int, tuple[int, int]],
    progress: Progress,
    workers: Workers,
    device: "torch.device",
) -> dict[int, Thumbnail]:
    """`lay_down` on a device, many frames at a time."""
    shown = set(list(where)[:: -(-len(where) // MOST)])
    thumbnails: dict[int, Future[Thumbnail]] = {}

    def lay(frames: list[Frame]) -> list[None]:
        from fewer.stitch.device.canvas import Frames
        from fewer.stitch.device.pictures import clear_masks, upload

        pictures = upload([frame.picture for frame in frames], device)
        field = survey.view_of(frames[0].picture).field
        clear = clear_masks(pictures, field.usable)
        number = where[frames[0].index][0]
        places = [where[frame.index][1] for frame in frames]
        canvases[number].lay(Frames([frame.index for frame in frames], places, pictures, clear))
        return [None] * len(frames)

    group = Group(lay, workers, min(canvas.together for canvas in canvases))
    waiting: deque[Future[None]] = deque()
    progress.start("painting the map", len(where))
    try:
        for frame in _wanted(survey, where):
            if frame.index in shown:
                field = survey.view_of(frame.picture).field
                thumbnails[frame.index] = workers.submit(make_thumbnail, frame.picture, field)
            waiting.append(group.add(frame, (where[frame.index][0], frame.picture.shape)))
            while len(waiting) > min(2 * TOGETHER, max(2, AT_ONCE // frame.picture.nbytes)):
                group.hurry(waiting[0])
                waiting.popleft().result()
                progress.advance()
        group.begin()
        for each in waiting:
            each.result()
            progress.advance()
    finally:
        progress.stop()
    return {index: thumbnails[index].result() for index in sorted(thumbnails)}
