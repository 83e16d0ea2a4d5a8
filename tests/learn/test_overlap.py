from fewer.core.progress import SilentProgress
from fewer.learn.data import ImageSplits
from fewer.learn.overlap import copies_between, warn_of_overlap
from tests.learn.distillation.conftest import make_pictures


class Heard(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_overlap_is_counted_and_said() -> None:
    train, heard = make_pictures(count=30), Heard()
    splits = ImageSplits(train, validation=train.select([0, 3]), test=make_pictures(seed=5))
    assert warn_of_overlap(splits, heard) == 2
    assert len(heard.said) == 1 and "2 validation pictures are also in the training" in heard.said[0]


def test_pictures_in_several_sets_are_counted_in_each() -> None:
    one, other = make_pictures(count=9), make_pictures(count=9, seed=3)
    assert copies_between([one, other]) == [0, 0]
    again = one.select([0, 0, 4])  # twice in one set is no copy of another
    assert copies_between([one.select([0, 1, 1]), other, again]) == [1, 0, 2]
