"""Three labels a class, the other digits without: InstanT beside the labels alone."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits

from fewer.learn import SemiSupervisedPlan, make_labelled_images, pick_labels, semi_supervised


def main() -> None:
    torch.set_num_threads(1)
    digits = load_digits()  # 1,797 pictures of 8x8 pixels, inside scikit-learn
    pictures = make_labelled_images((digits.images * 15).astype("uint8"), digits.target)
    train, test = pictures.select(range(1297)), pictures.select(range(1297, 1797))
    labelled = pick_labels(train.labels, per_class=3, classes=10, seed=0)
    plan = SemiSupervisedPlan(steps=60, batch=16, rate=0.1, device="cpu")
    alone = semi_supervised(train, labelled, "labels-only", plan=plan, test=test)
    result = semi_supervised(train, labelled, "instant", plan=plan, test=test)
    assert alone.figures is not None
    assert result.figures is not None
    print(f"30 labels alone: {alone.figures.accuracy:.1%}, with InstanT: {result.figures.accuracy:.1%}")
    print("worth a label next: rows", result.verdicts.label_next(5).tolist())
    result.model.save(Path("digits-model"))


if __name__ == "__main__":
    main()
