"""Run as a script, without Triton's interpreter: compiles a Gluon kernel for Hopper down to machine code."""

import json

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource


def descriptor(block: list[int], kind: str = "bf16") -> str:
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.int8 if kind == "i8" else gl.bfloat16)
    return f"tensordesc<{kind}{block},{layout!r}>"


def build(kernel: object, types: dict[str, str], constants: dict[str, object]) -> int:
    names = list(kernel.arg_names)
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in names}
    source = GluonASTSource(
        kernel, signature, {(names.index(name),): value for name, value in constants.items()}
    )
    made = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    if "ex2.approx" in made.asm["ptx"] and "ACTIVATION" in constants:
        raise SystemExit("SiLU takes an exponential and a division where one hyperbolic tangent will do")
    return len(made.asm["cubin"])


def product(rank: int = 32, states: bool = False) -> int:
    from fewer.kernels.triton.hopper_product import _product_kernel

    types = {
        "rows_desc": descriptor([128, 128], "i8"), "weight_desc": descriptor([128, 128], "i8"),
        "half_weight_desc": descriptor([64, 128], "i8"),
        "low_desc": descriptor([128, 32]), "up_desc": descriptor([128, 32]),
        "half_up_desc": descriptor([64, 32]), "out_desc": descriptor([128, 64]),
        "row_scale": "*fp32", "column_scale": "*fp32", "bias": "*bf16", "states": "*fp32",
    }  # fmt: skip
    constants = {
        "ROWS": 128, "COLUMNS": 128, "CHUNK": 128, "STAGES": 5, "GROUPED": 8, "RANK": rank, "INT8": True,
        "BIAS": True, "ACTIVATION": 0 if states else 1, "HALVES": True, "STATES": states, "CHAIN": 1,
    }  # fmt: skip
    return build(_product_kernel, types, constants)


def attended() -> int:
    return product(0, True)


def convolution() -> int:
    from fewer.kernels.triton.hopper_convolution import _convolution_kernel

    types = {
        "pixels_desc": descriptor([1, 8, 16, 64]), "weight_desc": descriptor([128, 64]),
        "out_desc": descriptor([1, 8, 16, 64]), "other_desc": descriptor([1, 8, 16, 64]),
        "bias": "*bf16", "norm_weight": "*bf16",
        "eps": "fp32",
    }  # fmt: skip
    constants = {
        "HIGH": 8, "WIDE": 16, "COLUMNS": 128, "CHUNK": 64, "STAGES": 4, "SIDE": 3, "BIAS": True,
        "ACTIVATION": 0, "NORM": True, "SUM": True,
    }  # fmt: skip
    return build(_convolution_kernel, types, constants)


def attention(chunks: int = 5) -> int:
    from fewer.kernels.triton.hopper_attention import _attention_kernel

    types = {"visible": "*u8", "scale": "fp32"}
    for name, box in (("query", [1, 64, 1]), ("key", [1, 1, 64]), ("value", [1, 1, 64]), ("out", [1, 64, 1])):
        types |= {f"{name}_desc": descriptor([*box, 64]), f"{name}_rest_desc": descriptor([*box, 16])}
    constants = {"QUERIES": 64, "CHUNK": 64, "CHUNKS": chunks, "REST": 16, "MASKED": False, "CHAIN": True}
    return build(_attention_kernel, types, constants)


if __name__ == "__main__":
    kernels = {
        "product": product,
        "attended": attended,
        "convolution": convolution,
        "attention": attention,
    }
    kernels["attention of one chunk"] = lambda: attention(1)
    print(json.dumps({name: kernel() for name, kernel in kernels.items()}))
