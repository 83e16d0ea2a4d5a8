"""The WebSocket, spoken to as ComfyUI's two example clients do: a real port, nothing but their own steps."""

import json
import uuid

import httpx
import pytest

from .test_comfy_api import graph

connect = pytest.importorskip("websockets.sync.client").connect


def follow(url: str, body: dict, path: str = "/prompt") -> tuple[str, list, list[bytes]]:
    """Queues a graph and listens to its end, as the examples do: its id, messages, binary frames."""
    client = str(uuid.uuid4())
    messages, frames = [], []
    address = f"{url.replace('http', 'ws')}/ws?clientId={client}"
    with connect(address, proxy=None, open_timeout=30) as socket:
        queued = httpx.post(url + path, json=body | {"client_id": client}, timeout=30).json()
        while True:
            said = socket.recv(timeout=30)
            if not isinstance(said, str):
                frames.append((messages[-1]["data"].get("node"), said))
                continue
            messages.append(json.loads(said))
            data = messages[-1]["data"]
            ended = messages[-1]["type"] == "executing" and data["node"] is None
            if ended and data["prompt_id"] == queued["prompt_id"]:
                return queued["prompt_id"], messages, frames


@pytest.mark.timeout(60)
def test_every_end_is_told_with_the_message_that_clients_wait_for(listen) -> None:
    url = listen(seconds=0.05)
    identity, messages, _ = follow(url, {"prompt": graph()})
    kinds = [message["type"] for message in messages]
    assert [kind for kind in kinds if kind.startswith("execut")] == [
        "execution_start", "executing", "executing", "executed", "execution_success", "executing",
    ]  # fmt: skip
    assert "progress" in kinds and kinds[0] == "status"
    assert httpx.get(f"{url}/history/{identity}").json()[identity]["status"]["completed"]

    failing = graph()
    failing["6"]["inputs"]["text"] = "broken"
    identity, messages, _ = follow(url, {"prompt": failing})
    assert "execution_error" in [message["type"] for message in messages]
    assert httpx.get(f"{url}/history/{identity}").json()[identity]["status"]["status_str"] == "error"


@pytest.mark.timeout(60)
def test_pictures_come_through_the_socket_where_the_graph_says_so(listen) -> None:
    nodes = graph()
    del nodes["9"]
    nodes["out"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["8", 0]}}
    _, _, frames = follow(listen(), {"prompt": nodes}, "/api/prompt")
    assert [node for node, _ in frames] == ["out"]
    assert frames[0][1][8:12] == b"\x89PNG"


@pytest.mark.timeout(60)
def test_a_client_may_name_its_graph_itself(listen) -> None:
    url, own = listen(), str(uuid.uuid4())
    identity, messages, _ = follow(url, {"prompt": graph(), "prompt_id": own})
    assert identity == own and all(m["data"].get("prompt_id", own) == own for m in messages)
    outputs = httpx.get(f"{url}/history/{own}").json()[own]["outputs"]
    assert httpx.get(f"{url}/view", params=outputs["9"]["images"][0]).content[:4] == b"\x89PNG"
    assert own in httpx.get(f"{url}/history").json()
    again = httpx.post(f"{url}/prompt", json={"prompt": graph(), "prompt_id": own})
    assert again.status_code == 200 and len(httpx.get(f"{url}/jobs").json()["jobs"]) == 1
    other = httpx.post(f"{url}/prompt", json={"prompt": graph(seed=8), "prompt_id": own})
    assert other.status_code == 422
