"""The density-weighted homography optimisation: weights, robust start, refinement, checks."""
