import pytest

from tests.serve.test_queue_api import wait_for


def graph(**sampler: object) -> dict:
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 7, "steps": 2, "cfg": 4, "sampler_name": "euler", "scheduler": "simple",
                "denoise": 1, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0],
                "latent_image": ["5", 0], **sampler,
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "default.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 32, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    }  # fmt: skip


def test_a_headless_client_runs_its_graph(serve) -> None:
    client = serve(seconds=0.05)
    with client.websocket_connect("/ws?clientId=me", headers={"host": "127.0.0.1"}) as socket:
        assert socket.receive_json()["type"] == "status"
        queued = client.post("/prompt", json={"prompt": graph(), "client_id": "me"}).json()
        assert queued["node_errors"] == {} and queued["number"] == 0
        kinds, images = [], []
        while True:
            message = socket.receive_json()
            kinds.append(message["type"])
            assert message["data"]["prompt_id"] == queued["prompt_id"]
            if message["type"] == "executed":
                images = message["data"]["output"]["images"]
            if message["type"] == "executing" and message["data"]["node"] is None:
                break
    assert kinds[0] == "execution_start" and "progress" in kinds and "executed" in kinds
    history = client.get(f"/history/{queued['prompt_id']}").json()[queued["prompt_id"]]
    assert history["outputs"]["9"]["images"] == images and history["status"]["completed"]
    assert client.get("/view", params=images[0]).content[:4] == b"\x89PNG"


def test_queue_interrupt_and_clear(serve) -> None:
    client = serve(seconds=0.2)
    first, second = (
        client.post("/prompt", json={"prompt": graph(steps=100)}).json()["prompt_id"] for _ in range(2)
    )
    wait_for(client, first, "running")
    queue = client.get("/queue").json()
    assert [row[1] for row in queue["queue_running"]] == [first]
    assert [row[1] for row in queue["queue_pending"]] == [second]
    client.post("/queue", json={"delete": [second]})
    client.post("/interrupt")
    wait_for(client, second, "cancelled")
    wait_for(client, first, "cancelled")


@pytest.mark.parametrize(
    "change",
    [
        {"3": {"class_type": "Evil", "inputs": {}}},
        {"3": 7},
        {"3": {"class_type": "KSampler", "inputs": {"positive": ["99", 0]}}},
        {"9": {"class_type": "VAEDecode", "inputs": {}}},
        {"5": {"class_type": "EmptyLatentImage", "inputs": {"width": -3}}},
        {"5": {"class_type": "EmptyLatentImage", "inputs": {"width": 8192, "height": 8192}}},
        {"3": graph(denoise=0.5)["3"]},
        {"4": {"class_type": "LoraLoader", "inputs": {"lora_name": "x", "model": ["4", 0]}}},
    ],
)
def test_graphs_that_cannot_be_run_say_why(serve, change: dict) -> None:
    answer = serve(start=False).post("/prompt", json={"prompt": graph() | change})
    assert answer.status_code == 400
    body = answer.json()
    assert "node_errors" in body and body["error"]["message"]


def test_unknown_nodes_are_named(serve) -> None:
    change = {"3": {"class_type": "Evil", "inputs": {}}}
    body = serve(start=False).post("/prompt", json={"prompt": graph() | change}).json()
    assert "Evil" in body["node_errors"]["3"]["errors"][0]["message"]


def test_clients_that_ask_around_get_answers(serve) -> None:
    client = serve(start=False)
    assert "KSampler" in client.get("/object_info").json()
    assert client.get("/system_stats").status_code == 200
    assert client.get("/history/unknown").json() == {}
    assert client.get("/view?filename=a_b").status_code == 404


def test_what_a_websocket_client_says_is_ignored_and_half_characters_are_no_crash(serve) -> None:
    client = serve()
    with client.websocket_connect("/ws?clientId=me", headers={"host": "127.0.0.1"}) as socket:
        assert socket.receive_json()["type"] == "status"
        socket.send_bytes(b"\x00\xff")
        socket.send_text("x" * 10_000)
        raw = b'{"prompt": {"1": {"class_type": "' + rb"\ud800" + b'"}}}'
        assert client.post("/prompt", content=raw).status_code == 400
        identity = client.post("/prompt", json={"prompt": graph(), "client_id": "me"}).json()["prompt_id"]
        while (message := socket.receive_json())["type"] != "executed":
            pass
    assert message["data"]["prompt_id"] == identity
