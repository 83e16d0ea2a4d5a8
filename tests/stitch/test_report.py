import json

from fewer.stitch.panorama import Panorama


def test_the_report_is_json_and_says_what_was_done(small_map: Panorama) -> None:
    report = json.loads(json.dumps(small_map.report, allow_nan=False))
    assert report["frames"] == 10
    assert report["frames_used"] == sum(record["status"] == "used" for record in report["records"])
    assert "medical device" in report["notice"]
    assert report["density_modes"] == {"sampling": "consensus (gamma 0.5)", "fit": "balanced (gamma -0.5)"}


def test_segment_figures_agree_with_the_map(small_map: Panorama) -> None:
    piece, figures = small_map.segments[0], small_map.report["segments"][0]
    assert figures["coverage"] == round(float((piece.provenance.frame >= 0).mean()), 6)
    assert figures["pairs"] == len(piece.pairs)
    assert figures["models"]["homography"] >= 0.9 * figures["pairs"]
    assert 0 < figures["rmse"]["median"] <= figures["rmse"]["p95"]
    assert figures["matches"]["sift"] > figures["pairs"] * 10


def test_no_path_is_told(small_map: Panorama) -> None:
    assert "mask" not in small_map.report["options"]["select"]
    assert "weights" not in small_map.report["options"]["match"]
