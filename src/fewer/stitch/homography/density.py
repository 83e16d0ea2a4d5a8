"""How densely matches lie, and the weights that follow from it."""

import numpy as np
from jaxtyping import Float

from fewer.stitch.options import HomographyOptions


def match_density(
    points: Float[np.ndarray, "matches 2"],
    confidence: Float[np.ndarray, "matches"],
    width: int,
    bandwidth: float,
) -> Float[np.ndarray, "matches"]:
    """rho_k = sum over j != k of c_j exp(-|p_k - p_j|^2 / 2 h^2), columns periodic, divided by its median.

    `bandwidth` is h as a share of the width.
    """
    h = bandwidth * width
    x, y = (points / (h * np.sqrt(2))).astype(np.float32).T
    around = np.float32(width / (h * np.sqrt(2)))
    across = np.abs(np.subtract.outer(x, x))
    np.minimum(across, around - across, out=across)
    np.square(across, out=across)
    down = np.subtract.outer(y, y)
    np.square(down, out=down)
    across += down
    kernel = np.exp(np.negative(across, out=across), out=across)
    np.fill_diagonal(kernel, 0)
    density = (kernel @ confidence.astype(np.float32)).astype(np.float64)
    middle = float(np.median(density))
    return density / middle if middle > 1e-12 else np.ones_like(density)


def density_weights(
    p: Float[np.ndarray, "matches 2"],
    q: Float[np.ndarray, "matches 2"],
    confidence: Float[np.ndarray, "matches"],
    width: int,
    gamma: float,
    options: HomographyOptions,
) -> Float[np.ndarray, "matches"]:
    """w_k = c_k clip(rho_k, 0.1, 10)^gamma. Positive gamma trusts dense clusters, negative gives each
    place its say.
    """
    if gamma == 0:
        return confidence.copy()
    density = match_density(p, confidence, width, options.bandwidth)
    if options.symmetric:
        density = (density + match_density(q, confidence, width, options.bandwidth)) / 2
    return confidence * np.clip(density, 0.1, 10) ** gamma
