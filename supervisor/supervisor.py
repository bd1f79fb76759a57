"""The watchdog: starts processes, watches two clocks for each, reads their last words, starts them again.

One loop in one thread, run in turns by its owner (`Supervisor.step`). Signals, sockets and descriptors only
set marks; decisions are taken in one place, a turn later at most.
"""

from __future__ import annotations

import errno
import math
import os
import random
import time
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import msgpack
import zmq

from supervisor import events as ev
from supervisor.events import ExitKind
from supervisor.exits import naming_interpreter
from supervisor.history import MemoryHistory
from supervisor.janitor import Janitor
from supervisor.memory import DeviceGate, DeviceProbe, Nvml
from supervisor.policy import RestartTracker
from supervisor.process import ChildState, Life, Managed
from supervisor.room import Room
from supervisor.runtime import RuntimePathError, remove_runtime, restore_runtime
from supervisor.spawn import Places, Spawner
from supervisor.spec import ProcessSpec

CONTROL_NAME = "control.sock"
LATENESS = 1.0
"""A turn that comes this much later than asked means that the supervisor itself did not run: it forgives."""
HEALTHY_AFTER = 5.0
"""Seconds of work after which a process counts as healthy, and its backoff starts anew."""
STUCK_AFTER = 10.0
"""Seconds after SIGKILL for a process to be gone."""
STUCK = "killed, but the kernel does not let go of it: it waits for a disk, a network folder or a driver"
MOST_MESSAGES = 1000
"""Messages taken in one turn, so that a chatty child cannot hold up the others."""
LAST_WORDS = 5
"""Milliseconds that a dead child's last messages get to arrive."""
BUSY = 0.05
"""Seconds until a fork server that could not take a request is asked again."""
NOT_STARTABLE = {errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP}


class Supervisor:
    """Runs processes described by `ProcessSpec` and keeps them running.

    Args:
        runtime: an existing private folder for the control socket, see `supervisor.runtime.make_runtime`.
        on_event: gets every `Event`, from inside `step`.
        clock: monotonic seconds.
        rng: source of the backoff's jitter.
        probe: looks at GPU memory.
        wake: a descriptor of the owner's; a turn ends at once when it can be read.
    """

    def __init__(
        self,
        runtime: Path,
        on_event: Callable[[ev.Event], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        probe: DeviceProbe | None = None,
        wake: int | None = None,
    ) -> None:
        self._runtime = runtime
        self._wake = [] if wake is None else [wake]
        self._on_event = on_event
        self._clock = clock
        self._rng = rng or random.Random()
        self._room = Room(DeviceGate(probe or Nvml()), on_event, clock)
        self._managed: dict[str, Managed] = {}
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.bind(f"ipc://{runtime / CONTROL_NAME}")
        lifeline_read, self._lifeline = os.pipe()
        self._spawner = Spawner(Places(str(runtime / CONTROL_NAME), lifeline_read))
        self._lifeline_read = lifeline_read
        self._janitor = Janitor(runtime)
        self._history = MemoryHistory(clock)
        self._started = False
        self._stopping = False
        self._closed = False
        self._turn_ended = clock()

    # -- what the owner calls ------------------------------------------------------------------------------

    def add(self, spec: ProcessSpec) -> None:
        """Add a process; it starts with `start`, or in the next turn if that has been called."""
        if spec.name in self._managed:
            raise ValueError(f"there is a process {spec.name!r} already")
        managed = Managed(spec, RestartTracker(spec.restart, self._clock, self._rng))
        managed.due = self._clock() if self._started else None
        self._managed[spec.name] = managed

    def start(self) -> None:
        """Start everything, in the order of `add`."""
        self._started = True
        self._turn_ended = self._clock()
        for managed in self._managed.values():
            managed.due = self._clock()
        self._start_due()

    def step(self, timeout: float) -> None:
        """One turn: wait at most ``timeout`` seconds for something to happen, then deal with all that has."""
        began = self._clock()
        self._forgive(began - self._turn_ended)
        timeout = min([timeout, *(max(0.0, m.due - began) for m in self._managed.values() if m.due is not None)])
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        for fd in [*self._wake, *self._descriptors()]:
            poller.register(fd, zmq.POLLIN)
        ready = {found for found, _ in poller.poll(math.ceil(timeout * 1000))}
        self._forgive(self._clock() - began - timeout)
        self._spawner.answers()
        self._hear()
        for managed in self._managed.values():
            if managed.life is not None:
                self._look_after(managed, managed.life, ready)
        if not self._stopping:
            self._start_due()
            self._room.look(self._managed.values())
            self._remember_memory()
        self._turn_ended = self._clock()

    def send(self, name: str, kind: str, payload: dict[str, Any]) -> bool:
        """A message to a child; False if it is not connected at the moment."""
        life = self._managed[name].life
        if life is None or life.identity is None:
            return False
        try:
            data = msgpack.packb([kind, payload], unicode_errors="surrogateescape")  # names of files may need it
            self._router.send_multipart([life.identity, data], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def restart(self, name: str, reason: str) -> None:
        """Planned: ask it to leave, insist after the grace, start it again at once."""
        self._ask_to_leave(self._managed[name], ExitKind.RECYCLED, reason)

    def reset(self, name: str) -> None:
        """Start a process that has failed, or whose circuit is open, now."""
        managed = self._managed[name]
        managed.tracker.reset()
        managed.failed = False
        self._spawner.trust_again()
        if managed.life is None:
            managed.due = self._clock()

    def kill(self, name: str) -> None:
        """SIGKILL to the process's whole group; what follows is what follows from any death."""
        life = self._managed[name].life
        if life is not None:
            life.kill(9)

    def states(self) -> dict[str, ChildState]:
        """All processes as they are now."""
        now = self._clock()
        return {name: managed.state(now) for name, managed in self._managed.items()}

    def history(self) -> dict[str, Any]:
        """The running record of each process's memory: see `MemoryHistory.data`."""
        return self._history.data()

    def stop(self, grace: float) -> None:
        """Ask all to stop, insist after ``grace`` seconds, reap all that the kernel lets go of, remove the folder. May
        be called twice."""
        if self._closed:
            return
        self._stopping = True
        for managed in self._managed.values():
            managed.due = None
            self._ask_to_leave(managed, ExitKind.STOPPED, "stopped", grace)
        longest = max((managed.spec.deadlines.grace for managed in self._managed.values()), default=0.0)
        until = self._clock() + grace + longest + STUCK_AFTER + 1.0
        while any(m.life is not None for m in self._managed.values()) and self._clock() < until:
            self.step(0.05)
        self._closed = True
        self._spawner.close()
        for managed in self._managed.values():
            managed.recorder.close()
        self._router.close()
        self._context.term()
        os.close(self._lifeline)
        os.close(self._lifeline_read)
        self._janitor.close()
        remove_runtime(self._runtime)

    # -- one turn --------------------------------------------------------------------------------------------

    def _descriptors(self) -> list[int]:
        found = self._spawner.sockets()
        for managed in self._managed.values():
            if managed.life is not None:
                if not managed.life.silent:
                    found.append(managed.life.stderr_fd)
                if managed.life.pidfd is not None:
                    found.append(managed.life.pidfd)
        return found

    def _forgive(self, late: float) -> None:
        """This process was stopped or starved: nobody else's clock may be judged by that time."""
        if late > LATENESS:
            for managed in self._managed.values():
                if managed.life is not None:
                    managed.life.last_beat += late
                    managed.life.forgiven += late

    def _hear(self, wait: int = 0) -> None:
        for _ in range(MOST_MESSAGES):
            if not self._router.poll(wait):
                break
            identity, data = self._router.recv_multipart()
            name, pid, role = identity.decode().rsplit("/", 2)
            managed = self._managed.get(name)
            life = managed.life if managed else None
            if life is None or managed is None or not life.is_of(int(pid), managed.last_pid):
                continue  # the last words of an earlier life
            life.last_beat = self._clock()
            said = msgpack.unpackb(data, unicode_errors="surrogateescape")
            self._take(managed, life, identity if role == "c" else None, said)

    def _take(self, managed: Managed, life: Life, identity: bytes | None, said: dict[str, Any]) -> None:
        name = managed.spec.name
        kind = said["t"]
        if identity is not None:
            life.identity = identity
        if kind == "hello":
            self._on_event(ev.Started(name, said["pid"], life.preloaded))
        elif kind == "beat":
            if said["late"] < life.late or not said["busy"]:
                life.forgiven = 0.0
            life.late, life.busy, life.rss = said["late"], said["busy"], said["rss"]
            life.peak_rss = max(life.peak_rss, life.rss)
            life.metrics.update(said["metrics"])
            self._check_rss(managed, life)
        elif kind == "phase":
            life.phase, life.detail, life.fraction = said["phase"], said["detail"], said["fraction"]
            life.late = life.forgiven = 0.0
            self._on_event(ev.PhaseChanged(name, said["phase"], said["detail"], said["fraction"]))
        elif kind == "ready":
            life.phase, life.detail, life.fraction, life.busy = "working", "", None, False
            life.ready_at = self._clock()
            life.fingerprint = said["fingerprint"]
            self._on_event(ev.Ready(name, life.ready_at - life.started, said["info"]))
        elif kind == "message":
            self._on_event(ev.Message(name, said["kind"], said["payload"]))

    def _look_after(self, managed: Managed, life: Life, ready: Set[object]) -> None:
        now = self._clock()
        if life.stderr_fd in ready:
            for line in life.read_lines():
                self._on_event(ev.Output(managed.spec.name, line))
        if life.pid is not None and not life.noted:
            life.noted = True
            self._janitor.began(life.pid)
        # Without a word from the kernel nobody needs to be looked for in /proc, four times a turn.
        if life.may_be_over(ready) and self._spawner.reap(life, now):
            self._hear(LAST_WORDS)  # what it said before it died comes before its death
            self._bury(managed, life)
            return
        if life.ready_at is not None and now - life.ready_at > HEALTHY_AFTER:
            managed.tracker.healthy()
        if (missed := life.overdue(now, managed.spec.deadlines)) is not None:
            life.hung_in = life.hung_in or managed.recorder.read()
            life.bring_down(now, ExitKind.HUNG, missed, managed.spec.deadlines, dump=True)
        life.take_steps(now)
        if life.killed_at is not None and now - life.killed_at > STUCK_AFTER and life.detail != STUCK:
            life.detail = STUCK
            self._on_event(ev.Output(managed.spec.name, f"process {life.pid}: {STUCK}"))
        if life.pid is None and life.steps and life.steps[-1][0] <= now:
            self._spawner.give_up(life)

    def _check_rss(self, managed: Managed, life: Life) -> None:
        limit = managed.spec.memory.soft_rss
        if limit is not None and life.rss > limit and life.ready_at is not None:
            reason = f"{life.rss >> 20} MB resident, over the soft limit of {limit >> 20} MB"
            self._ask_to_leave(managed, ExitKind.RECYCLED, reason)

    def _ask_to_leave(self, managed: Managed, kind: ExitKind, reason: str, grace: float | None = None) -> None:
        life = managed.life
        if life is None or life.intent is not None:
            return
        wait = managed.spec.deadlines.grace if grace is None else grace
        connected = self.send(managed.spec.name, "stop", {"reason": reason})
        now = self._clock() + (wait if connected and life.ready_at is not None else 0.0)
        life.bring_down(now, kind, reason, managed.spec.deadlines, dump=False)

    # -- ends and beginnings -----------------------------------------------------------------------------

    def _bury(self, managed: Managed, life: Life) -> None:
        now = self._clock()
        life.kill(9)  # the rest of its process group
        if life.noted and life.pid is not None:
            self._janitor.ended(life.pid)
        managed.last_pid = life.pid
        for line in life.read_lines():
            self._on_event(ev.Output(managed.spec.name, line))
        report = life.report(life.pid or 0, life.hung_in or managed.recorder.read(), now)
        report = naming_interpreter(report, managed.spec.python)
        managed.life = None
        managed.last_exit = report
        self._after(managed, report)

    def _after(self, managed: Managed, report: ev.ExitReport) -> None:
        """Decide what follows from an end."""
        name = managed.spec.name
        now = self._clock()
        if self._stopping:
            self._on_event(ev.Died(name, report, None))
        elif report.kind is ExitKind.CONFIGURATION:
            managed.failed = True
            self._on_event(ev.Died(name, report, None))
            self._on_event(ev.Failed(name, report))
        elif report.kind is ExitKind.RECYCLED:
            managed.due = now
            self._on_event(ev.Died(name, report, 0.0))
        else:
            decision = managed.tracker.died()
            managed.restarts += 1
            managed.due = now + decision.delay
            self._on_event(ev.Died(name, report, None if decision.opened else decision.delay))
            if decision.opened:
                self._on_event(ev.CircuitOpened(name, report, decision.delay))

    def _start_due(self) -> None:
        for managed in self._managed.values():
            if managed.due is not None and managed.due <= self._clock() and self._room.is_there(managed):
                managed.due = None
                self._spawn(managed)

    def _remember_memory(self) -> None:
        if not self._history.due():
            return
        for name, managed in self._managed.items():
            if (life := managed.life) is None:
                self._history.add(name, 0, 0, None, managed.device_free)
            else:
                self._history.add(name, life.rss, life.peak_rss, life.device_used, managed.device_free)

    def _spawn(self, managed: Managed) -> None:
        managed.recorder.erase()
        try:
            self._mend_folder()
            managed.life = self._spawner.start(managed.spec, managed.recorder.fd, self._clock())
        except RuntimePathError as error:
            self._not_started(managed, ExitKind.EXCEPTION, str(error))
        except (ConnectionError, BlockingIOError):
            managed.due = self._clock() + BUSY  # the fork server has died; a new one is started in the next turn
        except OSError as error:
            kind, reason = ExitKind.EXCEPTION, f"cannot start {managed.spec.python}: {error.strerror}"
            if error.errno in NOT_STARTABLE:
                kind, reason = ExitKind.CONFIGURATION, f"{reason}; set stages.<name>.python"
            self._not_started(managed, kind, reason)

    def _not_started(self, managed: Managed, kind: ExitKind, reason: str) -> None:
        managed.last_exit = ev.ExitReport(kind, 0, None, None, reason, "starting", None, None, ())
        self._after(managed, managed.last_exit)

    def _mend_folder(self) -> None:
        """Where the sockets' folder has been removed, nobody who starts now would find anybody."""
        if (self._runtime / CONTROL_NAME).exists():
            return
        restore_runtime(self._runtime)
        self._router.bind(f"ipc://{self._runtime / CONTROL_NAME}")
        for managed in self._managed.values():
            self._ask_to_leave(managed, ExitKind.RECYCLED, "the folder of its sockets had been removed")
