import math

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from fewer.stitch.tube.wall import TubeShape, intersect, paint_texture

ROUGH = TubeShape(folds=0.05, rings=0.02, breathing=0.04, curve=2.0, phases=(0.3, 1.0, 2.0, 0.5, 4.0))


def test_the_radius_is_the_equation_and_its_derivatives_are_right() -> None:
    theta, z, t = 0.7, 12.0, 0.4
    wanted = 10 * (1 + 0.05 * (math.cos(4 * theta + 0.3 + 0.03 * z) + 0.6 * math.cos(7 * theta + 1.0)))
    wanted *= 1 + 0.02 * math.cos(2 * math.pi * z / 7 + 2.0)
    wanted *= 1 + 0.04 * math.sin(2 * math.pi * 0.25 * t + 2 * math.pi * z / 60)
    radius, by_theta, by_z = (float(v[0]) for v in ROUGH.wall_radius(np.array([theta]), np.array([z]), t))
    assert radius == pytest.approx(wanted)

    def at(x: np.ndarray) -> float:
        return float(ROUGH.wall_radius(x[:1], x[1:], t)[0][0])

    assert np.allclose(approx_fprime(np.array([theta, z]), at, 1e-6), [by_theta, by_z], atol=1e-4)


@pytest.mark.parametrize("shape", [TubeShape(), ROUGH], ids=["plain", "rough"])
def test_rays_end_on_the_wall(shape: TubeShape) -> None:
    random = np.random.default_rng(0)
    angle, side = random.uniform(0.5, 1.2, 300), random.uniform(0, 2 * np.pi, 300)
    rays = np.stack([np.sin(angle) * np.cos(side), np.sin(angle) * np.sin(side), np.cos(angle)], axis=1)
    origin = np.array([0.5, -0.8, 3.0])
    hit = intersect(shape, origin, rays, 0.3)
    point = shape.point(hit.theta, hit.z, 0.3)
    off = np.linalg.norm(point - (origin + hit.distance[:, None] * rays), axis=1)
    assert np.quantile(off, 0.98) < 1e-6
    assert ((hit.cosine > 0) & (hit.cosine <= 1)).all()


def test_the_texture_is_periodic_repeatable_and_redder_beyond_the_line() -> None:
    one, two = paint_texture(30.0, 0.0, 5), paint_texture(30.0, 0.0, 5)
    assert (one.picture == two.picture).all()
    assert (paint_texture(30.0, 0.0, 6).picture != one.picture).any()
    picture = one.picture.astype(float)
    seam = np.abs(picture[:, 0] - picture[:, -1]).mean()
    inside = np.abs(np.diff(picture[:, 300:600], axis=1)).mean()
    assert seam < 3 * inside
    top, bottom = picture[:200].mean(axis=(0, 1)), picture[-80:].mean(axis=(0, 1))
    assert bottom[0] / top[0] < 0.75
    assert bottom[2] / top[2] > 0.85
    around = one.sample(np.array([0.4, 0.4 + 2 * np.pi]), np.array([10.0, 10.0]))
    assert np.allclose(around[0], around[1])
