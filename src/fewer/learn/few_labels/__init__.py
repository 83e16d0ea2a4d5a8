"""The semi-supervised system: augmentation, the training run, its diary and its report."""
