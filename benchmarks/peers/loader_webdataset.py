"""webdataset on the project's own shards: shuffled, decoded and batched in a WebLoader's workers, as it documents.

Its examples decode with Pillow ("pil"); torchvision's decoder and uint8 tensors are faster and used here.
"""

import webdataset

from benchmarks.peers.serve import Batches, PeerSettings, serve
from benchmarks.peers.tensors import augment, decode


def prepare(settings: PeerSettings) -> tuple[Batches, str]:
    tars = sorted(str(path) for path in settings.shards.glob("train-*.tar"))
    transform = augment(settings.crop, settings.size)
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=len(tars))
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(lambda jpeg: transform(decode(jpeg)), int)
        .batched(settings.batch_size, partial=False)
    )
    workers = min(settings.threads, len(tars))  # a worker without a shard is an error there
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True)
    return loader, "uint8 N,3,H,W; torchvision's decoder"


if __name__ == "__main__":
    serve(prepare)
