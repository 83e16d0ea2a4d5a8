"""Hold one drawing style out, train on the others with and without EVIL's mask, compare.

python examples/learn_invariant.py [FOLDER domain/class/*.png]
"""

import sys
from pathlib import Path

from fewer.learn import Domains, InvariantPlan, invariant, load_domains

STYLES = Path(__file__).parents[1] / "data" / "emoji-styles"


def main() -> None:
    domains = load_domains(sys.argv[1] if len(sys.argv) == 2 else STYLES, size=16)
    if len(sys.argv) < 2:  # three of the five styles, every fourth object: seconds instead of minutes
        domains = Domains(domains.names[1:4], tuple(d.select(range(0, 1586, 4)) for d in domains.images[1:4]))
    plan = InvariantPlan(steps=30, batch=12, device="cpu")
    target = domains.names[-1]
    for method in ("none", "evil"):
        result = invariant(domains, target, "erm", method, plan=plan)
        print(f"{method}: {result.figures['accuracy']:.3f} on {target}, kept {result.figures['density']:.2f}")
        for layer in result.layers:
            print(f"  {layer.name}: {layer.kept} of {layer.weights} weights kept")
    result.save("invariant-model")


if __name__ == "__main__":
    main()
