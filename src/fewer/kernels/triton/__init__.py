"""Triton versions of the operators; imported only where a GPU (or Triton's interpreter) runs them."""
