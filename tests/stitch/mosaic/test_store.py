from pathlib import Path

import numpy as np
import pytest

from fewer.stitch.mosaic.store import Store, put_out, zeros


@pytest.mark.parametrize("on_disk", [False, True])
def test_zeros_keep_what_is_written_after_they_were_put_out(on_disk: bool) -> None:
    array = zeros((123, 5, 3), np.float32, on_disk)
    assert not array.any()
    array[7] = 2.5
    put_out(array, np.zeros(3))
    assert (array[7] == 2.5).all()
    assert array.sum() == pytest.approx(2.5 * 15)


def test_a_store_gives_back_copies_of_what_it_was_given() -> None:
    store, random = Store(), np.random.default_rng(0)
    given = [
        (
            random.normal(0, 1, (count, 5)).astype(np.float32),
            random.integers(0, 255, (count, 32)).astype(np.uint8),
        )
        for count in (0, 1, 123)
    ]
    kept = [store.keep(*arrays) for arrays in given]
    for arrays, place in reversed(list(zip(given, kept, strict=True))):
        for mine, theirs in zip(arrays, store.load(place), strict=True):
            assert mine.dtype == theirs.dtype
            assert (mine == theirs).all()
    store.load(kept[2])[0][:] = 0
    assert (store.load(kept[2])[0] == given[2][0]).all()


def test_a_store_opened_again_goes_on_where_it_was(tmp_path: Path) -> None:
    first = Store(tmp_path / "points")
    kept = first.keep(np.arange(6))
    size = first.size
    first.keep(np.arange(1000))
    again = Store(tmp_path / "points", size)
    later = again.keep(np.arange(3.0))
    assert (again.load(kept)[0] == np.arange(6)).all()
    assert later.offset == size
    assert (again.load(later)[0] == np.arange(3.0)).all()
