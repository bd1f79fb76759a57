"""What it costs to bring a 1080p frame from one process to another, against copying it once.

    python -m bench.transport [--frames 300] [--rounds 3]

In one run, in turn: a plain copy within one process (the limit), the ring with its pipes and messages as the
stages use them, ZeroMQ carrying the pixels, and `multiprocessing.Queue`. Every receiver touches each page of
the frame, and gives the sender leave to go on when it is done; four frames are in flight. Beside the time on
the clock stands the computing time of both processes together, which is what other stages cannot use.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq
from rich.console import Console
from rich.table import Table

from stages.transport.pipes import Receiver, Sender
from stages.transport.ring import Ring
from stages.transport.wire import FrameMessage, pack, unpack

SHAPE = (1080, 1920, 3)
IN_FLIGHT = 4
PAGE = 4096

# Children are forked before this process has any ZeroMQ context, and make their own.
_fork = multiprocessing.get_context("fork")

Image = npt.NDArray[np.uint8]
Cost = tuple[float, float]
"""Milliseconds a frame: on the clock, and of computing in both processes."""


def touch(image: Image) -> int:
    """Read one byte of every page, so that a frame which has not really arrived costs what it costs."""
    return int(image.reshape(-1)[::PAGE].sum())


def copied(image: Image, frames: int) -> Cost:
    """The limit: one copy into each of as many buffers as the ring has slots."""
    targets = [np.zeros_like(image) for _ in range(IN_FLIGHT)]
    started, busy = time.perf_counter(), time.process_time()
    for number in range(frames):
        np.copyto(targets[number % IN_FLIGHT], image)
        touch(targets[number % IN_FLIGHT])
    return _milliseconds(time.perf_counter() - started, time.process_time() - busy, frames)


def through(
    child: Callable[..., None], parent: Callable[..., None], arguments: tuple[Any, ...], image: Image, frames: int
) -> Cost:
    """Run ``child`` in a process of its own and ``parent`` here, and time the frames between them."""
    ours, theirs = _fork.Pipe()
    process = _fork.Process(target=_timed_child, args=(theirs, child, arguments, frames))
    process.start()
    ours.recv()
    started, busy = time.perf_counter(), time.process_time()
    parent(*arguments, image, frames)
    wall, busy = time.perf_counter() - started, time.process_time() - busy
    busy += ours.recv()
    process.join()
    return _milliseconds(wall, busy, frames)


def _timed_child(report: Connection, child: Callable[..., None], arguments: tuple[Any, ...], frames: int) -> None:
    report.send("ready")
    busy = time.process_time()
    child(*arguments, frames)
    report.send(time.process_time() - busy)


def _milliseconds(wall: float, busy: float, frames: int) -> Cost:
    return wall / frames * 1000, busy / frames * 1000


# -- ring and pipes --------------------------------------------------------------------------------------


def ring_child(ring_fd: int, folder: Path, frames: int) -> None:
    ring, context = Ring.attach(ring_fd), zmq.Context[Any]()
    receiver = Receiver(context, folder / "frames.pipe", 2)
    sender = Sender(context, [folder / "done.pipe"], IN_FLIGHT)
    for _ in range(frames):
        message = unpack(_take(receiver))
        assert isinstance(message, FrameMessage)
        touch(ring.view(message.slot, message.generation))
        assert ring.check(message.slot, message.generation)
        _give(sender, bytes([message.slot]))
    receiver.close()
    sender.close(linger=10_000)
    context.term()


def ring_parent(ring_fd: int, folder: Path, image: Image, frames: int) -> None:
    ring, context = Ring.attach(ring_fd), zmq.Context[Any]()
    receiver = Receiver(context, folder / "done.pipe", IN_FLIGHT)
    sender = Sender(context, [folder / "frames.pipe"], 2)
    free = list(range(ring.slots))
    for number in range(frames):
        slot = free.pop() if free else _take(receiver)[0]
        generation = ring.write(slot, 1, number, number / 30, image)
        _give(sender, pack(FrameMessage(1, 1, number, number / 30, slot, generation, SHAPE[1], SHAPE[0])))
    for _ in range(min(ring.slots, frames)):
        _take(receiver)
    context.destroy(linger=0)


def _take(receiver: Receiver) -> bytes:
    while (data := receiver.receive()) is None:
        receiver.lanes[1].poll(1000)
    return data


def _give(sender: Sender, data: bytes) -> None:
    while not sender.send(data):
        sender.lanes[1].poll(1000, zmq.POLLOUT)


# -- ZeroMQ by value -------------------------------------------------------------------------------------


def value_child(folder: Path, frames: int) -> None:
    context = zmq.Context[Any]()
    frames_in, done = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    frames_in.connect(f"ipc://{folder}/frames")
    done.connect(f"ipc://{folder}/done")
    for _ in range(frames):
        touch(np.frombuffer(frames_in.recv(copy=False).buffer, np.uint8).reshape(SHAPE))
        done.send(b"")
    frames_in.close()
    done.close(linger=10_000)
    context.term()


def value_parent(folder: Path, image: Image, frames: int) -> None:
    context = zmq.Context[Any]()
    frames_out, done = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    frames_out.bind(f"ipc://{folder}/frames")
    done.bind(f"ipc://{folder}/done")
    for number in range(frames):
        if number >= IN_FLIGHT:
            done.recv()
        frames_out.send(image.data, copy=False)
    for _ in range(min(IN_FLIGHT, frames)):
        done.recv()
    context.destroy(linger=0)


# -- multiprocessing.Queue -------------------------------------------------------------------------------


def queue_child(images: Any, done: Any, frames: int) -> None:
    for _ in range(frames):
        touch(images.get())
        done.put(None)
    done.close()
    done.join_thread()


def queue_parent(images: Any, done: Any, image: Image, frames: int) -> None:
    for number in range(frames):
        if number >= IN_FLIGHT:
            done.get()
        images.put(image)
    for _ in range(min(IN_FLIGHT, frames)):
        done.get()


# -- the whole -------------------------------------------------------------------------------------------


def measure(frames: int) -> dict[str, Cost]:
    """One round of all four; milliseconds a frame."""
    image = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    ring = Ring.create(IN_FLIGHT, image.nbytes)
    with tempfile.TemporaryDirectory(prefix="poseward-bench-") as name:
        folder = Path(name)
        costs = {
            "plain copy, one process": copied(image, frames),
            "ring + pipes": through(ring_child, ring_parent, (ring.fd, folder), image, frames),
            "ZeroMQ by value": through(value_child, value_parent, (folder,), image, frames),
            "multiprocessing.Queue": through(
                queue_child, queue_parent, (_fork.Queue(), _fork.Queue()), image, frames
            ),
        }
    ring.close()
    return costs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    measure(20)  # warm up
    rounds = [measure(options.frames) for _ in range(options.rounds)]
    table = Table(title=f"1920x1080x3 bytes, {options.frames} frames, median of {options.rounds} rounds")
    for column in ("", "ms a frame", "x copy", "CPU ms a frame", "x copy"):
        table.add_column(column, justify="right" if column else "left")
    limit = [statistics.median(r["plain copy, one process"][kind] for r in rounds) for kind in (0, 1)]
    for name in rounds[0]:
        wall, busy = (statistics.median(r[name][kind] for r in rounds) for kind in (0, 1))
        cells = (f"{wall:.2f}", f"{wall / limit[0]:.2f}", f"{busy:.2f}", f"{busy / limit[1]:.2f}")
        table.add_row(name, *cells)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
