"""The report of a run: one HTML page that needs nothing else, in plain words first."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from html import escape

import torch
from PIL import Image

from fewer.learn.data import LabelledImages
from fewer.learn.evaluate import Figures, balanced_error, calibration_curve
from fewer.learn.few_labels.plots import confusion_table, line_plot, reliability_plot
from fewer.learn.few_labels.train import SemiSupervisedResult

_STYLE = """
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}
body{max-width:60rem;margin:2rem auto;padding:0 1rem}
svg{width:100%;max-width:30rem;font-size:12px}svg text{fill:currentColor}
.axis{stroke:currentColor;stroke-opacity:.5}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1rem}
table{border-collapse:collapse}td,th{padding:.2rem .6rem;text-align:right;border:1px solid #8884}
.confusion{font-size:.85rem}figure{display:inline-block;margin:.4rem;text-align:center;font-size:.8rem}
figure img{width:84px;image-rendering:pixelated}.verdict{padding:.6rem 1rem;border-left:4px solid #0b6bcb}
"""


def verdict(figures: Figures | None, baseline: Figures | None) -> str:
    """Whether the unlabelled pictures helped, and whether that could be chance."""
    if figures is None:
        return "Nothing was measured: there is no test or validation picture with a label."
    ours = figures.balanced_accuracy
    if baseline is None:
        return (
            f"The classifier reaches a balanced accuracy of {ours:.1%}. No run on the labels alone stands "
            "beside it."
        )
    theirs = baseline.balanced_accuracy
    change = 100 * (ours - theirs)
    if change > 0:
        text = (
            f"The unlabelled pictures helped: balanced accuracy {ours:.1%}, {change:.1f} points above the "
            "labels alone."
        )
    else:
        text = (
            f"The unlabelled pictures did NOT help: balanced accuracy {ours:.1%}, {theirs:.1%} from the "
            "labels alone. Use the labels-only model, label more pictures, or try another method."
        )
    chance = 196 * math.hypot(balanced_error(figures), balanced_error(baseline))
    if abs(change) < chance:
        text += (
            f" On {figures.count} held-out pictures up to {chance:.1f} points can be chance: measure on "
            "more, or with several --seed."
        )
    return text


def report_page(
    result: SemiSupervisedResult,
    train: LabelledImages,
    test: LabelledImages | None,
    baseline: Figures | None = None,
) -> str:
    """The page as text. `baseline`: the figures of a labels-only run with the same seed and labels."""
    training = result.model.training
    parts = [f"<h1>{escape(str(training.get('method', 'run')))}: {len(result.labelled)} labels</h1>"]
    parts.append(f'<p class="verdict">{escape(verdict(result.figures, baseline))}</p>')
    if result.figures is not None:
        parts.append(_figures_table(result.figures, baseline))
    parts.append(f'<h2>The run</h2><div class="plots">{_curves(result.curves)}</div>')
    if result.figures is not None and test is not None:
        parts.append(_held_out(result, test))
    if str(training.get("method")) != "labels-only":
        parts.append(_label_next(result, train))
    parts.append(f"<h2>Settings</h2>{_settings(training)}")
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fewer: semi-supervised run</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>"
    )


def _figures_table(figures: Figures, baseline: Figures | None) -> str:
    rows = []
    for name in ("accuracy", "balanced_accuracy", "auc", "calibration_error", "negative_log_likelihood"):
        beside = f"<td>{getattr(baseline, name):.4f}</td>" if baseline else ""
        rows.append(
            f"<tr><th>{name.replace('_', ' ')}</th><td>{getattr(figures, name):.4f}</td>{beside}</tr>"
        )
    head = "<tr><th></th><th>this run</th>" + ("<th>labels only</th>" if baseline else "") + "</tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _curves(curves: Mapping[str, list[float | None]]) -> str:
    steps = [step for step in curves["step"] if step is not None]
    low = [_offset(t, s, -1) for t, s in zip(curves["threshold"], curves["threshold_spread"], strict=True)]
    high = [_offset(t, s, 1) for t, s in zip(curves["threshold"], curves["threshold_spread"], strict=True)]
    return "".join(
        [
            line_plot(steps, {n: curves[n] for n in ("supervised", "unsupervised")}, "loss over steps"),
            line_plot(steps, {"accepted share": curves["utilisation"]}, "utilisation", low=0.0, high=1.0),
            line_plot(
                steps,
                {
                    "accepted pseudo-labels": curves["purity"],
                    "constant threshold, as many accepted": curves["purity_constant"],
                },
                "share of pseudo-labels that are right",
            ),
            line_plot(
                steps,
                {"threshold": curves["threshold"], "one deviation up": high, "one deviation down": low},
                "threshold",
                low=0.0,
                high=1.0,
            ),
        ]
    )


def _offset(value: float | None, spread: float | None, sign: int) -> float | None:
    return None if value is None or spread is None else min(1.0, max(0.0, value + sign * spread))


def _held_out(result: SemiSupervisedResult, test: LabelledImages) -> str:
    assert result.figures is not None
    labelled = test.labelled()
    curve = calibration_curve(result.model.predict(labelled.images), result.model.labels_of(labelled))
    confidences, accuracies, _, shares = (values.tolist() for values in curve)
    table = confusion_table(result.figures.confusion, result.model.class_names)
    return (
        f"<h2>On {result.figures.count} held-out pictures</h2>"
        f'<div class="plots">{reliability_plot(confidences, accuracies, shares)}<div>{table}</div></div>'
    )


def _label_next(result: SemiSupervisedResult, train: LabelledImages, count: int = 12) -> str:
    names, verdicts = result.model.class_names, result.verdicts
    shares = verdicts.class_utilisation(len(names))
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{'' if share is None else f'{share:.1%}'}</td></tr>"
        for name, share in zip(names, shares, strict=True)
    )
    figures = []
    for row in verdicts.label_next(count).tolist():
        place = train.files[row] if train.files else f"row {row}"
        text = f"{place}: {names[int(verdicts.pseudo[row])]} or {names[int(verdicts.runner_up[row])]}?"
        figures.append(
            f'<figure><img alt="" src="{_picture(train.images[row])}"><figcaption>{escape(text)}'
            "</figcaption></figure>"
        )
    return (
        "<h2>Accepted share by class</h2>"
        f"<table><tr><th>pseudo-label</th><th>accepted</th></tr>{rows}</table>"
        "<h2>Worth a label next</h2><p>The pictures that were accepted least often.</p>" + "".join(figures)
    )


def _picture(pixels: torch.Tensor) -> str:
    array = pixels.numpy()
    stream = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _settings(training: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in training.items()
    )
    return f"<table>{rows}</table>"
