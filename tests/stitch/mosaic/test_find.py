import numpy as np

from fewer.stitch.match.features import Features, StripView
from fewer.stitch.match.pool import Matches
from fewer.stitch.mosaic.find import Side, find_pair, guide_of
from fewer.stitch.options import StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.strip import strip_shape

FORM = Geometry("cylinder", Lens("equidistant", 190.0), (239.5, 239.5), 232.0, 2.2)
SHAPE = strip_shape(FORM, 400)
RANDOM = np.random.default_rng(0)
POINTS = RANDOM.uniform([0, 40], [400, SHAPE.height - 5], (400, 2))
NAMES = RANDOM.normal(size=(400, 128)).astype(np.float32)
NAMES /= np.linalg.norm(NAMES, axis=1, keepdims=True)


def side(index: int, move: tuple[float, float], names: np.ndarray = NAMES) -> Side:
    xy = POINTS + move
    xy[:, 0] %= 400
    size = (SHAPE.height, 400)
    view = StripView(np.zeros(size, np.uint8), np.ones(size, bool), {"sift": Features(xy, names)})
    return Side(index, np.zeros(4), view)


def test_a_shift_is_found_and_the_places_are_those_of_the_pictures() -> None:
    new, old = side(1, (0.0, 0.0)), side(0, (12.0, -20.0))
    found = find_pair(new, old, FORM, SHAPE, StitchOptions(), {})
    assert found is not None
    assert np.allclose(found.shift, [12.0, -20.0], atol=0.5)
    assert found.counts["sift"] >= len(found.table) > 100
    back = SHAPE.to_pixels(FORM.to_wall(found.table[:, :2].astype(float), np.zeros(4)))
    off = np.abs(back[:, None] - POINTS[None]).sum(axis=2).min(axis=1)
    assert np.quantile(off, 0.9) < 0.01  # some neighbours are merged into one match between them
    again = find_pair(new, old, FORM, SHAPE, StitchOptions(), {})
    assert again is not None
    assert (again.table == found.table).all()


def test_strangers_are_refused() -> None:
    other = RANDOM.normal(size=NAMES.shape).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    assert find_pair(side(1, (0, 0)), side(0, (5, 5), other), FORM, SHAPE, StitchOptions(), {}) is None


def test_what_a_learned_matcher_said_before_is_handed_to_it() -> None:
    heard = []

    class Matcher:
        together = 1

        def look(self, views: object) -> None: ...

        def propose(self, pairs: list) -> list[None]:
            return [None for _ in pairs]

        def __call__(self, new: StripView, old: StripView, proposed: object = None) -> Matches:
            heard.append(proposed)
            return Matches.empty()

    find_pair(
        side(1, (0, 0)), side(0, (0, -9)), FORM, SHAPE, StitchOptions(), {"loftr": Matcher()}, {"loftr": 7}
    )
    assert heard == [7]


def test_a_guide_needs_a_dozen_matches_that_agree() -> None:
    many = Matches.of(POINTS[:40], np.add(POINTS[:40], (3.0, -8.0)), np.ones(40), "sift")
    guide = guide_of(many, SHAPE)
    assert guide is not None
    assert np.abs(guide.shift - [3.0, -8.0]).max() <= 9  # bins of 6 pixels, smoothed over 3
    assert guide_of(many.keep(np.arange(11)), SHAPE) is None
