"""Teaching the built-in model a drawing style from 50 pictures: a CAN adapter beside a LoRA of equal size.

python benchmarks/style_adapter.py [--steps 240] [--texts FILE] [--only-texts]
writes benchmarks/results/style_adapter.json after every run (what is there already is not run again) and a
contact sheet, outputs/style_adapter.png.

The style: silhouettes (data/emoji-styles, "contrast"), which the model has never seen, of things that it
knows, on coloured backgrounds; captions do not name the style. 50 pictures to learn from, 20 to choose one of
three learning rates, 40 others to judge: flow error, and of drawings for their captions the shares that are
silhouettes (half of what is not background is ink), show the right thing (nearest of 16 outlines),
and have the right background. The judges are measured, not learned; their scores on true pictures come first.
Encoding captions needs the language model; `--texts` keeps them for a machine without it, `--encoded` the
pictures' latents for one without the autoencoder. Drawings are kept as latents in outputs/; what could not be
judged there is judged by the next call that has an autoencoder.
"""
# bench: cpu, 30 min:

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import RESULTS, record
from torch import Tensor, nn

from fewer.core.device import isolated_randomness, seeded
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.conditional import ConditionPlan, adapter
from fewer.generate.conditional.adapter import AtCondition, adapter_parameters, base_digest
from fewer.generate.lora import attach
from fewer.generate.model_folder import DEFAULT_MODEL, read_settings
from fewer.generate.sampling import sample
from fewer.generate.scenes.compose import Scene, SceneRenderer
from fewer.generate.scenes.measures import background_colours, foreground
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.sprites import SpriteSheet
from fewer.generate.scenes.table import draw_scene
from fewer.generate.training.encoded import EncodedSet, TextTable, encode_captions
from fewer.generate.training.flow import draw_flow, flow_loss
from fewer.generate.training.lora import train_lora
from fewer.generate.training.transformer import TransformerTraining, train_transformer
from fewer.generate.transformer.sana import SanaTransformer

ROOT = Path(__file__).parents[1]
RATES = (3e-4, 1e-3, 3e-3)
COUNTS = {"train": 50, "validation": 20, "test": 40}
STYLE = "silhouette"
WAYS = ("can", "lora")
DARK = 90


def silhouettes() -> SpriteSheet:
    """The things that the built-in model knows, as black shapes with the tile's darkness for alpha."""
    folder = ROOT / "data" / "emoji-styles"
    number = {
        row["name"].replace(" ", "-"): int(row["index"])
        for row in csv.DictReader((folder / "labels.csv").open())
    }
    sheet = np.asarray(Image.open(folder / "contrast.webp").convert("L"))
    side, concepts = sheet.shape[1] // 40, preset("emoji-cpu").concepts or {}
    pixels = np.zeros((1, len(concepts), side, side, 4), dtype=np.uint8)
    for column, name in enumerate(concepts):
        row, place = divmod(number[name], 40)
        pixels[0, column, :, :, 3] = (
            255 - sheet[row * side : (row + 1) * side, place * side : (place + 1) * side]
        )
    return SpriteSheet(tuple(concepts.items()), (STYLE,), pixels)


def scenes(sheet: SpriteSheet, count: int, seed: int) -> list[Scene]:
    """One thing each, never on black."""
    random, found = np.random.default_rng(seed), []
    while len(found) < count:
        scene = draw_scene(sheet.words(), (STYLE,), random)
        if scene.arrangement == "single" and scene.colour != "black":
            found.append(scene)
    return found


def caption(scene: Scene) -> str:
    thing = scene.concepts[0]
    place = "" if scene.place == "center" else f" on the {scene.place}"
    article, other = ("an" if word[0] in "aeio" else "a" for word in (thing, scene.colour))
    return f"{article} {thing}{place} on {other} {scene.colour} background"


def texts(model: Path, path: Path | None, captions: list[str]) -> TextTable:
    """Features of the empty caption and these; from the file if it is there."""
    if path is not None and path.exists():
        found = read_tensors(path)
        return TextTable(found["tokens"], found["mask"].bool())
    from fewer.generate.model_folder import open_parts

    encoder = open_parts(model, dtype=torch.float32, device=torch.device("cpu")).encoder
    table = encode_captions(encoder, ["", *captions])
    if path is not None:
        write_tensors(path, {"tokens": table.tokens, "mask": table.mask.to(torch.uint8)})
    return table


class Judges:
    """Ink, outline and background of drawn pictures."""

    def __init__(self, renderer: SceneRenderer, words: tuple[str, ...]) -> None:
        self.words = words
        plain = scenes(renderer.sheet, 400, 1)
        of_word = {
            word: next(s for s in plain if s.concepts[0] == word and s.size != "small") for word in words
        }
        self.outlines = torch.stack([self._outline(renderer(of_word[word])) for word in words])

    def _outline(self, picture: np.ndarray) -> Tensor:
        mask = foreground(torch.from_numpy(picture)[None])[0].float()
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if not len(rows):
            return torch.zeros(400)
        box = mask[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        small = nn.functional.interpolate(box[None, None], (20, 20), mode="area").flatten()
        return nn.functional.normalize(small - small.mean(), dim=0)

    def __call__(self, pictures: Tensor, asked: list[Scene]) -> dict[str, float]:
        levels = ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        ink, thing, colour = [], [], []
        for picture, scene in zip(levels, asked, strict=True):
            shape = foreground(torch.from_numpy(picture)[None])[0].numpy()
            dark = picture.max(2) < DARK
            ink.append(bool(shape.any()) and float(dark[shape].mean()) >= 0.5)
            thing.append(
                self.words[int((self.outlines @ self._outline(picture)).argmax())] == scene.concepts[0]
            )
            colour.append(background_colours(torch.from_numpy(picture)[None]) == [scene.colour])
        return {
            name: round(float(np.mean(values)), 4)
            for name, values in (("silhouettes", ink), ("right_thing", thing), ("right_background", colour))
        }


class Study:
    """The model, the three sets, and what is measured on a changed transformer."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        settings = read_settings(options.model)
        self.settings = settings
        sheet = silhouettes()
        self.scenes = {name: scenes(sheet, count, 10 + n) for n, (name, count) in enumerate(COUNTS.items())}
        every = list(dict.fromkeys(caption(s) for part in self.scenes.values() for s in part))
        self.scenes["test"] = self.scenes["test"][: options.test]
        self.text = texts(options.model, options.texts, every)
        self.row = {text: number + 1 for number, text in enumerate(every)}
        if options.only_texts:
            return
        self.device = torch.device(options.device)
        weights = options.model / "vae" / "diffusion_pytorch_model.safetensors"
        self.autoencoder = (
            DCAutoencoder.load(options.model / "vae").float().to(self.device) if weights.exists() else None
        )
        self.base = self.fresh_base()
        side = (settings.default_size or (64, 64))[0]
        renderer = SceneRenderer(sheet, side)
        self.judges = Judges(renderer, sheet.words())
        self.pixels = {
            name: torch.stack(
                [torch.from_numpy(renderer(s)).permute(2, 0, 1).float() / 127.5 - 1 for s in part]
            )
            for name, part in self.scenes.items()
        }
        self.latents = self._latents(options.encoded)

    @torch.no_grad()
    def _latents(self, path: Path | None) -> dict[str, Tensor]:
        """Of the three sets, on the CPU; from the file if it is there."""
        if path is not None and path.exists():
            return read_tensors(path)
        assert self.autoencoder is not None, "no autoencoder: give --encoded"
        latents = {
            name: torch.cat([self.autoencoder.encode(p.to(self.device), tile=None) for p in part.split(10)])
            for name, part in self.pixels.items()
        }
        latents = {name: part.float().cpu() for name, part in latents.items()}
        if path is not None:
            write_tensors(path, latents)
        return latents

    def fresh_base(self) -> SanaTransformer:
        return SanaTransformer.load(self.options.model, torch.float32).to(self.device)

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1], on the CPU."""
        assert self.autoencoder is not None
        parts = [self.autoencoder.decode(p.to(self.device), tile=None) for p in latents.split(10)]
        return torch.cat(parts).float().cpu().clamp(-1, 1)

    def judged(self, latents: Tensor) -> dict[str, float]:
        """Nothing without an autoencoder: the next call that has one fills it in."""
        if self.autoencoder is None:
            return {}
        return self.judges(self.decoded(latents), self.scenes["test"])

    def training_set(self) -> EncodedSet:
        rows = [(self.row[caption(scene)],) for scene in self.scenes["train"]]
        return EncodedSet(list(self.latents["train"]), rows, [np.ones(1)] * len(rows), self.text, 0)

    @torch.no_grad()
    def error(self, network: nn.Module, part: str) -> float:
        """Flow error on a set, four draws of level and noise a picture, the same for every network."""
        count = len(self.scenes[part])
        tokens, mask = self.text.rows([self.row[caption(scene)] for scene in self.scenes[part]])
        latents = self.latents[part][:count]
        batches = [draw_flow(latents, tokens, mask, 1.0, seeded(5, n)).to(self.device) for n in range(4)]
        return float(np.mean([float(flow_loss(network, batch)) for batch in batches]))

    @torch.no_grad()
    def drawn(self, transformer: SanaTransformer) -> Tensor:
        """Latents of a picture for each caption of the test set: 12 steps, the model's own guidance."""
        found, guidance = [], self.settings.guidance
        for first in range(0, len(self.scenes["test"]), 32):
            part = self.scenes["test"][first : first + 32]
            tokens, mask = self.text.rows([0] * len(part) + [self.row[caption(scene)] for scene in part])
            prepared = transformer.prepare(tokens.to(self.device), mask.to(self.device))

            def velocity(latents: Tensor, timestep: float, prepared=prepared) -> Tensor:
                times = torch.full((2 * len(latents),), float(timestep), device=self.device)
                without, asked = transformer.denoise(latents.repeat(2, 1, 1, 1), times, prepared).chunk(2)
                return without + guidance * (asked - without)

            noise = torch.randn(len(part), *self.latents["test"].shape[1:], generator=seeded(9, first))
            noise = noise.to(self.device)
            latents = noise
            for step in sample(velocity, noise, steps=12, shift=self.settings.shift):
                latents = step.latents
            found.append(latents.float().cpu())
        return torch.cat(found)

    def training(self, rate: float, seed: int) -> TransformerTraining:
        return TransformerTraining(
            steps=self.options.steps, batch=10, learning_rate=rate, warmup=10, shift=1.0, ema_decay=None,
            dtype="fp32", seed=seed,
        )  # fmt: skip

    def place(self, name: str, rate: float, seed: int) -> Path:
        """Where a run that is stopped goes on."""
        return ROOT / "outputs" / "style_adapter" / f"{name}-{rate}-{seed}-{self.options.steps}"

    def can(self, rate: float, seed: int) -> tuple[SanaTransformer, nn.Module, int]:
        """(merged transformer, network to measure, parameters)."""
        with isolated_randomness(seed):
            base = self.fresh_base()
            model = adapter(base, [STYLE], ConditionPlan(rank=self.options.can_rank), width=16)
        train_transformer(
            AtCondition(model, STYLE), self.training_set(), self.training(rate, seed),
            device=self.device, checkpoints=self.place("can", rate, seed), resume=True,
        )  # fmt: skip
        merged = model.merge(model.embed(torch.tensor([0], device=self.device)))
        assert isinstance(merged, SanaTransformer)
        assert base_digest(model.static_twin()) == base_digest(self.base)
        return merged, merged, sum(p.numel() for p in adapter_parameters(model))

    def lora(self, rate: float, seed: int) -> tuple[SanaTransformer, nn.Module, int]:
        """(transformer with the adapter on, the same, parameters)."""
        base = self.fresh_base()
        found, _ = train_lora(
            base, self.training_set(), self.training(rate, seed), rank=self.options.lora_rank,
            targets=("to_q", "to_k", "to_v"), device=self.device,
            checkpoints=self.place("lora", rate, seed), resume=True,
        )  # fmt: skip
        attach(base, found, name="style")
        return base, base, sum(one.down.numel() + one.up.numel() for one in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of the model to teach")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--only-texts", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--encoded", type=Path, help="file with the pictures' latents, kept for later")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--test", type=int, default=COUNTS["test"], help="judge on so many (dry run)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--can-rank", type=int, default=1)
    parser.add_argument("--lora-rank", type=int, default=0, help="0: what gives a LoRA of the adapter's size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(options)
    if options.only_texts:
        return
    if not options.lora_rank:
        options.lora_rank = matching_rank(options.model, options.can_rank)
    test = study.scenes["test"]
    settings = {"steps": options.steps, "can_rank": options.can_rank, "lora_rank": options.lora_rank}
    path = RESULTS / "style_adapter.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    same = all(found.get(name) == value for name, value in settings.items())
    rows: dict[str, dict] = found["rows"] if same else {}

    def keep() -> None:
        record("style_adapter", {"style": STYLE, "pictures": COUNTS, **settings, "rows": rows})

    def judge(row: str, file: Path) -> None:
        """Judges drawings that were kept unjudged."""
        if "silhouettes" not in rows[row]:
            rows[row] |= study.judged(read_tensors(file)["latents"])

    base_file = ROOT / "outputs" / "style-base.safetensors"
    base = "the model without adapter"
    if base not in rows or not base_file.exists():
        rows[base] = {"test_error": study.error(study.base, "test")}
        write_tensors(base_file, {"latents": study.drawn(study.base)})
    judge(base, base_file)
    if study.autoencoder is not None and "true pictures" not in rows:
        rows["true pictures"] = study.judges(study.pixels["test"][: len(test)], test)
        rows["true pictures, reconstructed"] = study.judged(study.latents["test"][: len(test)])
    keep()
    for name, teach in (("can", study.can), ("lora", study.lora)):
        for rate in options.rates:
            row = f"{name}, rate {rate}"
            if row in rows:
                continue
            began = time.monotonic()
            _, network, parameters = teach(rate, 0)
            rows[row] = {
                "parameters": parameters, "validation_error": study.error(network, "validation"),
                "training_seconds": round(time.monotonic() - began, 1),
            }  # fmt: skip
            print(row, rows[row], flush=True)
            keep()
    # Seeds in the outer loop: both ways get their first figures before either gets its second.
    for seed in options.seeds:
        for name, teach in (("can", study.can), ("lora", study.lora)):
            best = min(options.rates, key=lambda rate: rows[f"{name}, rate {rate}"]["validation_error"])
            row = f"{name}, seed {seed}"
            file = ROOT / "outputs" / f"style-{name}-{seed}.safetensors"
            if row not in rows or not file.exists():
                transformer, network, parameters = teach(best, 100 + seed)
                write_tensors(file, {"latents": study.drawn(transformer)})
                rows[row] = {
                    "rate": best, "parameters": parameters, "test_error": study.error(network, "test"),
                }  # fmt: skip
            judge(row, file)
            print(row, rows[row], flush=True)
            keep()
    if study.autoencoder is not None:
        files = [base_file, *(ROOT / "outputs" / f"style-{n}-{options.seeds[0]}.safetensors" for n in WAYS)]
        drawn = [study.decoded(read_tensors(file)["latents"][:12]) for file in files]
        save_sheet([study.pixels["test"][:12], *drawn])


def matching_rank(folder: Path, can_rank: int) -> int:
    """The LoRA rank whose parameters come nearest to the adapter's."""
    from fewer.generate.lora import fresh

    base = SanaTransformer.load(folder, torch.float32)
    one = sum(low.down.numel() + low.up.numel() for low in fresh(base, 1, seeded(0)).values())
    model = adapter(base, [STYLE], ConditionPlan(rank=can_rank), width=16)
    return max(1, round(sum(p.numel() for p in adapter_parameters(model)) / one))


def save_sheet(sheets: list[Tensor]) -> None:
    """Rows: truth, without adapter, CAN, LoRA."""
    rows = [torch.cat(list(sheet), 2) for sheet in sheets]
    levels = ((torch.cat(rows, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    path = ROOT / "outputs" / "style_adapter.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(levels).save(path)


if __name__ == "__main__":
    main()
