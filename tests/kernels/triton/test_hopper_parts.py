from triton.experimental.gluon.language.nvidia.hopper import tma

from fewer.kernels.triton import hopper_parts


def test_the_installed_triton_has_what_is_used_under_one_of_its_names() -> None:
    names = {value: name for name, value in vars(tma).items() if callable(value)}
    assert names[hopper_parts.fetch] in ("async_load", "async_copy_global_to_shared")
    assert names[hopper_parts.send] in ("async_store", "async_copy_shared_to_global")
