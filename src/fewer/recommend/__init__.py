"""Interactions -> next items: AutoMLP, the models it is compared with, evaluation and serving."""

import importlib

_WHERE = {
    "AutoMLP": "fewer.recommend.automlp",
    "FitSettings": "fewer.recommend.fitting",
    "Interactions": "fewer.recommend.data.interactions",
    "ItemFeatures": "fewer.recommend.data.features",
    "Recommender": "fewer.recommend.recommender",
    "SearchPlan": "fewer.recommend.search",
    "Sizes": "fewer.recommend.methods",
    "Suggestion": "fewer.recommend.recommender",
    "TrainingPlan": "fewer.recommend.training.loop",
    "fit": "fewer.recommend.fitting",
    "read_interactions": "fewer.recommend.data.reading",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'fewer.recommend' has no attribute {name!r}")
