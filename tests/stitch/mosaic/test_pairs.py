import numpy as np

from fewer.stitch.mosaic.pairs import resolution_share
from fewer.stitch.panorama import Panorama
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.strip import strip_shape


def test_matches_of_a_pair_come_back_from_the_store(small_map: Panorama) -> None:
    segment = small_map.segments[0]
    for pair in segment.pairs:
        assert pair.p.shape == pair.q.shape == (len(pair.fit.inlier), 2)
        assert (pair.p >= 0).all()
        assert (pair.p[:, 0] < segment.shape.width).all()
        assert pair.fit.weight.dtype == np.float32


def test_near_wall_is_seen_finer_than_far_wall() -> None:
    form = Geometry("cylinder", Lens("equidistant", 190.0), (239.5, 239.5), 232.0, 2.2)
    shape = strip_shape(form, 800)
    rows = np.array([5.0, shape.height / 2, shape.height - 1])
    share = resolution_share(form, shape, np.stack([np.zeros(3), rows], axis=1))
    assert (np.diff(share) < 0).all()
    assert share.max() == 1
    assert resolution_share(form, shape, np.zeros((0, 2))).shape == (0,)
