"""A pretrained network that a package ships, through the generic path: RXNMapper's ALBERT of reactions.

The wheel rxnmapper (MIT; pip install --no-deps rxnmapper) holds a masked language model of reaction SMILES;
one of its attention heads tells which atom of the product was which atom of a reactant (Schwaller et al.
2021, doi 10.1126/sciadv.abe4166). Here reactions are written from building blocks, so that the true mapping
is known by construction: amides, esters, ethers and sulfonamides. Calibration and test share no building
block.
Figures: loss and accuracy on masked tokens, share of product atoms mapped right by the bare head.
Run: python benchmarks/quantize_reactions.py
"""
# bench: by hand: needs the wheel rxnmapper

import argparse
import importlib.metadata
import importlib.util
import itertools
import platform
import re
from pathlib import Path

import torch
from quantize_peers import nf4_weights
from torch import nn

from fewer.core.files import write_json
from fewer.quantize import Recipe, plan_layers, quantize

FOLDER = "models/transformers/albert_heads_8_uspto_all_1310k"
TOKEN = re.compile(r"\[[^\]]+]|Br?|Cl?|>>|[NOSPFIbcnosp().=#+\\/:~@?>*$-]|%\d\d|\d")
LAYER, HEAD = 10, 5  # the published head, counted from 0
RESTS = (
    "CC", "CCC", "CCCC", "CC(C)C", "COCC", "c1ccccc1C", "FC(F)(F)C", "C1CCCCC1", "Cc1ccc(C)cc1",
    "Clc1ccccc1C", "COc1ccc(C)cc1", "CC(C)(C)C", "N#CCC", "C1CC1C", "CSCC", "c1ccncc1C", "CC(=O)CC",
    "Fc1ccc(C)cc1", "O=C1CCCC1C", "CCOCC",
)  # fmt: skip
TAILS = (
    "CC", "CCC", "CC(C)C", "Cc1ccccc1", "CCOC", "C1CCCCC1", "CCc1ccccc1", "CCN(C)C", "c1ccccc1", "CC(F)(F)F",
    "c1ccc(C)cc1", "c1ccc(Cl)cc1", "CCC#N", "Cc1ccco1", "CCCCC", "c1ccncc1", "CC=C", "c1ccc(OC)cc1", "CC1CC1",
    "c1cccc(F)c1",
)  # fmt: skip
# (what ends the first reactant, what of it stays in the product, what begins the second reactant)
KINDS = {
    "amide": ("C(=O)O", "C(=O)", "N"),
    "ester": ("C(=O)O", "C(=O)", "O"),
    "ether": ("CBr", "C", "O"),
    "sulfonamide": ("S(=O)(=O)Cl", "S(=O)(=O)", "N"),
}
METHODS: dict[str, tuple[str, int, dict[str, object]]] = {
    "naive int4": ("int4", 0, {"smooth": False}),
    "smoothing only int4": ("int4", 0, {}),
    "SVD only int4": ("int4", 32, {"smooth": False, "refine_rounds": 1}),
    "SVDQuant int4": ("int4", 32, {}),
    "SVDQuant nvfp4": ("nvfp4", 32, {}),
    "SVDQuant h8": ("h8", 32, {}),
}


def tokens(smiles: str) -> list[str]:
    return TOKEN.findall(smiles)


def reaction(rest: str, tail: str, kind: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Tokens of a reaction, and (product position, reactant position) of every product atom."""
    leaving, staying, begin = KINDS[kind]
    first, kept, second = tokens(rest + leaving), tokens(rest + staying), tokens(begin + tail)
    whole = [*first, ".", *second, ">>", *kept, *second]
    start = len(first) + len(second) + 2
    origins = [*range(len(kept)), *range(len(first) + 1, len(first) + 1 + len(second))]
    pairs = [(start + place, origin) for place, origin in enumerate(origins)]
    assert all(whole[place] == whole[origin] for place, origin in pairs)
    return whole, [pair for pair in pairs if whole[pair[0]][0].isalpha()]


class Reactions:
    """Reactions of some building blocks as one padded batch, with a fixed choice of masked tokens."""

    def __init__(self, vocabulary: dict[str, int], rests: tuple[str, ...], tails: tuple[str, ...]) -> None:
        made = [reaction(*choice) for choice in itertools.product(rests, tails, KINDS)]
        self.pairs = [pairs for _, pairs in made]
        length = max(len(whole) for whole, _ in made) + 2
        self.ids = torch.full((len(made), length), vocabulary["[PAD]"])
        for row, (whole, _) in enumerate(made):
            numbers = [vocabulary[token] for token in ["[CLS]", *whole, "[SEP]"]]
            self.ids[row, : len(numbers)] = torch.tensor(numbers)
        self.attended = (self.ids != vocabulary["[PAD]"]).long()
        special = torch.tensor([vocabulary[name] for name in ("[PAD]", "[CLS]", "[SEP]")])
        chosen = torch.rand(self.ids.shape, generator=torch.Generator().manual_seed(0)) < 0.15
        self.masked = chosen & ~torch.isin(self.ids, special)
        self.shown = torch.where(self.masked, vocabulary["[MASK]"], self.ids)


@torch.no_grad()
def figures(model: nn.Module, reactions: Reactions) -> dict[str, float]:
    """Masked-token loss and accuracy (in per cent), and product atoms mapped right (in per cent)."""
    losses, right, mapped = [], [], []
    for part in torch.arange(len(reactions.ids)).split(64):
        mask, attended = reactions.masked[part], reactions.attended[part]
        logits = model(input_ids=reactions.shown[part], attention_mask=attended).logits[mask].float()
        losses.append(nn.functional.cross_entropy(logits, reactions.ids[part][mask], reduction="none"))
        right.append((logits.argmax(dim=1) == reactions.ids[part][mask]).float())
        attention = model(
            input_ids=reactions.ids[part], attention_mask=attended, output_attentions=True
        ).attentions[LAYER][:, HEAD]
        for row, number in enumerate(part.tolist()):
            places, origins = map(list, zip(*reactions.pairs[number], strict=True))
            atoms = torch.tensor(sorted(set(range(1, min(places))) & _letters(reactions, number)))
            seen = attention[row][torch.tensor(places) + 1][:, atoms]
            mapped.append((atoms[seen.argmax(dim=1)] == torch.tensor(origins) + 1).float())
    return {
        "masked_loss": round(torch.cat(losses).mean().item(), 4),
        "masked_accuracy": round(100 * torch.cat(right).mean().item(), 2),
        "atoms_mapped_right": round(100 * torch.cat(mapped).mean().item(), 2),
    }


def _letters(reactions: Reactions, number: int) -> set[int]:
    """Positions of atoms among a reaction's tokens (those whose token begins with a letter)."""
    return {place for place, token in enumerate(reactions.ids[number].tolist()) if NAMES[token][0].isalpha()}


NAMES: list[str] = []


def load() -> tuple[nn.Module, dict[str, int]]:
    """The packaged model in fp32 and its vocabulary."""
    from transformers import AlbertConfig, AlbertForMaskedLM

    found = importlib.util.find_spec("rxnmapper")
    assert found is not None and found.origin is not None, "pip install --no-deps rxnmapper"
    folder = Path(found.origin).parent / FOLDER
    config = AlbertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "eager"
    model = AlbertForMaskedLM(config)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")
    missing, _ = model.load_state_dict(state, strict=False)
    assert not [name for name in missing if "position_ids" not in name and "decoder" not in name], missing
    NAMES[:] = (folder / "vocab.txt").read_text().splitlines()
    return model.eval(), {token: number for number, token in enumerate(NAMES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=["16-bit", *METHODS, "NF4 weight-only"])
    parser.add_argument("--every", type=int, default=4, help="building blocks left out; 2 uses all of them")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quantize_reactions.json"))
    options = parser.parse_args()
    table: dict[str, dict[str, object]] = {}
    for method in options.methods:
        model, vocabulary = load()
        train = Reactions(vocabulary, RESTS[:: options.every], TAILS[:: options.every])
        test = Reactions(vocabulary, RESTS[1 :: options.every], TAILS[1 :: options.every])
        row: dict[str, object] = {}
        if method in METHODS:
            form, rank, choices = METHODS[method]

            def calibrate(model: nn.Module = model, train: Reactions = train) -> None:
                for ids, mask in zip(train.shown.split(32), train.attended.split(32), strict=True):
                    model(input_ids=ids, attention_mask=mask)

            quantize(model, form, rank, calibrate, recipe=Recipe(**choices))  # pyright: ignore
            reports = model.quantization_reports
            row["layers"] = len(reports)
            row["mean_layer_error"] = round(sum(r.error for r in reports) / len(reports), 5)
        elif method != "16-bit":
            row["made_by"] = nf4_weights(model, plan_layers(model).names("svdquant"))
        table[method] = figures(model, test) | row
        print(method, table[method], flush=True)
        result = {
            "model": "rxnmapper's albert_heads_8_uspto_all_1310k: 6 linear layers, each run 12 times",
            "reactions": {"calibration": len(train.ids), "test": len(test.ids)},
            "kinds": list(KINDS),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU, shared",
            "versions": {"torch": torch.__version__, "rxnmapper": importlib.metadata.version("rxnmapper")},
            "methods": table,
        }
        write_json(options.output, result)  # after every method: a run that is stopped keeps its rows


if __name__ == "__main__":
    main()
