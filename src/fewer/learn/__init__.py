"""Fewer labels, fewer samples, shifted domains: learning when data are dear.

Public names are imported on first use.
"""

from importlib import import_module

_PUBLIC = {
    "LabelledImages": "fewer.learn.data",
    "ImageSplits": "fewer.learn.data",
    "load_images": "fewer.learn.data",
    "make_labelled_images": "fewer.learn.data",
    "NetworkPlan": "fewer.learn.networks",
    "build_network": "fewer.learn.networks",
    "evaluate_probabilities": "fewer.learn.evaluate",
    "TrainedClassifier": "fewer.learn.model_folder",
    "pick_labels": "fewer.learn.data",
    "semi_supervised": "fewer.learn.few_labels.train",
    "SemiSupervisedPlan": "fewer.learn.few_labels.plan",
    "invariant": "fewer.learn.domains.run",
    "InvariantPlan": "fewer.learn.domains.plan",
    "Domains": "fewer.learn.domains.images",
    "load_domains": "fewer.learn.domains.images",
    "InstanceThreshold": "fewer.learn.thresholds.instance",
    "ClassTransition": "fewer.learn.thresholds.transition",
    "InstanceTransition": "fewer.learn.thresholds.transition",
    "DistillPlan": "fewer.learn.distillation.plan",
    "DistilledSet": "fewer.learn.distillation.distilled_set",
    "distill": "fewer.learn.distillation.loop",
    "merge": "fewer.learn.distillation.merge",
    "audit": "fewer.learn.distillation.audit",
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fewer.learn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
