"""The built-in model's large edition (512 px, five shapes) before the judges of builtin_model.py.

Every shape: 20 steps on seen and on held-out prompts, few steps too; the autoencoder of the edition, and the
small one, on held-out scenes at 512 px. For comparison the same network without the edition: its own
latents of 32 x 32 through the small autoencoder, and the other shapes without the adapter. Run:
python benchmarks/builtin_large.py --packages NODE_MODULES --device cuda
writes benchmarks/results/builtin_large.json, item by item.
"""
# bench: by hand: needs --packages NODE_MODULES, the emoji packages of builtin_model.py

import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from builtin_model import JUDGE, contact_sheet, frechet, pictures_of
from torch.nn.functional import avg_pool2d

from fewer.core.device import pick_device
from fewer.core.files import write_json
from fewer.generate.large_edition import open_large
from fewer.generate.lora import attach, detach, read_lora
from fewer.generate.model_folder import DEFAULT_MODEL, open_parts
from fewer.generate.scenes.autoencode import reconstruction_psnr
from fewer.generate.scenes.captions import full_caption
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.judges import SpriteJudge, judge_pictures
from fewer.generate.scenes.pool import signed
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.split import held_out_reasons
from fewer.generate.scenes.sprites import SpriteSheet, load_sprites, render_sprites
from fewer.generate.scenes.table import draw_table
from fewer.generate.scenes.vocabulary import Vocabulary


class Exam:
    """One model before one judge."""

    def __init__(self, options: argparse.Namespace, sheet: SpriteSheet) -> None:
        self.options, self.sheet = options, sheet
        self.device = pick_device(options.device)
        self.vocabulary = Vocabulary(sheet.words(), sheet.styles)
        every = preset("emoji")
        words = tuple((every.concepts or {}).values())
        self.judge = SpriteJudge.load(JUDGE, words, every.styles).to(self.device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.parts = open_parts(options.model, dtype=dtype, device=self.device)
        folder = DEFAULT_MODEL if options.model == "default" else Path(options.model)
        ratio = self.parts.autoencoder.config.spatial_compression_ratio
        self.large = open_large(options.edition or folder, 2 * ratio)
        assert self.large is not None, "this model has no large edition: fewer train large"
        self.autoencoder = self.large.autoencoder(self.parts.autoencoder)
        self.sheets: list[tuple[torch.Tensor, list]] = []

    def scenes(self, size: tuple[int, int], split: str, count: int) -> tuple[list, torch.Tensor]:
        """Scenes and their true pictures."""
        renderer = SceneRenderer(self.sheet, size, self.device)
        table = draw_table(self.vocabulary, count, split, {"train": 500, "held-out": 500}[split])  # type: ignore[arg-type]
        placed = table.placed(renderer)
        renderer.prepare(placed.size)
        parts = torch.arange(count, device=self.device).split(64)
        return table.scenes(), torch.cat([signed(renderer.render(placed.rows(rows))) for rows in parts])

    def verdict(
        self,
        size: tuple[int, int],
        split: str,
        count: int,
        *,
        steps: int | None = None,
        method: str = "flow-dpm",
        adapted: bool | None = None,
        plain: bool = False,
    ) -> dict[str, object]:
        """Shares of the judges. `plain` draws by the small autoencoder's own latents at this size."""
        scenes, truth = self.scenes(size, split, count)
        ratio = (1 if plain else 2) * self.parts.autoencoder.config.spatial_compression_ratio
        parts = replace(self.parts, autoencoder=self.parts.autoencoder if plain else self.autoencoder)
        if adapted if adapted is not None else size[0] != size[1]:
            assert self.large is not None
            attach(parts.transformer, read_lora(self.large.adapter), name="shapes")
        settings = self.parts.settings
        began = time.monotonic()
        drawn = pictures_of(
            parts, [full_caption(scene) for scene in scenes], steps or self.options.steps, settings.guidance,
            3.0 if plain else settings.shift, method, self.options.seed, (size[0] // ratio, size[1] // ratio),
        )  # fmt: skip
        seconds = (time.monotonic() - began) / count
        detach(parts.transformer)
        if method == "flow-dpm" and not plain and adapted is None:
            self.sheets.append((drawn[:4].cpu(), scenes[:4]))
        row: dict[str, object] = asdict(judge_pictures(self.judge, drawn, scenes))
        for reason in ("style", "pair", "colour") if split == "held-out" else ():
            rows = [place for place, scene in enumerate(scenes) if reason in held_out_reasons(scene)]
            if len(rows) > 1:
                own = judge_pictures(self.judge, drawn[rows], [scenes[place] for place in rows])
                row[f"held-out {reason}"] = asdict(own)
        if count > 600:  # of fewer a covariance says nothing
            row["frechet"] = frechet(self.judge, drawn, truth, scenes)
        return row | {"seconds_a_picture": seconds}

    def autoencoders(self, count: int) -> dict[str, object]:
        """PSNR on held-out scenes at 512 px, and the judges on reconstructions and truth."""
        large, small = self.autoencoder.float(), self.parts.autoencoder.float()
        side = max(min(size) for size in self.large.sizes)  # type: ignore[union-attr]
        scenes, truth = self.scenes((side, side), "held-out", count)
        error, again = 0.0, []
        for part in truth.split(16):
            old = small.encode(avg_pool2d(part, 2), tile=None)
            drawn = large.decode(old, tile=None).clamp(-1, 1)
            again.append(large.decode(large.encode(part, tile=None), tile=None).clamp(-1, 1))
            each = ((drawn - part) / 2).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
            error += float((-10 * each.log10()).sum())
        found = {
            "f32": reconstruction_psnr(large, truth),
            "f32, latents of the small encoder at half the side": error / len(truth),
            "f16 at this side (four times the latents)": reconstruction_psnr(small, truth),
            "reconstructions": asdict(judge_pictures(self.judge, torch.cat(again), scenes)),
            "truth": asdict(judge_pictures(self.judge, truth, scenes)),
        }
        kind = self.parts.transformer.proj_out.weight.dtype
        self.autoencoder.to(kind)
        self.parts.autoencoder.to(kind)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--edition", type=Path, help="folder with adapters/large, if not the model's own")
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--sprites", type=Path, help="sprites.safetensors of the run, instead of --packages")
    parser.add_argument(
        "--pictures", type=int, default=2000, help="of the square; a quarter each of the others"
    )
    parser.add_argument("--items", nargs="+", default=["autoencoder", "square", "shapes", "few", "without"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "builtin_large.json"
    )
    options = parser.parse_args()
    chosen = preset("emoji-512")
    sheet = (
        load_sprites(options.sprites)
        if options.sprites
        else render_sprites(options.packages, chosen.concepts or {}, chosen.styles, chosen.sprite_side)
    )
    exam = Exam(options, sheet)
    gpu = exam.device.type == "cuda"
    machine = torch.cuda.get_device_name() if gpu else platform.machine()
    report: dict[str, object] = {"machine": machine, "torch": torch.__version__, "steps": options.steps}

    def keep(name: str, row: dict[str, object]) -> None:
        report[name] = row
        write_json(options.output, json.loads(json.dumps(report), parse_constant=lambda _: None))
        print(name, {k: round(v, 4) for k, v in row.items() if isinstance(v, float)}, flush=True)

    assert exam.large is not None
    square = next(size for size in exam.large.sizes if size[0] == size[1])
    shapes = [size for size in exam.large.sizes if size != square]
    many, some = options.pictures, max(2, options.pictures // 4)
    if "autoencoder" in options.items:
        keep("autoencoder", exam.autoencoders(min(256, some)))
    for split in ("train", "held-out"):
        if "square" in options.items:
            keep(f"{square} {split}", exam.verdict(square, split, many))
        for size in shapes if "shapes" in options.items else ():
            keep(f"{size} {split}", exam.verdict(size, split, some))
        for size in exam.large.sizes if "few" in options.items else ():
            if (size == square and "square" in options.items) or (
                size != square and "shapes" in options.items
            ):
                keep(f"{size} {split}, 2 steps", exam.verdict(size, split, some, steps=2, method="few-steps"))
    if "without" in options.items:
        few = max(2, some // 2)
        if "square" in options.items:
            keep("32 x 32 latents of the small model", exam.verdict(square, "train", few, plain=True))
        else:
            keep("without the adapter", exam.verdict(shapes[0], "train", few, adapted=False))
    if options.sheet:
        save_sheets(exam, options.sheet)


def save_sheets(exam: Exam, path: Path) -> None:
    """The first four of every row, with their prompts."""
    for number, (drawn, scenes) in enumerate(exam.sheets):
        contact_sheet(drawn, scenes, columns=4, side=256).save(path.with_stem(f"{path.stem}-{number}"))


if __name__ == "__main__":
    main()
