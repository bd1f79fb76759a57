"""Images and crops a second of the 4D-Humans backend beside upstream's own loop, memory, and out-of-memory.

    python -m bench.humans4d_gpu [--device cuda] [--full] [--profile 8gb] [--cap-gb 8] [--seconds 20]

Both sides run in this one process, one after the other, with the same synthetic weights (``--full``: the real sizes;
writes 5.5 GB into a temporary folder; otherwise tiny networks, whose speed says nothing). Prints one JSON line a
measurement. Upstream runs in fp32 with torch's own settings, and without ``--cap-gb``.
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
from stages.backends.humans4d import devices, requirements, rle
from stages.backends.humans4d.crops import widen
from stages.backends.humans4d.options import PROFILES, Options
from stages.records import Detections, Frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--full", action="store_true", help="networks of the real size")
    parser.add_argument("--profile", default="default", choices=list(PROFILES), help="of the options")
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], help="instead of the profile's")
    parser.add_argument("--crops", type=int, help="crops in one pass, instead of the profile's")
    parser.add_argument(
        "--cap-gb", type=float, default=0.0, help="as if the card had so much: the profile's share of it"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="for each measurement (default: 20)")
    given = parser.parse_args()
    synthetic.stand_in_torchvision_operators()
    torch = import_module("torch")
    cuda = given.device.startswith("cuda")
    values: dict[str, Any] = {"device": given.device, "profile": given.profile}
    values |= {name: getattr(given, name) for name in ("dtype", "crops") if getattr(given, name)}
    wrong = [
        *requirements._device(options := Options.from_mapping(values)),
        *requirements._precision("mesh", options),
    ]
    if wrong:
        raise SystemExit(
            f"{wrong[0]} (here: --device cpu runs without a GPU, with --dtype bf16 in the profile 8gb)"
        )
    if given.cap_gb and cuda:
        total = torch.cuda.get_device_properties(given.device).total_memory
        share = (options.memory_fraction or 1.0) * given.cap_gb * 2**30 / total
        values["memory_fraction"] = min(1.0, share)
    with tempfile.TemporaryDirectory() as folder:
        values |= synthetic.write_files(Path(folder), full=given.full)
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


def as_upstream(torch: Any, cuda: bool) -> None:
    """Undo what `devices.prepare` has set: upstream runs with torch's own settings, on the whole card."""
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


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
        as_upstream(torch, cuda)
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
    """Take ever more of the memory until a pass fails for real, and see it halved and survived."""
    before = regressor.regress([frame], [found])[0]
    crops = regressor._passes.size
    for left in (256, 128, 96, 64, 48, 32, 24, 16, 8, 4):
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        if share:  # no more than this process may have
            free = min(free, int(total * share) - torch.cuda.memory_reserved())
        hog = torch.empty(max(0, free - (left << 20)), dtype=torch.uint8, device="cuda")
        try:
            after = regressor.regress([frame], [found])[0]
        except torch.cuda.OutOfMemoryError as error:
            say("mesh, out of memory provoked", left_mb=left, survived=False, error=str(error)[:120])
            break
        finally:
            del hog
        if regressor._passes.size < crops:
            gap = float(np.abs(before.vertices - after.vertices).max())
            say(
                "mesh, out of memory provoked", left_mb=left, survived=True, crops_before=crops,
                crops_now=regressor._passes.size, vertices_differ_by=gap,
            )  # fmt: skip
            break
    else:
        say("mesh, out of memory provoked", survived=None, error="no pass failed, whatever was taken")
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
        devices.prepare(options)
        detector = module.PersonDetector.from_config(config, weights, options, quiet)
        speed, rounds = rate(lambda d=detector: len(d.detect([frame] * 4)), given.seconds, torch, cuda)  # type: ignore[misc]
        say(
            f"detect {kind}, Poseward", images_per_second=round(speed, 3), rounds=rounds, peak_gb=peak(torch, cuda)
        )
        del detector
        gc.collect()
        as_upstream(torch, cuda)
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
        del theirs, one  # which holds it too
        gc.collect()


if __name__ == "__main__":
    main()
