"""A transformer of Sana-1.6B's shape on one GPU, from bf16 weights to a 4-bit file. runs on: gpu

The clock runs over everything: 64 calibration calls of the model (two pictures of 1024 x 1024 each, with and
without text), the smoothing search, branches, rounding, and writing the folder. Weights are random with
outlier channels: the time does not depend on what they say. Afterwards a small model quantized on the CPU is
run from the same folder on the CPU and on the GPU, in every format.
Run: python benchmarks/quantize_sana_gpu.py [--formats h8 int4] [--shape tiny --device cpu for a dry run]
"""
# bench: gpu, 1 min:

import argparse
import dataclasses
import platform
import shutil
import tempfile
import time
from pathlib import Path

import torch

from fewer.core.files import write_json
from fewer.generate.transformer import SanaParams, SanaTransformer
from fewer.quantize import FAST, load_model, quantize
from fewer.quantize.checkpoint import checkpoint_of, save_quantized

TINY = SanaParams(
    in_channels=4, out_channels=4, heads=4, head_dim=32, depth=2, cross_heads=4, cross_head_dim=32,
    caption_channels=64, sample_size=8,
)  # fmt: skip
SHAPES = {
    "tiny": TINY,
    "sana-1.6b": SanaParams(
        in_channels=32, out_channels=32, heads=70, head_dim=32, depth=20, cross_heads=20, cross_head_dim=112,
        caption_channels=2304, sample_size=32,
    ),
}  # fmt: skip
BAR_SECONDS, CALLS, TEXT = 60, 64, 300


def random_sana(params: SanaParams, device: torch.device) -> SanaTransformer:
    """bf16 weights of a usual size; some input channels of every matrix are eight times larger."""
    with torch.device("meta"):
        model = SanaTransformer(params)
    model = model.to(torch.bfloat16).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(1.0 if parameter.ndim else 0.0)
            continue
        parameter.data.normal_(std=0.5 / parameter[0].numel() ** 0.5, generator=generator)
        chosen = torch.randperm(parameter.shape[1], generator=generator, device=device)
        parameter.data[:, chosen[: parameter.shape[1] // 100]] *= 8
    return model


def inputs(params: SanaParams, device: torch.device, seed: int) -> tuple[torch.Tensor, ...]:
    """Latents of two pictures, their timestep, text and its mask."""
    generator = torch.Generator(device).manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator, device=device).to(torch.bfloat16)  # noqa: E731
    side = params.sample_size
    times = torch.full((2,), 1000.0 * (seed % 20 + 1) / 20, device=device)
    text = draw(2, TEXT if side > 8 else 5, params.caption_channels)
    return draw(2, params.in_channels, side, side), times, text, torch.ones(text.shape[:2], device=device)


@torch.no_grad()
def measure(form: str, params: SanaParams, device: torch.device, calls: int) -> dict[str, object]:
    """Seconds and bytes of one format; the folder is removed afterwards."""
    model = random_sana(params, device)
    probe = inputs(params, device, 7)
    model(*probe)  # libraries load their kernels outside the clock
    plain = sum(p.numel() * p.element_size() for p in model.parameters())
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    calibrating = [0.0]

    def calibrate() -> None:
        began = time.perf_counter()
        for seed in range(calls):
            model(*inputs(params, device, seed))
        if device.type == "cuda":
            torch.cuda.synchronize()
        calibrating[0] += time.perf_counter() - began

    folder = Path(tempfile.mkdtemp()) / "model"
    try:
        exact = model(*probe).float()
        began = time.perf_counter()
        recipe = dataclasses.replace(FAST, sample_mebibytes=4096)
        quantize(model, form, 32 if params.depth > 2 else 16, calibrate, recipe=recipe)
        solved = time.perf_counter()
        config = {"_class_name": "SanaTransformer2DModel", "fewer_params": dataclasses.asdict(params)}
        checkpoint = checkpoint_of(model, config)
        save_quantized(checkpoint, folder)
        ended = time.perf_counter()
        checked = compare(model, folder, probe, exact, device)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
    reports = model.quantization_reports
    return {
        "format": form,
        "seconds": round(ended - began, 2),
        "bar_seconds": BAR_SECONDS,
        "seconds_calibrating": round(calibrating[0], 2),
        "seconds_solving": round(solved - began - calibrating[0], 2),
        "seconds_writing": round(ended - solved, 2),
        "calibration_calls": calls,
        "parameters": sum(torch.Size(report.shape).numel() for report in reports),
        "bytes_before": plain,
        "bytes_after": checkpoint.byte_count(),
        "ratio": round(checkpoint.byte_count() / plain, 4),
        "mean_layer_error": round(sum(r.error for r in reports) / len(reports), 5),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        **checked,
    }


@torch.no_grad()
def compare(
    model: torch.nn.Module,
    folder: Path,
    probe: tuple[torch.Tensor, ...],
    exact: torch.Tensor,
    device: torch.device,
) -> dict[str, object]:
    """The quantized model against the 16-bit one, and the folder read back against the model in memory."""
    try:
        found = model(*probe).float()
        again = load_model(folder, device=device)(*probe).float()
    except Exception as error:  # the time stands even where a kernel of this machine fails
        return {"output check failed": f"{type(error).__name__}: {error}"[:500]}
    return {
        "output_error": round(((found - exact).norm() / exact.norm()).item(), 5),
        "file_read_back_gives_the_same_output": bool(torch.equal(found, again)),
    }


@torch.no_grad()
def same_file_everywhere(device: torch.device) -> dict[str, float]:
    """Largest difference between CPU and `device` for one folder each, relative to the output's size."""
    cpu, gaps = torch.device("cpu"), {}
    for form in ("int4", "nvfp4", "h8"):
        model = random_sana(TINY, cpu).float()
        probe = [tensor.float() for tensor in inputs(TINY, cpu, 1)]
        quantize(model, form, 16, lambda model=model, probe=probe: model(*probe), recipe=FAST)
        with tempfile.TemporaryDirectory() as folder:
            config = {"_class_name": "SanaTransformer2DModel", "fewer_params": dataclasses.asdict(TINY)}
            save_quantized(checkpoint_of(model, config), Path(folder) / "model")
            there = load_model(Path(folder) / "model", device=device)
        expected = model(*probe)
        gap = there(*(tensor.to(device) for tensor in probe)).cpu() - expected
        gaps[form] = ((gap.norm()) / expected.norm()).item()
    return gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="*", default=["h8", "int4", "nvfp4"])
    parser.add_argument("--shape", choices=list(SHAPES), default="sana-1.6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--no-files", action="store_true", help="leave out the small model's file everywhere")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quantize_sana_gpu.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU {platform.machine()}"
    result: dict[str, object] = {
        "machine": name,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "shape": options.shape,
        "recipe": "FAST: 19 candidates on 128 rows, 5 rounds on 512, randomised SVD",
    }
    jobs = {
        form: lambda form=form: measure(form, SHAPES[options.shape], device, options.calls)
        for form in options.formats
    }
    if not options.no_files:
        jobs["same file on the CPU and here, relative difference"] = lambda: same_file_everywhere(device)
    for key, job in jobs.items():
        try:
            result[key] = job()
        except Exception as error:  # one failure must not cost the rest
            result[key] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        print(key, result[key], flush=True)
        write_json(options.output, result)


if __name__ == "__main__":
    main()
