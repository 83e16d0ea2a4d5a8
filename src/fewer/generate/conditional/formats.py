"""Files of class-conditional networks: our folders, and public weights of DiT and U-ViT by name."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json, write_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.class_pictures import CLASS_NAME
from fewer.generate.conditional.bricks import make_identity
from fewer.generate.conditional.build import build, build_static, params_of, plan_of
from fewer.generate.conditional.cat import CaT
from fewer.generate.conditional.condition import (
    ConditionAware,
    ModelCondition,
    condition_aware,
)
from fewer.generate.conditional.dit import DiT
from fewer.generate.conditional.naming import file_tensors
from fewer.generate.conditional.params import ClassConditionalParams
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.conditional.u_vit import UViT

WEIGHTS = "diffusion_pytorch_model.safetensors"
_AT_WILL = re.compile(r"(.*\.dwconv|final_layer)\.(weight|bias)")
"""Convolutions that not every published network has: depthwise ones, and the last of U-ViT."""


def save_folder(model: nn.Module, folder: Path, class_names: tuple[str, ...]) -> None:
    """Writes config.json and the weights. Static tensors keep the public names."""
    plan = plan_of(model)
    tensors = file_tensors(model) if isinstance(model, ConditionAware) else model.state_dict()
    write_tensors(Path(folder) / WEIGHTS, tensors)
    write_json(
        Path(folder) / "config.json",
        {
            "_class_name": CLASS_NAME,
            "params": asdict(params_of(model)),
            "plan": asdict(plan) if plan else None,
            "class_names": list(class_names),
        },
    )


def load_folder(folder: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """(network, class names). Raises `FileError` where config and weights don't fit, `ConfigError`."""
    config = read_json(Path(folder) / "config.json")
    if config.get("_class_name") != CLASS_NAME:
        raise FileError(f"{Path(folder).name!r} holds no class-conditional network of ours")
    if "quantization_config" in config:
        raise ConfigError(
            f"{Path(folder).name!r} is quantized; draw it with fewer generate --class-name, or open it "
            f"from Python with fewer.quantize.load_model"
        )
    names = config.get("class_names")
    params, plan = _described(config)
    if not isinstance(names, list) or len(names) != params.classes:
        raise FileError(f"config.json names {len(names or [])} classes, the network has {params.classes}")
    _compare(params, plan, Path(folder) / WEIGHTS)
    model = build(params, plan, seed=0)
    tensors = read_tensors(Path(folder) / WEIGHTS)
    with torch.no_grad():
        for name, tensor in _own_tensors(model).items():  # state dicts share memory with the module
            tensor.copy_(tensors[name])
    return model.eval(), tuple(str(name) for name in names)


def build_from_config(config: Mapping[str, object]) -> nn.Module:
    """The network that a folder's config.json describes, with new weights. Raises `ConfigError`."""
    return build(*_described(config), seed=0)


def _described(config: Mapping[str, object]) -> tuple[ClassConditionalParams, ConditionPlan | None]:
    described, plan = config.get("params"), config.get("plan")
    if not isinstance(described, dict):
        raise FileError("config.json has no params, a table: it describes no network")
    params = validate(ClassConditionalParams, described).check()
    if isinstance(plan, dict) and isinstance(plan.get("targets"), list):  # JSON has no tuples
        plan = {**plan, "targets": tuple(plan["targets"])}
    return params, None if plan is None else validate(ConditionPlan, plan)


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    return file_tensors(model) if isinstance(model, ConditionAware) else model.state_dict()


def _compare(params: ClassConditionalParams, plan: ConditionPlan | None, file: Path) -> None:
    """Raises `FileError` for weights of another network, before memory is taken for the one described."""
    found, _ = tensor_header(file)
    if params.depth > len(found):  # no need to build so many blocks to see that it cannot be
        raise FileError(f"{file.name!r} holds {len(found)} tensors, too few for {params.depth} blocks")
    with torch.device("meta"):
        model: nn.Module = build_static(params)
        if plan is not None:
            model = condition_aware(model, plan, ModelCondition(), params.width)
    own = {name: tuple(tensor.shape) for name, tensor in _own_tensors(model).items()}
    wrong = [name for name in own.keys() & found.keys() if own[name] != found[name].shape]
    wrong += own.keys() ^ found.keys()
    if wrong:
        raise FileError(f"{file.name!r} does not fit config.json: {', '.join(sorted(wrong)[:5])}")


def load_public(params: ClassConditionalParams, file: Path) -> DiT | UViT | CaT:
    """A network with published weights: facebookresearch/DiT, diffusers' DiTTransformer2DModel, baofff/U-ViT,
    or efficientvit's copy of it.

    A depthwise convolution that the file does not have starts as the identity, and so does U-ViT's last one
    (its ImageNet networks have none): the network computes what its authors' did. Raises `FileError` naming
    tensors that are missing, unknown or of another shape.
    """
    model = build_static(params)
    tensors = public_names(read_tensors(file))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and _AT_WILL.fullmatch(f"{name}.weight"):
            make_identity(module)
    own = model.state_dict()
    # DiT's positions are computed; U-ViT's are learned, and a file without them is not whole.
    computed = {name for name, _ in model.named_buffers()}
    at_will = {name for name in own if _AT_WILL.fullmatch(name) and not _siblings(name) & tensors.keys()}
    missing = [name for name in own if name not in tensors and name not in computed | at_will]
    odd = [n for n, t in tensors.items() if n not in own or own[n].shape != t.shape]
    if missing or odd:
        raise FileError(
            f"{file.name!r} does not fit this {params.architecture}: missing {sorted(missing)[:5]}, "
            f"unknown or of another shape {sorted(odd)[:5]}"
        )
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def _siblings(name: str) -> set[str]:
    """Weight and bias of the layer that this tensor belongs to."""
    stem = name.rpartition(".")[0]
    return {f"{stem}.weight", f"{stem}.bias"}


_DIFFUSERS = {
    r"pos_embed\.proj": "x_embedder.proj",
    r"transformer_blocks\.(\d+)\.attn1\.to_out\.0": r"blocks.\1.attn.proj",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"blocks.\1.mlp.fc1",
    r"transformer_blocks\.(\d+)\.ff\.net\.2": r"blocks.\1.mlp.fc2",
    r"transformer_blocks\.(\d+)\.norm1\.linear": r"blocks.\1.adaLN_modulation.1",
    r"proj_out_1": "final_layer.adaLN_modulation.1",
    r"proj_out_2": "final_layer.linear",
    # Every block holds a copy of the embedders; the first one speaks for all.
    r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table": "y_embedder.embedding_table",
}


def public_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names our modules have; diffusers' separate queries, keys and values are joined."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        if name.startswith("label_emb.embedding_table."):  # efficientvit's U-ViT
            name = f"label_emb.{name.rpartition('.')[2]}"
        stem, _, kind = name.rpartition(".")
        if block := re.fullmatch(r"transformer_blocks\.(\d+)\.attn1\.to_q", stem):
            parts = [tensors[f"transformer_blocks.{block[1]}.attn1.to_{which}.{kind}"] for which in "qkv"]
            result[f"blocks.{block[1]}.attn.qkv.{kind}"] = torch.cat(parts)
            continue
        if re.fullmatch(r"transformer_blocks\.\d+\.(attn1\.to_[kv]|norm1\.emb\..+)", stem) and not re.match(
            r"transformer_blocks\.0\.norm1\.emb", stem
        ):
            continue
        for theirs, ours in _DIFFUSERS.items():
            if re.fullmatch(theirs, stem):
                name = f"{re.sub(theirs, ours, stem)}.{kind}"
                break
        result[name] = tensor
    return result
