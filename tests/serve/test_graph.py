import pytest

from fewer.core.errors import ConfigError
from fewer.serve.graph import NodeErrors, read_graph
from tests.serve.test_comfy_api import graph


def test_a_graph_says_what_to_draw() -> None:
    job = read_graph(graph(), {"default": "default"})
    assert job["generate"] == {
        "prompt": ["a cat"], "negative": "", "model": "default", "seed": 7, "steps": 2, "guidance": 4.0,
        "count": 1, "width": 64, "height": 32,
    }  # fmt: skip
    assert (job["sampler_node"], job["save_node"]) == ("3", "9")


@pytest.mark.parametrize("value", [-1, True, "7", None, 1.5, float("nan")])
def test_numbers_are_checked(value: object) -> None:
    with pytest.raises(NodeErrors, match="seed"):
        read_graph(graph(seed=value), {})


def test_empty_and_endless_graphs_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 to 200"):
        read_graph({}, {})
    with pytest.raises(ConfigError, match="1 to 200"):
        read_graph({str(n): {} for n in range(201)}, {})
