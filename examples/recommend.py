"""What comes next: learn from interactions, find the length of short-term interest, suggest, export.

The data is made here: every item follows from the item two steps back, so the right answer is known.
"""

from fewer.recommend import AutoMLP
from fewer.recommend.data.planted import planted_lag


def main() -> None:
    """Runs in about ten seconds on one CPU core."""
    interactions = planted_lag(2, items=40, users=200, length=16, seed=0)
    model = AutoMLP.fit(
        interactions,
        length=8,
        dim=32,
        layers=1,
        candidates=(1, 2, 5),
        long_branch=False,
        dropout=0.0,
        learning_rate=5e-3,
        batch_size=128,
        search_epochs=20,
        epochs=15,
        seed=0,
    )
    search, metrics = model.report["search"], model.report["metrics"]
    chances = dict(zip(search["candidates"], search["probabilities"], strict=True))
    print("probability of each short-term length:", chances)
    print("chosen length:", model.sizes.candidates[0], "(planted: 2)")
    for name, figures in metrics.items():
        print(f"{name:>10}  NDCG@10 {figures['ndcg_at_10']:.3f}  HR@10 {figures['hr_at_10']:.3f}")

    history = [interactions.item_ids[i - 1] for i in interactions.history(0)][-5:]
    known, unknown = model.suggest([history, ["an item nobody ever saw"]], k=3)
    print("after", history, "->", known.items)
    print("unknown item ->", unknown.items, "fallback to popularity:", unknown.fallback)


if __name__ == "__main__":
    main()
