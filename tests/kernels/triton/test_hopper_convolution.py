from tests.kernels.triton.test_hopper_product import compiled


def test_it_compiles_with_the_triton_that_is_installed() -> None:
    """Its results are compared on a GPU by tests/kernels/test_convolution.py, whose sizes include its own."""
    assert compiled()["convolution"] > 10_000
