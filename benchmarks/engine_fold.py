"""What folding the low-rank branch into 8-bit weights costs in accuracy, on synthetic layers.

runs on: cpu. The three layers of quantize_layers.py (outlier channels, a strong rank-6 part), quantized to h8
with rank 32; errors ||Y - Y'|| / ||Y|| on rows that calibration never saw: of the layer as it is stored, of
the engine's product with the branch beside its 8-bit weights and inside them. int4 (W4A4) stands beside it.
Run: python benchmarks/engine_fold.py [--seeds 3]
"""
# bench: cpu, 1 min:

import argparse

import torch
from quantize_layers import synthetic_layer
from record import record

from fewer.kernels.scratch import WeightScratch
from fewer.quantize.formats import FORMATS
from fewer.quantize.fused import fuse
from fewer.quantize.linear import QuantizedLinear, reference_product
from fewer.quantize.parts import Part, Samples
from fewer.quantize.recipe import Recipe
from fewer.quantize.solve import solve_group


@torch.no_grad()
def errors(seed: int) -> dict[str, float]:
    rows, held_out, weight = synthetic_layer(seed)
    expected = held_out @ weight.T

    def quantized(form: str) -> QuantizedLinear:
        part = Part(("layer",), [weight], [None], Samples(rows, rows.abs().amax(dim=0)))
        return QuantizedLinear(solve_group([part], FORMATS[form], 32, Recipe())[0]["layer"])

    h8, int4 = quantized("h8"), quantized("int4")
    found = {"h8": reference_product(h8, held_out), "int4": reference_product(int4, held_out)}
    for name, fold in (("h8, engine", False), ("h8, engine, branch folded", True)):
        product = fuse([h8], WeightScratch(), torch.float32, fold=fold)
        assert product is not None
        found[name] = product(held_out)[0]
    return {name: ((y - expected).norm() / expected.norm()).item() for name, y in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    found = {seed: errors(seed) for seed in range(given.seeds)}
    folded = [row["h8, engine, branch folded"] / row["h8, engine"] for row in found.values()]
    print(record("engine_fold", {"errors": found, "folded_against_beside": folded}).read_text())


if __name__ == "__main__":
    main()
