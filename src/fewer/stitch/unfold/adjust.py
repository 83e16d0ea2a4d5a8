"""Bundle adjustment on a cylinder: the poses of all frames from the matches of all pairs.

State of a frame: (a, b, pan, tilt, roll, axial). A match says that two pixels show the same place of the
wall, so its residual is the difference of their (angle + roll, depth + axial), measured in picture pixels
of the coarser
view. Robust (Geman-McClure, graduated), Levenberg-Marquardt, sparse: memory grows with the number of frames
alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.sparse.linalg import splu

from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.slope import wall_and_slope

PRIOR = np.array([0.2, 0.2, np.radians(8), np.radians(8), np.inf, np.inf])
LUMEN_SIGMA = 0.01  # of the field's radius; see docs/stitch.md
_CHUNK = 32
Spread = Callable[[Callable, Iterable], Iterable]
_STEP = 1e-5


@runtime_checkable
class Edge(Protocol):
    """Matches of two frames, in picture pixels, with weights."""

    @property
    def first(self) -> int: ...
    @property
    def second(self) -> int: ...
    @property
    def xy_first(self) -> Float[np.ndarray, "matches 2"]: ...
    @property
    def xy_second(self) -> Float[np.ndarray, "matches 2"]: ...
    @property
    def weight(self) -> Float[np.ndarray, "matches"]: ...


@dataclass(frozen=True, slots=True)
class Matched:
    """An edge held in memory."""

    first: int
    second: int
    xy_first: Float[np.ndarray, "matches 2"]
    xy_second: Float[np.ndarray, "matches 2"]
    weight: Float[np.ndarray, "matches"]


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Poses after the fit and the robust RMS residual in picture pixels."""

    poses: Float[np.ndarray, "frames 6"]
    rms: float
    iterations: int


def adjust(
    geometry: Geometry,
    poses: Float[np.ndarray, "frames 6"],
    edges: Sequence[Edge],
    *,
    fixed: Bool[np.ndarray, "frames 6"] | None = None,
    lumen: Float[np.ndarray, "frames 2"] | None = None,
    iterations: int = 12,
    scale: float = 2.0,
    spread: Spread = map,
    parts: "Parts | None" = None,
) -> Adjustment:
    """`fixed` entries stay as they are; frame 0's roll and axial place always do (they are the map's origin).

    `spread` is `map` or a form of it that has several pieces of work done at once; `parts` replaces the whole
    evaluation of the edges (see `device.adjust`).

    `lumen` (pixels) is where each frame shows the middle of the tube. Matches of a short piece hardly tell
    a steady tilt from a steady offset, and folds bend them; the lumen does not care.
    """
    poses = poses.astype(np.float64).copy()
    target = None if geometry.mode != "cylinder" else lumen
    held = np.zeros(poses.shape, bool) if fixed is None else fixed.copy()
    held[0, 4:] = True
    damping, cost, done = 1e-4, np.inf, 0
    by_edge = _in_chunks(geometry, edges, spread) if parts is None else parts
    for done in range(iterations):
        # from four times the scale down to it, so that far-off first guesses still pull
        current = scale * max(1.0, 4.0 * 0.5**done)
        normal, right, cost, _ = _normal_equations(geometry, poses, by_edge, target, current, True)
        for _ in range(6):
            trial = poses + _solve(normal, right, held, damping)
            _, _, new_cost, _ = _normal_equations(geometry, trial, by_edge, target, current, False)
            if new_cost <= cost:
                break
            damping *= 10
        else:
            break
        poses, damping = trial, max(damping / 10, 1e-7)
        if current == scale and cost - new_cost < 1e-5 * cost:
            break
    _, _, _, rms = _normal_equations(geometry, poses, by_edge, target, scale, False)
    return Adjustment(poses, rms, done + 1)


def residuals(
    geometry: Geometry, poses: Float[np.ndarray, "frames 6"], edge: Edge
) -> Float[np.ndarray, "matches 2"]:
    """Differences on the wall in picture pixels."""
    return _differences(geometry, poses, [edge], jacobian=False)[0]


def _differences(
    geometry: Geometry, poses: np.ndarray, edges: Sequence[Edge], jacobian: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Residuals (matches, 2) and their derivatives (matches, 2, 12) by the poses of first and second."""
    counts = [len(edge.weight) for edge in edges]
    walls, slopes, places = [], [], []
    for name in ("first", "second"):
        pose = poses[np.repeat([getattr(edge, name) for edge in edges], counts)]
        xy = np.concatenate([getattr(edge, f"xy_{name}") for edge in edges])
        if jacobian:
            wall, slope = wall_and_slope(geometry, xy, pose[:, :4])
            slopes.append(slope)
        else:
            wall = geometry.to_wall(xy, pose[:, :4])
        walls.append(wall)
        places.append(wall + pose[:, 4:])
    fine = [np.stack(geometry.resolution(wall[:, 1]), axis=1) for wall in walls]
    scale = np.minimum(*fine)
    off = places[0] - places[1]
    off[:, 0] = np.mod(off[:, 0] + np.pi, 2 * np.pi) - np.pi
    if not jacobian:
        return off * scale, None
    both = np.zeros((len(off), 2, 12))
    both[:, :, :4], both[:, :, 6:10] = slopes[0] * scale[..., None], -slopes[1] * scale[..., None]
    for axis in (0, 1):
        both[:, axis, 4 + axis], both[:, axis, 10 + axis] = scale[:, axis], -scale[:, axis]
    return off * scale, both


def _normal_equations(
    geometry: Geometry,
    poses: np.ndarray,
    parts: "Parts",
    lumen: np.ndarray | None,
    scale: float,
    jacobian: bool,
) -> tuple[dict[tuple[int, int], np.ndarray], np.ndarray, float, float]:
    """Blocks of J^T W J, the right side -J^T W r, the robust cost and the weighted RMS."""
    blocks: dict[tuple[int, int], np.ndarray] = {}
    right = np.zeros(poses.shape)
    cost, squares, total = 0.0, 0.0, 0.0
    for chunk, part in parts(poses, scale, jacobian):
        cost, squares, total = cost + part.cost, squares + part.squares, total + part.total
        for edge, block, pull in zip(chunk, part.blocks, part.pulls, strict=False):
            i, j = edge.first, edge.second
            right[i] -= pull[:6]
            right[j] -= pull[6:]
            for key, piece in (
                ((i, i), block[:6, :6]), ((i, j), block[:6, 6:]),
                ((j, i), block[6:, :6]), ((j, j), block[6:, 6:]),
            ):  # fmt: skip
                blocks[key] = blocks[key] + piece if key in blocks else piece
    prior = 1 / PRIOR**2
    cost += float((poses**2 * prior).sum())
    off, slope = _lumen_residual(geometry, poses, lumen)
    cost += float((off**2).sum())
    if jacobian:
        right -= poses * prior
        for index in range(len(poses)):
            blocks[index, index] = blocks.get((index, index), np.zeros((6, 6))) + np.diag(prior)
            blocks[index, index][:4, :4] += slope[index].T @ slope[index]
        right[:, :4] -= np.einsum("fxp,fx->fp", slope, off)
    return blocks, right, cost, float(np.sqrt(squares / max(total, 1e-12)))


@dataclass(frozen=True, slots=True)
class Part:
    """What some edges add: blocks (12, 12) and pulls (12) of each, if asked, and sums over their matches."""

    blocks: np.ndarray
    pulls: np.ndarray
    cost: float
    squares: float
    total: float


Parts = Callable[[np.ndarray, float, bool], Iterable[tuple[Sequence[Edge], Part]]]
"""(poses, scale, whether blocks are wanted) -> what runs of edges add."""


def _in_chunks(geometry: Geometry, edges: Sequence[Edge], spread: Spread) -> Parts:
    chunks = [edges[start : start + _CHUNK] for start in range(0, len(edges), _CHUNK)]

    def evaluate(poses: np.ndarray, scale: float, jacobian: bool) -> Iterable[tuple[Sequence[Edge], Part]]:
        found = spread(lambda chunk: _part(geometry, poses, chunk, scale, jacobian), chunks)
        return zip(chunks, found, strict=True)

    return evaluate


def _part(geometry: Geometry, poses: np.ndarray, edges: Sequence[Edge], scale: float, jacobian: bool) -> Part:
    difference, slope = _differences(geometry, poses, edges, jacobian)
    base = np.concatenate([edge.weight for edge in edges])
    square = (difference**2).sum(axis=1)
    shrink = 1 / (1 + square / scale**2)
    robust = base * shrink**2
    sums = (float((base * square * shrink).sum()), float((robust * square).sum()), float(robust.sum()))
    if slope is None:
        return Part(np.zeros((0, 12, 12)), np.zeros((0, 12)), *sums)
    # edges side by side, the shorter ones filled up with rows of zero
    counts = np.array([len(edge.weight) for edge in edges])
    edge_of = np.repeat(np.arange(len(edges)), counts)
    row = np.arange(len(base)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.zeros((len(edges), counts.max(initial=1), 2, 13))
    root = np.sqrt(robust)[:, None]
    table[edge_of, row, :, :12], table[edge_of, row, :, 12] = slope * root[..., None], difference * root
    flat = table.reshape(len(edges), -1, 13)
    products = np.swapaxes(flat, 1, 2) @ flat
    return Part(products[:, :12, :12], products[:, :12, 12], *sums)


def _lumen_residual(
    geometry: Geometry, poses: np.ndarray, lumen: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """How far the tube's middle appears from where the lumen was found, in standard deviations, and its
    slope.
    """
    if lumen is None:
        return np.zeros((len(poses), 2)), np.zeros((len(poses), 2, 4))
    unit = 1 / (LUMEN_SIGMA * geometry.field_radius)
    slope = np.zeros((len(poses), 2, 4))
    for axis in range(4):
        step = np.zeros(4)
        step[axis] = _STEP
        there = geometry.axis_in_picture(poses[:, :4] + step)
        slope[:, :, axis] = (there - geometry.axis_in_picture(poses[:, :4] - step)) * unit / (2 * _STEP)
    return (geometry.axis_in_picture(poses[:, :4]) - lumen) * unit, slope


def _solve(
    blocks: dict[tuple[int, int], np.ndarray], right: np.ndarray, held: np.ndarray, damping: float
) -> np.ndarray:
    keys = np.array(list(blocks))
    values = np.stack(list(blocks.values()))
    rows = keys[:, 0, None, None] * 6 + np.arange(6)[None, :, None] + np.zeros((1, 1, 6), int)
    columns = keys[:, 1, None, None] * 6 + np.arange(6)[None, None, :] + np.zeros((1, 6, 1), int)
    size = right.size
    matrix = sparse.coo_matrix((values.ravel(), (rows.ravel(), columns.ravel())), shape=(size, size)).tocsc()
    diagonal = matrix.diagonal()
    matrix = matrix + sparse.diags(diagonal * damping + 1e-9)
    free = np.flatnonzero(~held.ravel())
    out = np.zeros(size)
    # symmetric and positive definite: no pivoting, and an ordering that keeps the factor thin
    factor = splu(
        matrix[free][:, free],
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    out[free] = factor.solve(right.ravel()[free])
    return out.reshape(right.shape)
