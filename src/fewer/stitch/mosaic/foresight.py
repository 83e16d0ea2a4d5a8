"""Pairs that the tracker will ask for, matched before it asks.

Nearly every frame is used, so the pairs of the next frames are known: each frame with those `offsets` places
before it. Workers match them ahead; where a frame turns out unusable the tracker asks for other pairs, and
matches those itself. It gets the same answers either way. Learned matchers that like groups (on a GPU) look
at several frames together; a group is made of the frames of the video in order, never of what is ready.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from fewer.stitch.match.features import PairMatcher
from fewer.stitch.match.pool import Matches
from fewer.stitch.mosaic.find import Found, Side, Spot, found_among, matches_of
from fewer.stitch.mosaic.segment import TrackedFrame
from fewer.stitch.mosaic.survey import FrameRecord, Survey, View
from fewer.stitch.mosaic.track import Tracker
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.strip import StripShape

Surveyed = tuple[FrameRecord, TrackedFrame | None]
_PAIRS_AT_ONCE = 4


class Foresight:
    """Iterate to get what the survey gives, later; the tracker's `foreseen` fills meanwhile."""

    def __init__(
        self, survey: Survey, tracker: Tracker, options: StitchOptions, learned: Mapping[str, PairMatcher],
        workers: Workers,
    ) -> None:  # fmt: skip
        self._survey, self._tracker, self._options, self._learned = survey, tracker, options, learned
        self._workers = workers
        self._group = max([matcher.together for matcher in learned.values()], default=1)

    def __iter__(self) -> Iterator[Surveyed]:
        if self._workers.count == 1 and self._group == 1:
            yield from self._survey
            return
        recent: deque[TrackedFrame] = deque(maxlen=max(self._options.match.offsets))
        waiting: deque[Surveyed] = deque()
        most = max(self._workers.ahead(1), 0 if self._group == 1 else 2 * self._group)
        for together in self._groups(self._survey):
            self._expect([frame for _, frame in together if frame is not None], recent)
            waiting.extend(together)
            while len(waiting) > most:
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
        asked = []
        for new, old in pairs:
            if new.view is None or old.view is None:
                continue
            sides = (Side(new.index, new.pose, new.view), Side(old.index, old.pose, old.view))
            asked.append(_Asked(sides, self._survey.views[new.size], Future()))
            self._tracker.foreseen[new.index, old.index] = asked[-1].found
        if self._group > 1:
            self._workers.submit_in_turn(self._propose, asked)
        else:
            for each in asked:
                self._workers.submit(self._find, [each], [None])

    def _propose(self, asked: Sequence["_Asked"]) -> None:
        """What the learned matchers say of a group's pairs; then workers go on with a few pairs each."""
        with _answering(asked):
            views = [(new.view, old.view) for new, old in (each.sides for each in asked)]
            said = {name: matcher.propose(views) for name, matcher in self._learned.items()}
            proposals = [{name: each[place] for name, each in said.items()} for place in range(len(views))]
            for start in range(0, len(asked), _PAIRS_AT_ONCE):
                few = slice(start, start + _PAIRS_AT_ONCE)
                self._workers.submit(self._find, asked[few], proposals[few])

    def _find(self, asked: Sequence["_Asked"], proposals: Sequence[dict[str, object] | None]) -> None:
        with _answering(asked):
            work = []
            for each, proposed in zip(asked, proposals, strict=True):
                new, old = each.sides
                groups = matches_of(
                    new.view, old.view, each.view.shape, self._options, self._learned, proposed
                )
                work.append((groups, new.spot, old.spot, each.view.geometry, each.view.shape))
            found = self._workers.apart(_find_among, work, self._options)
            for each, answer in zip(asked, found, strict=True):
                each.found.set_result(answer)

    def _next(self, waiting: deque[Surveyed]) -> Surveyed:
        record, frame = waiting.popleft()
        # what was foreseen of earlier frames and never asked for
        for pair in [pair for pair in self._tracker.foreseen if pair[0] < record.index]:
            del self._tracker.foreseen[pair]
        return record, frame


@dataclass(frozen=True, slots=True)
class _Asked:
    """A pair that will be asked for, and the answer to come."""

    sides: tuple[Side, Side]
    view: View
    found: "Future[Found | None]"


@contextmanager
def _answering(asked: Sequence[_Asked]) -> Iterator[None]:
    """Who waits for an answer gets the error in its place."""
    try:
        yield
    except Exception as error:
        for each in asked:
            if not each.found.done():
                each.found.set_exception(error)


def _find_among(
    work: Sequence[tuple[Sequence[Matches], Spot, Spot, Geometry, StripShape]], options: StitchOptions
) -> list[Found | None]:
    return [found_among(*each, options) for each in work]
