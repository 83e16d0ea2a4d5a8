import pytest

from fewer.serve.engine import _shows, local_engine


@pytest.mark.parametrize(("partial", "total"), [(1, 20), (2, 20), (3, 20), (3, 4)])
def test_previews_are_evenly_spaced_and_as_many_as_asked(partial: int, total: int) -> None:
    steps = [step for step in range(1, total + 1) if _shows(step, total, partial)]
    assert len(steps) == partial and steps[-1] < total


def test_a_model_that_is_not_there_is_named() -> None:
    from fewer.core.errors import FewerError

    with pytest.raises(FewerError, match="nowhere"):
        list(local_engine({"device": "cpu"}).run({"generate": {"prompt": ["a"], "model": "nowhere"}}))
