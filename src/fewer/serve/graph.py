"""Reads a ComfyUI text-to-image graph (API format) into a job. Nothing of it is executed."""

from collections.abc import Collection

from fewer.core.errors import ConfigError
from fewer.core.files import MAX_PIXELS

KNOWN_NODES = (
    "KSampler", "CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "VAELoader",
    "CLIPTextEncode", "EmptyLatentImage", "EmptySD3LatentImage", "EmptySanaLatentImage", "VAEDecode",
    "SaveImage", "PreviewImage", "SaveImageWebsocket", "LoraLoader", "LoraLoaderModelOnly",
)  # fmt: skip
MAX_NODES = 200
_SAVES = ("SaveImage", "PreviewImage", "SaveImageWebsocket")
_LORAS = ("LoraLoader", "LoraLoaderModelOnly")
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".sft", ".gguf")


_KINDS: dict[str, tuple[dict[str, str], list[str]]] = {
    "KSampler": (
        {
            "model": "MODEL", "seed": "INT", "steps": "INT", "cfg": "FLOAT", "sampler_name": "=euler",
            "scheduler": "=simple", "positive": "CONDITIONING", "negative": "CONDITIONING",
            "latent_image": "LATENT", "denoise": "FLOAT",
        },
        ["LATENT"],
    ),
    "CheckpointLoaderSimple": ({"ckpt_name": "=models"}, ["MODEL", "CLIP", "VAE"]),
    "UNETLoader": ({"unet_name": "=models", "weight_dtype": "=default"}, ["MODEL"]),
    "CLIPLoader": ({"clip_name": "=models", "type": "=sana"}, ["CLIP"]),
    "VAELoader": ({"vae_name": "=models"}, ["VAE"]),
    "CLIPTextEncode": ({"text": "STRING", "clip": "CLIP"}, ["CONDITIONING"]),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, []),
    "LoraLoader": (
        {
            "model": "MODEL", "clip": "CLIP", "lora_name": "=loras", "strength_model": "FLOAT",
            "strength_clip": "FLOAT",
        },
        ["MODEL", "CLIP"],
    ),
    "LoraLoaderModelOnly": (
        {"model": "MODEL", "lora_name": "=loras", "strength_model": "FLOAT"},
        ["MODEL"],
    ),
}  # fmt: skip
_LATENT = ({"width": "INT", "height": "INT", "batch_size": "INT"}, ["LATENT"])


def node_inputs(name: str, models: list[str], loras: list[str]) -> tuple[dict, list[str]]:
    """A node's inputs and outputs as /object_info tells them; "=" marks a choice among names."""
    shapes = _LATENT if name.startswith("Empty") else _KINDS.get(name, ({"images": "IMAGE"}, []))
    lists = {"=models": models, "=loras": loras}
    inputs = {
        key: [lists.get(kind, [kind[1:]])] if kind.startswith("=") else [kind, {}]
        for key, kind in shapes[0].items()
    }
    return inputs, shapes[1]


class NodeErrors(Exception):
    """Nodes that cannot be used, in ComfyUI's shape."""

    def __init__(self, nodes: dict[str, dict], message: str) -> None:
        super().__init__(message)
        self.nodes = nodes
        self.summary = {"type": "invalid_prompt", "message": message, "details": "", "extra_info": {}}


def read_graph(graph: dict, models: Collection[str], loras: Collection[str] = ()) -> dict:
    """The job of a graph. Raises `NodeErrors` naming each node that is not understood, or `ConfigError`.

    A checkpoint's name that is not among `models` means the default one, so that graphs made elsewhere run.
    """
    if not graph or len(graph) > MAX_NODES:
        raise ConfigError(f"a graph has 1 to {MAX_NODES} nodes, not {len(graph)}")
    _check_nodes(graph)
    sampler_id, sampler = _only(graph, "KSampler")
    save_id = next((key for key, node in graph.items() if node["class_type"] in _SAVES), None)
    if save_id is None:
        raise NodeErrors({}, f"the graph has none of {', '.join(_SAVES)}")
    inputs = sampler["inputs"]
    latent = _follow(graph, inputs.get("latent_image"))
    loader, worn = _model_of(graph, inputs.get("model"), loras)
    asked = (
        loader.get("inputs", {}).get("ckpt_name") or loader.get("inputs", {}).get("unet_name") or "default"
    )
    name = _without_suffix(str(asked))
    if _number(inputs, "denoise", sampler_id, 0, 1, 1) != 1:
        raise _input_error(sampler_id, "denoise", "must be 1: pictures are drawn from noise alone")
    wanted = {
        "prompt": [_text(graph, inputs.get("positive"), sampler_id, "positive")],
        "negative": _text(graph, inputs.get("negative"), sampler_id, "negative", optional=True),
        "model": name if name in models else "default",
        "seed": int(_number(inputs, "seed", sampler_id, 0, 2**64 - 1, 0)) % 2**62,
        "steps": _number(inputs, "steps", sampler_id, 1, 200, 20),
        "guidance": float(_number(inputs, "cfg", sampler_id, 0, 100, 4.5)),
        "count": _number(latent.get("inputs", {}), "batch_size", sampler_id, 1, 10, 1),
    }
    for side in ("width", "height"):
        if side in latent.get("inputs", {}):
            wanted[side] = _number(latent["inputs"], side, sampler_id, 1, 8192, 512)
    if wanted.get("width", 1) * wanted.get("height", 1) > MAX_PIXELS:
        raise _input_error(sampler_id, "latent_image", f"must have at most {MAX_PIXELS:,} pixels")
    if worn:
        wanted["lora"] = worn
    return {
        "generate": wanted, "output_format": "png", "partial_images": 0, "graph": graph,
        "sampler_node": sampler_id, "save_node": save_id,
        "by_socket": graph[save_id]["class_type"] == "SaveImageWebsocket",
    }  # fmt: skip


def _check_nodes(graph: dict) -> None:
    bad = {}
    for key, node in graph.items():
        kind = node.get("class_type") if isinstance(node, dict) else None
        if kind not in KNOWN_NODES or not isinstance(node.get("inputs"), dict):
            problem = {
                "type": "value_not_in_list", "message": f"node type {str(kind)[:60]!r} is not served here",
                "details": f"served: {', '.join(KNOWN_NODES)}", "extra_info": {},
            }  # fmt: skip
            bad[key] = {"errors": [problem], "dependent_outputs": [], "class_type": str(kind)[:60]}
    if bad:
        raise NodeErrors(bad, f"{len(bad)} node(s) cannot be used")


def _only(graph: dict, kind: str) -> tuple[str, dict]:
    found = [(key, node) for key, node in graph.items() if node["class_type"] == kind]
    if len(found) != 1:
        raise NodeErrors({}, f"the graph must have one {kind}, it has {len(found)}")
    return found[0]


def _follow(graph: dict, link: object) -> dict:
    key = str(link[0]) if isinstance(link, list) and link else None
    return graph.get(key, {}) if key is not None else {}


def _model_of(graph: dict, link: object, loras: Collection[str]) -> tuple[dict, list[str]]:
    """The loader behind a chain of adapters, and the adapters in the order in which they are put on."""
    worn: list[str] = []
    node = _follow(graph, link)
    for _ in range(len(graph)):  # a chain that bites its own tail has an end too
        if node.get("class_type") not in _LORAS:
            break
        inputs, key = node["inputs"], str(link[0]) if isinstance(link, list) else ""
        name = _without_suffix(str(inputs.get("lora_name")))
        strength = _number(inputs, "strength_model", key, -100, 100, 1)
        if name not in loras:
            served = ", ".join(loras) or "none"
            raise _input_error(key, "lora_name", f"{name[:60]!r} is not served; served: {served}")
        worn.insert(0, f"{name}:{float(strength):g}")
        link = inputs.get("model")
        node = _follow(graph, link)
    return node, worn


def _without_suffix(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in _WEIGHTS if name.endswith(suffix)), name)


def _text(graph: dict, link: object, sampler: str, name: str, optional: bool = False) -> str:
    text = _follow(graph, link).get("inputs", {}).get("text")
    if isinstance(text, str) and len(text) <= 10_000 and (text or optional):
        return text
    if optional and text is None:
        return ""
    raise _input_error(sampler, name, "must lead to a CLIPTextEncode with a text of 1 to 10,000 characters")


def _number(
    inputs: dict, name: str, node: str, low: float | int, high: float | int, default: float | int
) -> float | int:
    value = inputs.get(name, default)
    good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    whole = isinstance(value, int) or name in ("cfg", "denoise", "strength_model")
    if not good or not whole:
        raise _input_error(node, name, f"must be a number from {low} to {high}")
    return value


def _input_error(node: str, name: str, message: str) -> NodeErrors:
    problem = {
        "type": "invalid_input", "message": f"{name} {message}", "details": name,
        "extra_info": {"input_name": name},
    }  # fmt: skip
    return NodeErrors(
        {node: {"errors": [problem], "dependent_outputs": [], "class_type": ""}}, f"{name} {message}"
    )
