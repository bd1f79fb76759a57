"""What the CPU does around the 4D-Humans networks, in milliseconds: as upstream does it, and as Poseward does.

    python -m bench.humans4d_cpu [--rounds 30]

One 1080p frame of noise with four people. Both sides of a line run in turn in this one process, and must give the same
bits. Prints one JSON line for each step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import cv2
import numpy as np

from bench import humans4d_synthetic as synthetic
from bench.humans4d_gpu import picture
from stages.backends.humans4d import crops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="of each step (default: 30)")
    given = parser.parse_args()
    synthetic.stand_in_torchvision_operators()
    torch = import_module("torch")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    frame, found = picture()
    detector, transforms = shell(torch)

    def scaled_upstream() -> Any:
        image = frame.image[:, :, ::-1]
        scaled = detector._resize(transforms.AugInput(image)).apply_image(image)
        return torch.as_tensor(scaled.astype("float32").transpose(2, 0, 1))

    compare("detector's input", scaled_upstream, lambda: detector._input(frame)["image"], given.rounds)
    box = found.extra["padded"][0]
    centre, side = (box[2:] + box[:2]) / 2, float((box[2:] - box[:2]).max())

    def cut_upstream() -> Any:
        cut = cv2.warpAffine(frame.image, crops._transform(centre, side), (crops.SIZE, crops.SIZE))
        rgb = cut[:, :, ::-1].astype(np.float32)
        return ((rgb - crops._MEAN) / crops._STD).astype(np.float32).transpose(2, 0, 1)

    compare("a person's crop", cut_upstream, lambda: crops.track_crop(frame.image, centre, side), given.rounds)


def shell(torch: Any) -> tuple[Any, Any]:
    """A `PersonDetector` without a network: only what it does to frames."""
    detect = import_module("stages.backends.humans4d.detect")
    transforms = import_module("detectron2.data.transforms")
    detector = object.__new__(detect.PersonDetector)
    detector._torch, detector._transforms, detector._rgb = torch, transforms, True
    detector._resize = transforms.AugmentationList([transforms.ResizeShortestEdge(1024, 1024)])
    return detector, transforms


def compare(what: str, upstream: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> None:
    same = np.array_equal(np.asarray(upstream(), np.float32), np.asarray(ours(), np.float32))
    seconds: dict[str, list[float]] = {"upstream": [], "ours": []}
    for _ in range(rounds):
        for name, work in (("upstream", upstream), ("ours", ours)):
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    told = {f"{name}_ms": round(1000 * float(np.median(taken)), 2) for name, taken in seconds.items()}
    print(json.dumps({"what": what, **told, "same_bits": bool(same)}), flush=True)


if __name__ == "__main__":
    main()
