import cv2
import numpy as np
import pytest

from fewer.stitch.match.features import Features, equalise, look, match_features
from fewer.stitch.match.pool import displacement
from fewer.stitch.options import MatchOptions


def strip(seed: int = 0) -> np.ndarray:
    """Periodic texture."""
    noise = np.random.default_rng(seed).normal(0, 1, (160, 400, 3))
    smooth = cv2.GaussianBlur(np.concatenate([noise] * 3, axis=1), (0, 0), 2.5)[:, 400:800]
    return np.clip(128 + 300 * smooth, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["sift", "orb"])
def test_a_rolled_strip_is_matched_all_round(name: str) -> None:
    first = strip()
    second = np.roll(first, 37, axis=1)
    options, mask = MatchOptions(matchers=(name,)), np.ones(first.shape[:2], bool)
    new, old = look(first, mask, options), look(second, mask, options)
    matches = match_features(name, new.features[name], old.features[name], 0.8)
    off = displacement(matches.p + np.array([37.0, 0.0]), matches.q, 400)
    assert len(matches) > 30
    assert (np.hypot(*off.T) < 1.5).mean() > 0.9
    assert matches.p[:, 0].min() < 40
    assert matches.p[:, 0].max() > 360


def test_points_stay_eight_pixels_inside_the_mask() -> None:
    mask = np.zeros((160, 400), bool)
    mask[40:120, 100:300] = True
    view = look(strip(), mask, MatchOptions())
    for points in view.features.values():
        assert len(points.xy) > 5
        assert points.xy[:, 0].min() >= 107
        assert points.xy[:, 0].max() <= 292
        assert points.xy[:, 1].min() >= 47


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize(("name", "width", "kind"), [("sift", 128, np.float32), ("orb", 32, np.uint8)])
def test_few_points_give_few_matches(name: str, width: int, kind: type, count: int) -> None:
    few = Features(np.zeros((count, 2)), np.ones((count, width), kind))
    assert len(match_features(name, few, few, 0.8)) <= count


def test_mutual_and_ratio_against_brute_force() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=(40, 128)).astype(np.float32)
    b = np.concatenate([a[:25] + 0.3 * random.normal(size=(25, 128)), random.normal(size=(30, 128))])
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b.astype(np.float32)))
    new, old = (Features(np.stack([np.arange(len(x)), np.zeros(len(x))], 1).astype(float), x) for x in (a, b))
    found = match_features("sift", new, old, 0.8)
    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    wanted = []
    for row in range(40):
        order = np.argsort(distance[row])
        mutual = distance[:, order[0]].argmin() == row
        if mutual and distance[row, order[0]] < 0.8 * distance[row, order[1]]:
            wanted.append((row, order[0]))
    assert [(int(p), int(q)) for p, q in zip(found.p[:, 0], found.q[:, 0], strict=True)] == wanted


def test_equalising_raises_the_contrast_of_dark_parts() -> None:
    dark = (strip() * 0.15).astype(np.uint8)
    assert equalise(dark).std() > 1.5 * cv2.cvtColor(dark, cv2.COLOR_BGR2GRAY).std()
