from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewer.core.checkpoint import save_checkpoint
from fewer.core.errors import ConfigError
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.methods import Sizes
from fewer.recommend.started import belongs
from fewer.recommend.training.loop import TrainingPlan

LOG = Interactions.build(["u", "u", "v", "v"], ["a", "b", "b", "c"], [1, 2, 3, 4])
PLAN = TrainingPlan(epochs=3)


def test_what_decides_the_weights_must_stay(tmp_path: Path) -> None:
    settings = {"method": "automlp", "sizes": Sizes(candidates=(1, 2)), "training": PLAN}
    belongs(tmp_path, False, LOG, None, **settings)
    longer = replace(PLAN, epochs=9, patience=1, wall_seconds=2.0)
    belongs(tmp_path, True, LOG, None, **{**settings, "training": longer})  # may end elsewhere
    other = Interactions.build(["u", "u", "v", "v"], ["a", "b", "b", "c"], [2, 1, 3, 4])
    with pytest.raises(ConfigError, match="other interactions"):
        belongs(tmp_path, True, other, None, **settings)
    features = ItemFeatures.build(LOG.item_ids, {"brand": {"a": ["x"]}})
    with pytest.raises(ConfigError, match="other features"):
        belongs(tmp_path, True, LOG, features, **settings)
    for name, value, said in (
        ("training", replace(PLAN, seed=5), "seed = 0, not 5"),
        ("sizes", Sizes(candidates=(1, 4)), r"candidates = \[1, 2\], not \[1, 4\]"),
        ("method", "sasrec", "method = automlp, not sasrec"),
    ):
        with pytest.raises(ConfigError, match=said):
            belongs(tmp_path, True, LOG, None, **{**settings, name: value})
    belongs(tmp_path, False, other, None, **settings)  # a fresh run takes the folder
    belongs(tmp_path, True, other, None, **settings)


def test_checkpoints_of_an_earlier_run_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    belongs(tmp_path, False, LOG, None, method="automlp")
    save_checkpoint(tmp_path / "trials" / "3", 12, {"w": torch.zeros(1)}, {})
    with pytest.raises(ConfigError, match=r"earlier run.*--resume"):
        belongs(tmp_path, False, LOG, None, method="automlp")
    belongs(tmp_path, True, LOG, None, method="automlp")
