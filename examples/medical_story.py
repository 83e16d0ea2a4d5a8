"""A clinic's folder of X-rays, of which 20 have a label, becomes a classifier behind an HTTP address."""

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewer.core.files import decode_image
from fewer.core.progress import SilentProgress
from fewer.learn import TrainedClassifier
from fewer.learn.command_semi_supervised import SemiSupervisedRequest, semi_supervised_command

DATA = Path(__file__).parents[1] / "data" / "pneumoniamnist" / "pneumoniamnist.npz"


def write_folder(root: Path) -> None:
    """train/{normal,pneumonia}: 10 pictures each; train/unlabelled: 300; test: 50 each."""
    with np.load(DATA) as arrays:
        kept = {}
        for split, count in (("train", 10), ("test", 50)):
            for k, name in enumerate(("normal", "pneumonia")):
                rows = np.flatnonzero(arrays[f"{split}_labels"][:, 0] == k)
                kept[f"{split}/{name}"] = arrays[f"{split}_images"][rows[:count]]
        kept["train/unlabelled"] = arrays["train_images"][100:400]
    for folder, pictures in kept.items():
        (root / folder).mkdir(parents=True)
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(root / folder / f"{number}.png")


def serve(model: TrainedClassifier) -> ThreadingHTTPServer:
    """POST a picture, get the probabilities as JSON."""

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            picture = decode_image(self.rfile.read(min(int(self.headers["Content-Length"]), 2**20)))
            pixels = torch.from_numpy(np.array(picture.convert("L").resize((14, 14))))
            answer = model.predict(pixels[None, :, :, None])[0].tolist()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(dict(zip(model.class_names, answer, strict=True))).encode())

    return ThreadingHTTPServer(("127.0.0.1", 0), Door)


if __name__ == "__main__":
    write_folder(Path("xrays"))
    plan = {"steps": 40, "batch": 10, "rate": 0.1, "image_size": 14, "device": "cpu"}
    request = SemiSupervisedRequest(data=Path("xrays"), output=Path("run"), **plan)  # pyright: ignore
    print(semi_supervised_command(request, SilentProgress())["verdict"])
    door = serve(TrainedClassifier.load("run/model"))
    threading.Thread(target=door.serve_forever, daemon=True).start()
    picture = Path("xrays/test/pneumonia/0.png").read_bytes()
    with urllib.request.urlopen(f"http://127.0.0.1:{door.server_port}", picture) as reply:
        print("a new picture:", reply.read().decode())
