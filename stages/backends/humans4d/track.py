"""The track stage: PHALP's own ``Tracker`` as a fold over frames whose state can be saved and restored.

Results follow ``PHALP.track()``: only confirmed tracks count; on confirmation the frames before it are filled in,
so that a frame is final ``n_init`` - 1 frames later; a track without a detection keeps its last one.
"""

from __future__ import annotations

import pickle
import zlib
from collections import deque
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from stages.backends.humans4d.companion import Companion, phalp_config
from stages.backends.humans4d.matching import LazyMetric, match_in_two_steps
from stages.backends.humans4d.options import Options
from stages.backends.humans4d.shots import ShotDetector
from stages.backends.humans4d.texture import PackedTexture
from stages.protocols import Report
from stages.records import FrameRecord, People, Track

_DIMENSIONS = [4096, 4096, 99]
"""Of appearance, pose and location, as PHALP's ``setup_deepsort`` has them."""

KEPT = (
    "appe", "loca", "pose", "center", "scale", "size", "class_name", "annotations", "camera", "camera_bbox",
    "3d_joints", "2d_joints", "mask", "extra_data",
)  # fmt: skip
"""What of a ``Detection`` a track's ``extra`` keeps for ``tracks.pkl``, by PHALP's names."""

_OWN = "poseward"
"""Key under which a detection carries its common fields through PHALP's history."""


class PhalpTracker:
    """`Tracker` around PHALP's. ``companion`` holds the networks and is no part of the state."""

    def __init__(self, companion: Companion, options: Options) -> None:
        self._companion = companion
        self._options = options
        self._detection = import_module("phalp.external.deep_sort_.detection").Detection
        tracking = import_module("phalp.external.deep_sort_.tracker")
        cfg = companion.cfg = phalp_config(options)
        metric = LazyMetric(cfg, options.hungarian_th, options.past_lookback)
        self._tracker = tracking.Tracker(
            cfg, metric, max_age=options.max_age_track, n_init=options.n_init, phalp_tracker=companion,
            dims=_DIMENSIONS,
        )  # fmt: skip
        self._pending: deque[FrameRecord] = deque()
        self._cuts: deque[bool] = deque(maxlen=options.n_init)
        """Of the latest frames, whether each began a shot."""
        self._early: list[tuple[FrameRecord, Track]] = []
        """Everyone seen in the first frames, before any track could be confirmed."""
        self._folded = 0
        self._waiting: deque[tuple[int, float, People]] = deque()
        self._shots = ShotDetector()

    @classmethod
    def load(cls, options: Options) -> PhalpTracker:
        """A tracker for a new job, whose size comes with each frame's people; the rate plays no part in PHALP.

        Raises:
            ConfigurationError: a file cannot be read or belongs to another model.
        """
        return cls(load_shared(options, _quiet).for_another(), options)

    def update(self, frame: int, time: float, people: People) -> list[FrameRecord]:
        """Take one frame; ``people`` as the mesh stage made them. Returns the records that are final now."""
        if not self._options.detect_shots:
            return self._fold(frame, time, people, shot=False)
        self._waiting.append((frame, time, people))
        return self._decided(self._shots.push(people.extra.get("scene")))

    def finish(self) -> list[FrameRecord]:
        """The records still held back.

        What has fewer frames than confirm a track, an image above all, has no time in which a false alarm would show
        itself: everyone who was seen counts. (Upstream's results have nobody then.)
        """
        records = self._decided(self._shots.finish()) if self._waiting else []
        if self._folded < self._options.n_init:
            for record, track in self._early:
                record.tracks.append(track)
        records += self._pending
        self._pending.clear()
        return records

    def snapshot(self) -> bytes:
        """The whole state without the networks: a compressed pickle of PHALP's objects, some MB a track. Read it
        back only from a file of our own: unpickling runs what it says."""
        tracker = self._tracker
        tracker.phalp_tracker = None
        try:
            state = pickle.dumps(
                (tracker, self._pending, self._cuts, self._early, self._folded, self._waiting, self._shots),
                pickle.HIGHEST_PROTOCOL,
            )
        finally:
            tracker.phalp_tracker = self._companion
        return zlib.compress(state, 1)

    def restore(self, data: bytes) -> None:
        """Continue from a `snapshot`."""
        state = pickle.loads(zlib.decompress(data))
        self._tracker, self._pending, self._cuts, self._early, self._folded, self._waiting, self._shots = state
        self._tracker.phalp_tracker = self._companion
        self._companion.cfg = self._tracker.cfg

    def _decided(self, cuts: list[bool]) -> list[FrameRecord]:
        records: list[FrameRecord] = []
        for cut in cuts:
            frame, time, people = self._waiting.popleft()
            records += self._fold(frame, time, people, shot=cut)
        return records

    def _fold(self, frame: int, time: float, people: People, shot: bool) -> list[FrameRecord]:
        tracker = self._tracker
        tracker.cfg.phalp.shot = int(shot)
        detections = [self._detection(data) for data in detection_data(people, frame)]
        tracker.predict()
        if self._options.follow_score:
            # Of this call only: a snapshot of the tracker is to hold PHALP's own objects.
            tracker._match = partial(match_in_two_steps, tracker, self._options.min_score)
        try:
            tracker.update(detections, frame, str(frame), int(shot))
        finally:
            vars(tracker).pop("_match", None)
        # Kept by upstream for runs against ground truth only, and it grows with every frame.
        tracker.tracked_cost.clear()
        record = FrameRecord(frame, time)
        self._pending.append(record)
        self._cuts.append(shot)
        for track in tracker.tracks:
            if not track.is_confirmed():
                continue
            history = track.track_data["history"]
            record.tracks.append(_track(track.track_id, history[-1], track.time_since_update, shot))
            if track.time_since_update == 0 and track.hits == self._options.n_init:
                for past in range(1, self._options.n_init):
                    # A track that was not seen in each of these frames would not have lived to this one.
                    earlier = self._pending[-1 - past]
                    earlier.tracks.append(_track(track.track_id, history[-1 - past], 0, self._cuts[-1 - past]))
        self._keep_early(record, shot)
        for track in tracker.tracks:
            _forget_old_textures(track)
        late = len(self._pending) - (self._options.n_init - 1)
        return [self._pending.popleft() for _ in range(max(0, late))]

    def _keep_early(self, record: FrameRecord, shot: bool) -> None:
        self._folded += 1
        if self._folded >= self._options.n_init:
            self._early.clear()
            return
        for track in self._tracker.tracks:
            if track.time_since_update == 0:
                data = track.track_data["history"][-1]
                self._early.append((record, _track(track.track_id, data, 0, shot)))


def detection_data(people: People, frame: int) -> list[dict[str, Any]]:
    """What PHALP's ``Detection`` is made of, for each person of a frame (``get_human_features``)."""
    extra = people.extra
    found = []
    for person in range(len(people)):
        x0, y0, x1, y1 = people.boxes[person]
        pose = people.pose[person]
        size = [int(side) for side in extra["size"]]
        found.append(
            {
                "bbox": np.array([x0, y0, x1 - x0, y1 - y0]),
                "mask": [{"size": size, "counts": extra["masks"][person]}],
                "conf": people.scores[person],
                "appe": extra["appe"][person],
                "pose": extra["pose"][person],
                "loca": extra["loca"][person],
                "uv": PackedTexture(*extra["uv"][person]).unpack(),
                "center": extra["center"][person],
                "scale": extra["scale"][person],
                "smpl": {"global_orient": pose[:1], "body_pose": pose[1:], "betas": people.betas[person]},
                "camera": extra["camera"][person],
                "camera_bbox": extra["camera_bbox"][person],
                "3d_joints": extra["3d_joints"][person],
                "2d_joints": extra["2d_joints"][person],
                "size": size,
                "class_name": np.int64(extra["classes"][person]),
                "time": frame,
                "ground_truth": 1,
                "annotations": [],
                "extra_data": int(extra["index"][person]),
                _OWN: {
                    "box": people.boxes[person],
                    "confidence": float(people.scores[person]),
                    "camera": people.camera[person],
                    "joints_3d": people.joints_3d[person],
                    "joints_2d": people.joints_2d[person],
                    "vertices": None if people.vertices is None else people.vertices[person],
                },
            }
        )
    return found


def _track(identity: int, data: dict[str, Any], unseen: int, shot: bool) -> Track:
    own, smpl = data[_OWN], data["smpl"]
    extra = {name: data[name] for name in KEPT}
    extra["frame"] = int(data["time"])
    extra["tracked_time"] = int(unseen)
    extra["shot"] = int(shot)
    return Track(
        id=int(identity),
        pose=np.concatenate((smpl["global_orient"], smpl["body_pose"])),
        betas=smpl["betas"],
        detected=unseen == 0,
        extra=extra,
        **own,
    )


def _forget_old_textures(track: Any) -> None:
    """Drop texture maps that PHALP keeps and never reads again: a megabyte or two for each past frame of a track,
    which would swell memory and every snapshot."""
    history, predicted = track.track_data["history"], track.track_data["prediction"]["uv"]
    for data in history:
        if data is not history[-1]:
            data["uv"] = None
    for index in range(len(predicted) - 1):
        predicted[index] = None


_loaded: list[tuple[Options, Companion]] = []


def load_shared(options: Options, report: Report) -> Companion:
    """The networks, loaded once for all jobs of this process.

    Raises:
        ConfigurationError: a file cannot be read or belongs to another model.
    """
    for known, companion in _loaded:
        if known == options:
            return companion
    companion = Companion.load(options, report)
    _loaded.append((options, companion))
    return companion


def _quiet(detail: str, fraction: float | None = None) -> None:
    del detail, fraction
