"""What a body costs over time, beside the landmark network that it is fitted to.

    python -m bench.body [--frames 120] [--landmarks heavy]

In one run and in turns: one pass of the network, and one frame of one person through `bodies.Body` (window, fit and
surface). Milliseconds are CPU time of this process, medians; what counts is the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from stages.backends.blazepose.bodies import Bodies, Body, Observation
from stages.backends.blazepose.landmarks import INPUT, LandmarkNetwork
from stages.backends.blazepose.options import Options
from stages.backends.blazepose.roi import Roi
from stages.body.fit import focal_length
from stages.body.model import F64, load_body
from stages.body.skeleton import JOINT
from stages.body.solve import POINTS

WIDTH, HEIGHT, FPS = 1280, 720, 30.0


def sighting(rest: F64, frame: int, random: np.random.Generator) -> Observation:
    """Somebody who stands there, seen with a centimetre of noise."""
    world = np.zeros((33, 3))
    for number, name, offset in POINTS:
        world[number] = (rest[JOINT[name]] + offset) * [1, -1, -1]
    world += random.normal(0, 0.01, world.shape) + [0.001 * frame, 0, 0]
    image = np.zeros((33, 3), np.float32)
    image[:, :2] = world[:, :2] / (world[:, 2:] + 4) * focal_length(WIDTH, HEIGHT) + [WIDTH / 2, HEIGHT / 2]
    visibility = np.full(33, 0.9, np.float32)
    return Observation(
        np.zeros(4, np.float32), 0.9, image, world.astype(np.float32), visibility, np.zeros(4, np.float32)
    )


def spent(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--landmarks", choices=("heavy", "full"), default="heavy")
    chosen = parser.parse_args()
    options = Options(landmarks=chosen.landmarks)
    network = LandmarkNetwork.load(options.landmarks, options, lambda _detail, _fraction=None: None, masks=True)
    image = np.zeros((INPUT, INPUT, 3), np.uint8)
    square = Roi(INPUT / 2, INPUT / 2, INPUT, 1.0, 0.0)
    model = load_body({})
    body = Body(Bodies(model, WIDTH, HEIGHT, FPS))
    random = np.random.default_rng(1)
    passes, fits = [], []
    for frame in range(chosen.frames):
        seen = sighting(model.rest_joints(np.zeros(10)), frame, random)
        passes.append(spent(lambda: network.look(image, square)))
        fits.append(spent(lambda: body.push(frame, frame / FPS, seen)))  # noqa: B023 - called at once
    fit, one = statistics.median(fits[30:]), statistics.median(passes)
    print(
        f"body {fit:.1f} ms a person and frame; one pass of {chosen.landmarks} {one:.1f} ms; ratio {fit / one:.2f}"
    )


if __name__ == "__main__":
    main()
