import numpy as np

from fewer.stitch.mosaic.segment import Segment, TrackedFrame
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.strip import strip_shape


def test_first_poses_join_each_frames_pose_with_its_place_in_the_chain() -> None:
    form = Geometry("cylinder", Lens("equidistant", 190.0), (239.5, 239.5), 232.0, 2.2)
    segment = Segment(form, strip_shape(form, 400))
    for index in range(3):
        pose = np.full(4, index / 10)
        segment.frames.append(TrackedFrame(index, 0.0, (480, 480), pose, np.zeros((48, 3)), None))
        segment.chain.append(np.array([0.5, -1.0]) * index)
    poses = segment.first_poses()
    assert poses.shape == (3, 6)
    assert poses[2].tolist() == [0.2, 0.2, 0.2, 0.2, 1.0, -2.0]
