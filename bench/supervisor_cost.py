"""What the watchdog itself costs: CPU share and memory, idle and under messages, and the time of a start.

    python -m bench.supervisor_cost [--seconds 10] [--children 4]

The children do nothing (idle), or each send ``--rate`` messages a second (working), so that what is measured is the
supervisor's loop and not their work. Start times are from the request to `Ready`, by exec and
by fork server; the children import only the standard library, pyzmq and msgpack.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import psutil

from supervisor import events as ev
from supervisor.child import Link
from supervisor.runtime import make_runtime
from supervisor.spec import ProcessSpec
from supervisor.supervisor import Supervisor


def child(link: Link, config: dict[str, Any]) -> None:
    """Entry of the measured children."""
    link.ready()
    rate = config["rate"]
    while not link.stopping:
        link.receive(1 / rate if rate else 1.0)
        if rate:
            with link.working({"work": 1}):
                link.send("worked", {"count": 1})


class Bench:
    def __init__(self, children: int, rate: float, preload: bool) -> None:
        self.events: list[ev.Event] = []
        self.supervisor = Supervisor(make_runtime(), self.events.append)
        self.names = [f"c{number}" for number in range(children)]
        modules = ("bench.supervisor_cost",) if preload else ()
        for name in self.names:
            spec = ProcessSpec(name, "bench.supervisor_cost:child", config={"rate": rate}, preload=modules)
            self.supervisor.add(spec)
        self.supervisor.start()
        self.wait_ready(children)

    def wait_ready(self, times: int) -> None:
        while sum(isinstance(event, ev.Ready) for event in self.events) < times:
            self.supervisor.step(0.1)

    def share(self, seconds: float) -> tuple[float, float, float, int]:
        """CPU share of the supervisor and of one child's link, in percent of a core; turns a second; messages."""
        pids = [state.pid for state in self.supervisor.states().values() if state.pid]
        self.events.clear()
        turns = 0
        before, began = _cpu(os.getpid()), time.monotonic()
        theirs = sum(map(_cpu, pids))
        while time.monotonic() - began < seconds:
            self.supervisor.step(0.5)
            turns += 1
        took = time.monotonic() - began
        link = (sum(map(_cpu, pids)) - theirs) / len(pids)
        messages = sum(isinstance(event, ev.Message) for event in self.events)
        return 100 * (_cpu(os.getpid()) - before) / took, 100 * link / took, turns / took, messages

    def restarts(self, times: int) -> list[float]:
        """Seconds that starts took, by the supervisor's own account."""
        took: list[float] = []
        for _ in range(times):
            self.events.clear()
            self.supervisor.restart(self.names[0], "bench")
            self.wait_ready(1)
            took.extend(event.startup_seconds for event in self.events if isinstance(event, ev.Ready))
        return took


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--children", type=int, default=4)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--starts", type=int, default=20)
    arguments = parser.parse_args()
    for label, rate in (("idle", 0.0), ("working", arguments.rate)):
        bench = Bench(arguments.children, rate, preload=True)
        own, link, turns, messages = bench.share(arguments.seconds)
        rss = psutil.Process().memory_info().rss >> 20
        bench.supervisor.stop(2.0)
        print(
            f"{label:8s} {arguments.children} children: supervisor {own:.2f} % of a core, {turns:.0f} turns/s, "
            f"{messages / arguments.seconds:.0f} messages/s, {rss} MB resident; one child's link {link:.2f} %"
        )
    for label, preload in (("exec", False), ("fork", True)):
        bench = Bench(1, 0.0, preload)
        took = sorted(bench.restarts(arguments.starts))
        bench.supervisor.stop(2.0)
        print(
            f"start by {label}: median {1000 * statistics.median(took):.0f} ms, slowest {1000 * took[-1]:.0f} ms"
        )


if __name__ == "__main__":
    main()
