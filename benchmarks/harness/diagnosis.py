"""The bottleneck of a loader: the time of each stage, from the rates with stages left out, and what to change."""

from collections.abc import Mapping

ADVICE = {
    "read": "the disk: keep the shards on a faster one, or let the page cache hold them",
    "decode": "decoding: more threads if there are cores, a GPU's decoder (dali), smaller images, restart markers "
    "(--restarts), or raw shards (--encoding raw), which need none",
    "copy": "copying raw pixels: more threads if there are cores, up to the memory's bandwidth",
    "crop and batch": "cropping, resizing and Python: random crops of 256x256 shards cost least",
    "normalise": "making floats of pixels: a GPU does it after the copy, at no cost to the host",
    "training": "the network: the loader is fast enough",
}


def diagnose(rates: Mapping[str, float], raw: bool = False) -> list[str]:
    """Describe the time of each stage and the bottleneck in lines of text.

    ``rates`` in images/s: read, decode (whole images; a copy of ``raw`` pixels), pixels (a loader's uint8 batches),
    batches (its normalised ones), training, and lock (a loader that decodes nothing) if it was measured. A loader that
    decodes only parts of images may take less time than ``decode``.
    """
    microseconds = {name: 1e6 / rate for name, rate in rates.items()}
    after_reading = max(0.0, microseconds["pixels"] - microseconds["read"])
    decode = min(microseconds["decode"], after_reading)
    stages = {
        "read": microseconds["read"],
        "copy" if raw else "decode": decode,
        "crop and batch": after_reading - decode,
        "normalise": max(0.0, microseconds["batches"] - microseconds["pixels"]),
    }
    total = microseconds["batches"]
    shares = ", ".join(f"{name} {time:.0f} us ({time / total:.0%})" for name, time in stages.items())
    slowest = max(stages, key=lambda name: stages[name])
    bound = "training" if rates["training"] < rates["batches"] else slowest
    return [
        f"An image takes {total:.0f} us of all threads together: {shares}.",
        *([f"Python's lock limits a process to {rates['lock']:.0f} images/s on any cores."] if "lock" in rates else []),
        f"The network takes {rates['training']:.0f} images/s, the loader makes {rates['batches']:.0f}.",
        f"What bounds training here is {ADVICE[bound]}.",
        *([f"Next would be {ADVICE[slowest]}."] if bound == "training" else []),
    ]
