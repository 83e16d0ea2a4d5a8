"""Pairs that the tracker will ask for, matched before it asks.

Nearly every frame is used, so the pairs of the next frames are known: each frame with those `offsets` places
before it. Workers match them ahead; where a frame turns out unusable the tracker asks for other pairs, and
matches those itself. It gets the same answers either way. Learned matchers that like groups (on a GPU) look
at several frames together; a group is made of the frames of the video in order, never of what is ready.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future

from fewer.stitch.match.features import PairMatcher, StripView
from fewer.stitch.mosaic.find import Found, Side, find_pair
from fewer.stitch.mosaic.segment import TrackedFrame
from fewer.stitch.mosaic.survey import FrameRecord, Survey, View
from fewer.stitch.mosaic.track import Tracker
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import StitchOptions

Surveyed = tuple[FrameRecord, TrackedFrame | None]
Proposals = list[dict[str, object]]


class Foresight:
    """Iterate to get what the survey gives, later; the tracker's `foreseen` fills meanwhile."""

    def __init__(
        self, survey: Survey, tracker: Tracker, options: StitchOptions, learned: Mapping[str, PairMatcher],
        workers: Workers,
    ) -> None:  # fmt: skip
        self._survey, self._tracker, self._options, self._learned = survey, tracker, options, learned
        self._workers = workers
        self._group = max([matcher.together for matcher in learned.values()], default=1)
        self._before: Future[Proposals] | None = None

    def __iter__(self) -> Iterator[Surveyed]:
        if self._workers.count == 1 and self._group == 1:
            yield from self._survey
            return
        recent: deque[TrackedFrame] = deque(maxlen=max(self._options.match.offsets))
        waiting: deque[Surveyed] = deque()
        for together in self._groups(self._survey):
            self._expect([frame for _, frame in together if frame is not None], recent)
            waiting.extend(together)
            while len(waiting) > self._workers.ahead(1):
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _groups(self, surveyed: Iterable[Surveyed]) -> Iterator[list[Surveyed]]:
        """Runs with as many frames to match as the matchers want at a time."""
        held: list[Surveyed] = []
        for each in surveyed:
            held.append(each)
            if sum(frame is not None and frame.view is not None for _, frame in held) == self._group:
                yield held
                held = []
        if held:
            yield held

    def _expect(self, frames: list[TrackedFrame], recent: deque[TrackedFrame]) -> None:
        """Has the pairs of some new frames matched."""
        pairs: list[tuple[TrackedFrame, TrackedFrame]] = []
        for frame in frames:
            if frame.view is None:
                continue
            if recent and recent[-1].size != frame.size:
                recent.clear()
            earlier = [recent[-offset] for offset in self._options.match.offsets if offset <= len(recent)]
            pairs += [(frame, old) for old in earlier]
            recent.append(frame)
        views = [(new.view, old.view) for new, old in pairs if new.view and old.view]
        said = None
        if self._group > 1 and views:
            self._before = said = self._workers.submit(self._propose, self._before, views)
        for place, (new, old) in enumerate(pairs):
            if new.view is None or old.view is None:
                continue
            view = self._survey.views[new.size]
            sides = (Side(new.index, new.pose, new.view), Side(old.index, old.pose, old.view))
            found = self._workers.submit(self._find, sides, view, said, place)
            self._tracker.foreseen[new.index, old.index] = found

    def _propose(
        self, before: Future[Proposals] | None, views: list[tuple[StripView, StripView]]
    ) -> Proposals:
        """What the learned matchers say of a group's pairs; the group before it comes first."""
        if before is not None:
            before.result()
        said = {name: matcher.propose(views) for name, matcher in self._learned.items()}
        return [{name: each[place] for name, each in said.items()} for place in range(len(views))]

    def _find(
        self, sides: tuple[Side, Side], view: View, said: Future[Proposals] | None, place: int
    ) -> Found | None:
        proposed = None if said is None else said.result()[place]
        return find_pair(*sides, view.geometry, view.shape, self._options, self._learned, proposed)

    def _next(self, waiting: deque[Surveyed]) -> Surveyed:
        record, frame = waiting.popleft()
        # what was foreseen of earlier frames and never asked for
        for pair in [pair for pair in self._tracker.foreseen if pair[0] < record.index]:
            del self._tracker.foreseen[pair]
        return record, frame
