import time
from multiprocessing.reduction import ForkingPickler

import pytest

from fewer.parallel.rank_process import ORPHANED, leave_with, packed


def test_an_answer_that_cannot_be_sent_fails_where_it_is_made() -> None:
    assert ForkingPickler.loads(packed({"a": [1.5]})) == {"a": [1.5]}
    with pytest.raises(Exception, match=r"pickle|local object"):
        packed(lambda: None)


def test_a_rank_does_not_outlive_its_parent() -> None:
    parents, left = iter([7, 7, 1, 1]), []
    began = time.monotonic()
    leave_with(7, left.append, lambda: next(parents))
    assert left == [ORPHANED] and time.monotonic() - began < 5
    leave_with(7, left.append, lambda: 1)  # a parent that was gone before the rank looked
    assert left == [ORPHANED] * 2
