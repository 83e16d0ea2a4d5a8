from dataclasses import replace

import numpy as np

from fewer.stitch.output.trust import by_frame, frame_errors, frame_outline
from fewer.stitch.panorama import Panorama


def test_every_frame_of_a_good_map_fits_its_neighbours(small_map: Panorama) -> None:
    errors = frame_errors(small_map.segments[0])
    assert errors.shape == (10,)
    assert (errors > 0).all()
    assert np.median(errors) < 2


def test_the_worse_neighbour_counts_and_a_failed_pair_says_nothing(small_map: Panorama) -> None:
    segment = small_map.segments[0]
    models = {5: "failed"}
    fits = [
        replace(pair.fit, held_out_rmse=float(pair.new), model=models.get(pair.new, "homography"))
        for pair in segment.pairs
    ]
    pairs = [replace(pair, fit=fit) for pair, fit in zip(segment.pairs, fits, strict=True)]
    errors = frame_errors(replace(segment, pairs=pairs))
    assert np.allclose(errors, [1, 2, 3, 4, 4, 6, 7, 8, 9, 9])
    assert np.isnan(frame_errors(replace(segment, pairs=[]))).all()


def test_what_a_frame_painted_lies_within_its_outline(small_map: Panorama) -> None:
    segment = small_map.segments[0]
    width = segment.image.shape[1]
    for place in (0, 4, 9):
        outline = frame_outline(segment, place)
        near, far = np.split(outline, 2)
        assert abs(abs(near[-1, 0] - near[0, 0]) - width) < 1
        rows, columns = np.nonzero(segment.provenance.frame == segment.frames[place])
        order = np.argsort(np.mod(near[:-1, 0], width))
        edge = np.interp(columns, np.mod(near[order, 0], width), near[order, 1], period=width)
        assert (rows > edge - 3).mean() > 0.97
        assert rows.max() < far[:, 1].max()


def test_a_frames_number_leads_into_the_table(small_map: Panorama) -> None:
    segment = replace(small_map.segments[0], frames=[3, 5, 8])
    table = by_frame(segment, np.array([0.1, 0.2, 0.3]))
    assert table[5] == 0.2
    assert np.isnan(table[[0, 4, 7]]).all()
