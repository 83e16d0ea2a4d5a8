"""Frames that go to a device together: those that come one after the other and are of one size."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from fewer.stitch.mosaic.workers import Workers

TOGETHER = 16
AT_ONCE = 512 * 2**20  # bytes of pictures that wait for a device

Item = TypeVar("Item")
Result = TypeVar("Result")


class Group(Generic[Item, Result]):
    """Gathers items and does the work on all of them when there are enough, or when somebody asks."""

    def __init__(
        self, work: Callable[[list[Item]], Sequence[Result]], workers: Workers, most: int = TOGETHER
    ) -> None:
        self._work, self._workers, self._most = work, workers, most
        self._members: list[Item] = []
        self._answers: list[Future[Result]] = []
        self._kind: object = None

    def add(self, item: Item, kind: object = None) -> Future[Result]:
        """The answer to come. Items of another `kind` begin a new group."""
        if kind != self._kind:
            self.begin()
        self._kind = kind
        self._members.append(item)
        self._answers.append(Future())
        answer = self._answers[-1]
        if len(self._members) == self._most:
            self.begin()
        return answer

    def hurry(self, answer: Future[Result]) -> None:
        """Somebody needs this answer: its group must not wait for company."""
        if any(each is answer for each in self._answers):
            self.begin()

    def begin(self) -> None:
        """Start with those that are there."""
        members, self._members = self._members, []
        answers, self._answers = self._answers, []
        if members:
            self._workers.submit_in_turn(self._answer, members, answers)

    def _answer(self, members: list[Item], answers: list[Future[Result]]) -> None:
        try:
            for answer, result in zip(answers, self._work(members), strict=True):
                answer.set_result(result)
        except Exception as error:
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
