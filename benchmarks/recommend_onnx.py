"""ONNX parity: largest difference of the encoder, and the same top 10 on 1,000 histories. runs on: cpu"""
# bench: cpu, 1 min:

import tempfile

import numpy as np
import torch
from recommend_record import interactions, record

from fewer.core.device import isolated_randomness
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.splits import leave_last_out
from fewer.recommend.methods import Sizes, build_network
from fewer.recommend.recommender import Recommender
from fewer.recommend.serving.export import export_onnx, run_encoder
from fewer.recommend.training.loop import TrainingPlan, train_network


def main() -> None:
    torch.set_num_threads(1)
    data = interactions("games-core", None)
    split = leave_last_out(data)
    sizes = Sizes(candidates=(5,))
    with isolated_randomness(0):
        network = build_network("automlp", sizes, data.item_count)
    train_network(network, split, TrainingPlan(epochs=1, pairs_per_epoch=20_000), length=50)
    model = Recommender(
        network=network.eval(),
        method="automlp",
        sizes=sizes,
        item_ids=list(data.item_ids),
        popularity=torch.from_numpy(data.popularity()).float(),
        exclude_seen=True,
    )
    batch = Prefixes(split, 50).gather(torch.from_numpy(split.test[:1000]))
    histories = torch.nn.functional.pad(batch.histories, (50 - batch.histories.shape[1], 0))
    with torch.no_grad():
        own = network(histories)
        own_best = (own @ model.vectors()[1:].T).topk(10).indices.numpy()
    with tempfile.TemporaryDirectory() as folder:
        exported = export_onnx(model, folder)
        theirs = torch.from_numpy(run_encoder(exported.encoder, histories.numpy()))
    best = (theirs @ model.vectors()[1:].T).topk(10).indices.numpy()
    record(
        "recommend_onnx",
        {
            "histories": len(histories),
            "largest_difference": float((own - theirs).abs().max()),
            "identical_top_10": int((best == own_best).all(1).sum()),
            "same_set_top_10": int((np.sort(best) == np.sort(own_best)).all(1).sum()),
        },
    )


if __name__ == "__main__":
    main()
