"""Class-conditional transformers (DiT, U-ViT, CaT) and condition-aware weights for them and for others."""

from fewer.generate.conditional.adapter import adapter, load_adapter, save_adapter
from fewer.generate.conditional.condition import (
    ConditionAware,
    MergedSchedule,
    ModelCondition,
    condition_aware,
)
from fewer.generate.conditional.params import ClassConditionalParams
from fewer.generate.conditional.targets import ConditionPlan

__all__ = [
    "ClassConditionalParams",
    "ConditionAware",
    "ConditionPlan",
    "MergedSchedule",
    "ModelCondition",
    "adapter",
    "condition_aware",
    "load_adapter",
    "save_adapter",
]
