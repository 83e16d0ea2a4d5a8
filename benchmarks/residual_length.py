"""Residual autoencoding over the length of training: f8, f16, f32, f64, with and without shortcuts, with the
paper's optimizer, looked at again and again on the way.

python benchmarks/residual_length.py [--seeds 0 1 2] [--seconds 300]
writes benchmarks/results/residual_length.json after every look. Both kinds of net are trained as `fewer train
autoencoder --optimizer adamw` does: AdamW (0.9, 0.999, decay 0.1), a constant rate after 100 steps, L1 and
gradients, gradients clipped; nothing depends on how long it will go on. They start as torch's layers do, with
`--quiet` as that verb does (blocks without effect). Latents of one size in all, a quarter of the published
widths, 64-px crops of data/photos cut anew. With several rates each kind takes one, by three photographs that
are left out of training, after `--trial` steps of its f64. What is looked at is the moving average of the
weights (100 steps), on crops of the seven test photographs and of those three.
"""
# bench: gpu, 5 min:

import argparse
import time
from collections.abc import Iterator
from dataclasses import fields

import torch
from graphed import Averaged, advance_all
from record import record
from residual_autoencoding import build, small_config
from residual_curve import QUARTER, drawn, pools
from small_autoencoders import Draw, autoencoder_trainee, quality
from step_forms import FORMS, Form, put_in_form

from fewer.generate.autoencoder.quiet_start import start_quietly

POINTS = (100, 200, 400, 700, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 24000, 32000)
RATES = (1e-3, 3e-4)
KINDS = {"residual": True, "plain": False}
AVERAGED = 100
"""Steps in which the moving average forgets."""


def main() -> None:
    options = arguments()
    began = time.monotonic()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    _, validation, test = pools(options)
    draw = drawn(options, validation)
    form = next(form for form in FORMS if form.name == options.form)
    rates, trial = best_rates(draw, form, validation, options)
    keys = ("quiet", "widths", "batch", "crop", "leaves", "beforehand", "largest", "trial")
    facts = {key: getattr(options, key) for key in keys}
    facts |= {"rates": rates, "rates_tried": trial, "averaged_steps": AVERAGED}
    rows: list[dict] = []
    for place, seed in enumerate(options.seeds):
        share = (options.seconds - (time.monotonic() - began)) / (len(options.seeds) - place)
        deadline = time.monotonic() + share
        nets = {
            (kind, ratio): trainee_of(kind, ratio, seed, rates[kind], draw, form, options)
            for ratio in options.ratios
            for kind in KINDS
        }
        for net in nets.values():
            net.prepare()
        for steps in points_in_time(list(nets.values()), options.points, deadline):
            for (kind, ratio), net in nets.items():
                with net.averages_in_place() as model:
                    row = {"kind": kind, "ratio": ratio, "seed": seed, "steps": steps, "rate": rates[kind]}
                    found = {
                        "psnr": round(quality(model, test), 3),
                        "validation_psnr": round(quality(model, validation), 3),
                        "loss": round(float(net.history[max(0, steps - 100) : steps].mean()), 5),
                    }
                rows.append(row | found)
            show(rows, seed, steps)
            record(options.name, {"rows": rows, **facts})
        nets.clear()
        if options.device == "cuda":
            torch.cuda.empty_cache()


def points_in_time(nets: list[Averaged], points: list[int], deadline: float) -> Iterator[int]:
    """Trains all side by side; stops at each point, and for good before one that would come too late."""
    began = time.monotonic()
    for point in points:
        done = nets[0].done
        pace = (time.monotonic() - began) / max(done, 1)
        if done and time.monotonic() + 1.05 * pace * (point - done) > deadline:
            return
        while nets[0].done < point:
            advance_all(nets, min(50, point - nets[0].done))
        yield point


def best_rates(
    draw: Draw, form: Form, validation: torch.Tensor, options: argparse.Namespace
) -> tuple[dict[str, float], list]:
    """For each kind of net the rate that is best for its net of most compression; and the figures of all."""
    if len(options.rates) == 1:
        return dict.fromkeys(KINDS, options.rates[0]), []
    ratio = max(options.ratios)
    tried = [(kind, rate) for kind in KINDS for rate in options.rates]
    nets = [trainee_of(kind, ratio, 1000, rate, draw, form, options) for kind, rate in tried]
    for net in nets:
        net.prepare()
    advance_all(nets, options.trial)
    figures = []
    for (kind, rate), net in zip(tried, nets, strict=True):
        with net.averages_in_place() as model:
            figures.append((kind, rate, round(quality(model, validation), 2)))
    print("trial:", figures, flush=True)
    best = {kind: max((f for f in figures if f[0] == kind), key=lambda f: f[2])[1] for kind in KINDS}
    return best, figures


def trainee_of(
    kind: str, ratio: int, seed: int, rate: float, draw: Draw, form: Form, options: argparse.Namespace
) -> Averaged:
    """A net that has learned nothing yet."""
    model = build(small_config(ratio, tuple(options.widths), KINDS[kind]), KINDS[kind], False, seed)
    if options.quiet:
        start_quietly(model)
    model = put_in_form(model.to(options.device), form)
    shaped = draw
    if form.channels_last:
        shaped = lambda generator: draw(generator).to(memory_format=torch.channels_last)  # noqa: E731
    name = f"{kind} f{ratio}"
    net = autoencoder_trainee(name, model, shaped, rate, max(options.points), seed, "l1", final_rate=1.0)
    net = Averaged(**{field.name: getattr(net, field.name) for field in fields(net)})
    net.groups[0]["weight_decay"], net.warmup = 0.1, 100
    return net


def show(rows: list[dict], seed: int, steps: int) -> None:
    """One line a look: PSNR of each net, and how far each is from its own f8."""
    for kind in KINDS:
        found = {
            r["ratio"]: r["psnr"] for r in rows if (r["kind"], r["seed"], r["steps"]) == (kind, seed, steps)
        }
        first = found[min(found)]
        told = "  ".join(f"f{f} {found[f]:.2f} ({found[f] - first:+.2f})" for f in sorted(found))
        print(f"seed {seed}, {steps} steps, {kind}: {told}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--points", type=int, nargs="+", default=list(POINTS), help="steps to look after")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--trial", type=int, default=600, help="steps with every rate")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument(
        "--each", type=int, default=160, help="crops of each photograph left out, and half of test"
    )
    parser.add_argument("--leaves", type=float, default=0.15, help="this share of crops is dead leaves")
    parser.add_argument("--beforehand", type=int, default=65536, help="crops that are cut, once for all")
    parser.add_argument("--largest", type=int, default=2048, help="shrink photographs to this")
    parser.add_argument("--form", default="channels last, fused norms", choices=[form.name for form in FORMS])
    parser.add_argument("--widths", type=int, nargs="+", default=list(QUARTER), help="of the stages")
    parser.add_argument("--quiet", action="store_true", help="blocks start without effect")
    parser.add_argument("--seconds", type=float, default=1e9, help="shared evenly by the seeds")
    parser.add_argument("--name", default="residual_length", help="of the result's file")
    options = parser.parse_args()
    return argparse.Namespace(**vars(options), fresh=True, halvings=1, pool=None, turned=False)


if __name__ == "__main__":
    main()
