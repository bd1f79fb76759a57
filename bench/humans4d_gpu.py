"""Images and crops a second of the 4D-Humans backend beside upstream's own loop, memory, and out-of-memory.

    python -m bench.humans4d_gpu [--device cuda] [--full] [--profile 8gb] [--cap-gb 8] [--seconds 20]

Both sides run in this one process, one after the other, with the same synthetic weights (``--full``: the real sizes;
writes 5.5 GB into a temporary folder). Prints one JSON line a measurement.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench import humans4d_synthetic as synthetic
from stages.backends.humans4d import rle
from stages.backends.humans4d.crops import widen
from stages.backends.humans4d.options import Options
from stages.records import Detections, Frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--cap-gb", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--crops", type=int, default=8)
    given = parser.parse_args()
    synthetic.stand_in_torchvision_operators()
    torch = import_module("torch")
    cuda = given.device.startswith("cuda")
    with tempfile.TemporaryDirectory() as folder:
        values = {**synthetic.write_files(Path(folder), full=given.full), "device": given.device,
                  "profile": given.profile, "crops": given.crops}  # fmt: skip
        if given.dtype:
            values["dtype"] = given.dtype
        if given.cap_gb and cuda:
            total = torch.cuda.get_device_properties(given.device).total_memory
            values["memory_fraction"] = min(1.0, given.cap_gb * 2**30 / total)
        mesh(values, given, torch, cuda)
        detect(values, given, torch, cuda, Path(folder))


def quiet(detail: str, fraction: float | None = None) -> None:
    del detail, fraction


def say(what: str, **values: Any) -> None:
    print(json.dumps({"what": what, **values}), flush=True)


def rate(work: Callable[[], int], seconds: float, torch: Any, cuda: bool) -> tuple[float, int]:
    """Units a second of ``work``, which returns how many it did, after one round of warming up; and the rounds."""
    work()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started, units, rounds = time.perf_counter(), 0, 0
    while time.perf_counter() - started < seconds or rounds < 2:
        units += work()
        rounds += 1
    if cuda:
        torch.cuda.synchronize()
    return units / (time.perf_counter() - started), rounds


def peak(torch: Any, cuda: bool) -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else 0.0


def _stay(module: Any, *_: Any, **__: Any) -> Any:
    """In place of upstream's hard-coded ``.cuda()`` where there is none."""
    return module


def picture() -> tuple[Frame, Detections]:
    """A 1080p frame of noise and four people in it."""
    image = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3)).astype(np.uint8)
    boxes = np.array([[100 + 450 * n, 200, 400 + 450 * n, 1000] for n in range(4)], np.float32)
    mask = np.zeros(image.shape[:2], bool)
    mask[300:900, 300:1500] = True
    extra = {"masks": [rle.encode(mask)] * 4, "size": [1080, 1920], "padded": np.asarray(widen(boxes), np.float32),
             "classes": np.zeros(4, np.int64), "index": np.arange(4)}  # fmt: skip
    return Frame(image, 0, 0.0), Detections(boxes, np.full(4, 0.9, np.float32), extra)


def mesh(values: dict[str, Any], given: argparse.Namespace, torch: Any, cuda: bool) -> None:
    from contextlib import nullcontext

    regressor_of = import_module("stages.backends.humans4d.mesh").HmrRegressor
    network = import_module("stages.backends.humans4d.network")
    options = Options.from_mapping(values)
    frame, found = picture()
    small = nullcontext() if given.full else synthetic.small_vit()
    with small:
        started = time.perf_counter()
        regressor = regressor_of.load(options, quiet)
        say("mesh, load", seconds=round(time.perf_counter() - started, 2))
        speed, rounds = rate(
            lambda: sum(map(len, regressor.regress([frame] * 4, [found] * 4))), given.seconds, torch, cuda
        )
        say("mesh, Poseward (HMR2, texture, appearance)", crops_per_second=round(speed, 2), rounds=rounds,
            peak_gb=peak(torch, cuda))  # fmt: skip
        config = network.read_config(options).clone()
        config.defrost()
        config.MODEL.BBOX_SHAPE = [192, 256]
        if cuda:
            provoke(regressor, frame, found, torch, options.memory_fraction)
        regressor = None
        gc.collect()
        theirs = import_module("hmr2.models").HMR2.load_from_checkpoint(
            values["hmr2_checkpoint"], strict=False, cfg=config, init_renderer=False, map_location=given.device,
            weights_only=False,
        ).eval()  # fmt: skip
    try:
        dataset = import_module("hmr2.datasets.vitdet_dataset").ViTDetDataset
    except ImportError as error:
        say("mesh, upstream's demo loop", skipped=f"{error}; its datasets need more than Poseward does")
        return

    def demo() -> int:
        """The loop of upstream's demo.py over one image (its crops, then HMR2)."""
        loader = torch.utils.data.DataLoader(
            dataset(config, frame.image, found.boxes), batch_size=8, num_workers=0
        )
        for batch in loader:
            with torch.no_grad():
                theirs({"img": batch["img"].to(given.device)})["pred_vertices"].cpu()
        return len(found)

    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        speed, rounds = rate(demo, given.seconds, torch, cuda)
    say("mesh, upstream's demo loop (HMR2 only)", crops_per_second=round(speed, 2), rounds=rounds,
        peak_gb=peak(torch, cuda))  # fmt: skip


def provoke(regressor: Any, frame: Frame, found: Detections, torch: Any, share: float) -> None:
    """Take nearly all memory, so that a pass fails for real, and see it halved and survived."""
    before = regressor.regress([frame], [found])[0]
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    if share:  # no more than this process may have
        free = min(free, int(total * share) - torch.cuda.memory_reserved())
    hog = torch.empty(max(0, free - (64 << 20)), dtype=torch.uint8, device="cuda")
    try:
        after = regressor.regress([frame], [found])[0]
        gap = float(np.abs(before.vertices - after.vertices).max())
        say(
            "mesh, out of memory provoked", survived=True, crops_now=regressor._passes.size, vertices_differ_by=gap
        )
    except torch.cuda.OutOfMemoryError as error:
        say("mesh, out of memory provoked", survived=False, error=str(error)[:120])
    finally:
        del hog
        torch.cuda.empty_cache()


def detect(values: dict[str, Any], given: argparse.Namespace, torch: Any, cuda: bool, folder: Path) -> None:
    module = import_module("stages.backends.humans4d.detect")
    upstream = import_module("phalp.utils.utils_detectron2").DefaultPredictor_Lazy
    frame, _ = picture()
    for kind in ("vitdet", "regnety"):
        config = module.vitdet_config() if kind == "vitdet" else module.regnety_config()
        if not given.full:
            synthetic.small_detector(config, kind)
        weights = folder / f"{kind}.pkl"
        synthetic.write_detector(weights, config)
        options = Options.from_mapping({**values, "detector": kind})
        detector = module.PersonDetector.from_config(config, weights, options, quiet)
        speed, rounds = rate(lambda d=detector: len(d.detect([frame] * 4)), given.seconds, torch, cuda)  # type: ignore[misc]
        say(
            f"detect {kind}, Poseward", images_per_second=round(speed, 3), rounds=rounds, peak_gb=peak(torch, cuda)
        )
        del detector
        gc.collect()
        if not cuda:
            torch.nn.Module.cuda = _stay
        config.train.init_checkpoint = str(weights)
        theirs = upstream(config)

        def one(theirs: Any = theirs) -> int:
            instances = theirs(frame.image)["instances"]
            instances.pred_masks[instances.pred_classes == 0].cpu()
            return 1

        speed, rounds = rate(one, given.seconds, torch, cuda)
        say(
            f"detect {kind}, upstream", images_per_second=round(speed, 3), rounds=rounds, peak_gb=peak(torch, cuda)
        )
        del theirs
        gc.collect()


if __name__ == "__main__":
    main()
