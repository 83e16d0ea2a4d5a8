"""Reads a ComfyUI text-to-image graph (API format) into a job. Nothing of it is executed."""

from fewer.core.errors import ConfigError

KNOWN_NODES = (
    "KSampler", "CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "VAELoader",
    "CLIPTextEncode", "EmptyLatentImage", "EmptySD3LatentImage", "EmptySanaLatentImage", "VAEDecode",
    "SaveImage", "PreviewImage",
)  # fmt: skip
MAX_NODES = 200


class NodeErrors(Exception):
    """Nodes that cannot be used, in ComfyUI's shape."""

    def __init__(self, nodes: dict[str, dict], message: str) -> None:
        super().__init__(message)
        self.nodes = nodes
        self.summary = {"type": "invalid_prompt", "message": message, "details": "", "extra_info": {}}


def read_graph(graph: dict, models: dict[str, str]) -> dict:
    """The job of a graph. Raises `NodeErrors` naming each node that is not understood, or `ConfigError`."""
    if not graph or len(graph) > MAX_NODES:
        raise ConfigError(f"a graph has 1 to {MAX_NODES} nodes, not {len(graph)}")
    _check_nodes(graph)
    sampler_id, sampler = _only(graph, "KSampler")
    save_id = next(
        (key for key, node in graph.items() if node["class_type"] in ("SaveImage", "PreviewImage")), None
    )
    if save_id is None:
        raise NodeErrors({}, "the graph has no SaveImage or PreviewImage")
    inputs = sampler["inputs"]
    latent = _follow(graph, inputs.get("latent_image"))
    loader = _follow(graph, inputs.get("model"))
    asked = (
        loader.get("inputs", {}).get("ckpt_name") or loader.get("inputs", {}).get("unet_name") or "default"
    )
    name = str(asked).removesuffix(".safetensors")
    wanted = {
        "prompt": [_text(graph, inputs.get("positive"), sampler_id, "positive")],
        "negative": _text(graph, inputs.get("negative"), sampler_id, "negative", optional=True),
        "model": name if name in models else "default",
        "seed": _number(inputs, "seed", sampler_id, 0, 2**63 - 1, 0),
        "steps": _number(inputs, "steps", sampler_id, 1, 200, 20),
        "guidance": float(_number(inputs, "cfg", sampler_id, 0, 100, 4.5)),
        "count": _number(latent.get("inputs", {}), "batch_size", sampler_id, 1, 10, 1),
    }
    for side in ("width", "height"):
        if side in latent.get("inputs", {}):
            wanted[side] = _number(latent["inputs"], side, sampler_id, 1, 8192, 512)
    return {
        "generate": wanted, "output_format": "png", "partial_images": 0, "graph": graph,
        "sampler_node": sampler_id, "save_node": save_id,
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
    whole = isinstance(value, int) or name == "cfg"
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
