"""What stands for PHALP's ``phalp_tracker`` in the track process: no detector, no HMR2.

PHALP's ``Tracker`` asks it how a track will go on (`forward_for_tracking`) and how unlike two poses are
(`get_pose_distance`); `matching.LazyMetric` asks it for textures (`texture_codes`). Answers equal those of PHALP's
class (``trackers/PHALP.py``; Rajasegaran et al. 2022), whose module would import both networks, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.backends.humans4d import devices
from stages.backends.humans4d.encoder import load_encoder
from stages.backends.humans4d.options import Options
from stages.protocols import ConfigurationError, Report

Tensor = Any
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

POSE, LOCATION, PERSON_JOINTS = 229, 99, 45
_ROOT = 44
"""Index of the person's own origin among the 45 projected points."""
_AHEAD = 48
"""Most frames ahead that a location is extrapolated."""
_PAIRS_ON_CPU, _PAIRS_ON_DEVICE = 1, 16
"""Pairs of texture maps that are encoded in one pass: more fill a device, and leave no room in a CPU's caches."""
_DEPTH_RIDGE, _X_RIDGE, _Y_RIDGE = 5.0, 1.2, 2.0
_NEEDED = ("pose_shape_encoder.", "transformer1.", "smpl_head.0.decpose", "loca_head.")


def phalp_config(options: Options) -> SimpleNamespace:
    """What PHALP's tracker, predictor and encoder read of a configuration (``configs/base.py``)."""
    return SimpleNamespace(
        verbose=False,
        use_gt=False,
        phalp=SimpleNamespace(
            predict="TPL",
            pose_distance="smpl",
            distance_type=options.distance_type,
            alpha=options.alpha,
            hungarian_th=options.hungarian_th,
            track_history=options.track_history,
            max_age_track=options.max_age_track,
            n_init=options.n_init,
            encode_type="4c",
            past_lookback=options.past_lookback,
            shot=0,
        ),
        pose_predictor=SimpleNamespace(
            config_path=str(options.predictor_config), mean_std=str(options.predictor_mean_std)
        ),
        SMPL=SimpleNamespace(NUM_BODY_JOINTS=23),
        MODEL=SimpleNamespace(SMPL_HEAD=SimpleNamespace(SMPL_MEAN_PARAMS=str(options.predictor_mean_params))),
    )


class Companion:
    """Stands for ``phalp_tracker``; holds the pose predictor and the texture encoder."""

    def __init__(
        self, predictor: Any, encoder: Any, cfg: SimpleNamespace, options: Options, report: Report
    ) -> None:
        self._torch = import_module("torch")
        self._interval: Callable[..., float] = import_module("phalp.utils.utils").get_prediction_interval
        self.predictor = predictor
        self.encoder = encoder
        self._device = self._torch.device(options.device)
        self._options = options
        self._report = report
        self.cfg = cfg

    @classmethod
    def load(cls, options: Options, report: Report) -> Companion:
        """Build and load predictor and encoder.

        Raises:
            ConfigurationError: a file cannot be read or belongs to another model.
        """
        devices.prepare(options)
        cfg = phalp_config(options)
        return cls(load_predictor(options, cfg, report), load_encoder(options, report), cfg, options, report)

    def for_another(self) -> Companion:
        """The same networks for another tracker, which has a ``cfg`` of its own."""
        return Companion(self.predictor, self.encoder, phalp_config(self._options), self._options, self._report)

    def forward_for_tracking(self, vectors: Any, attibute: str = "A", time: Any = 1) -> Tensor:
        """PHALP's method of this name (its spelling): the poses (``attibute`` "P", (B, 229)) or locations ("L",
        (B, 99)) of B tracks ``time`` frames after their last detection, float32 on the CPU."""
        if attibute == "P":
            pose, _, when = vectors
            with self._torch.no_grad():
                return self._next_pose(np.asarray(pose, np.float32), np.asarray(when), np.asarray(time))
        location, when, _ = vectors
        return self._torch.from_numpy(self._next_location(location, when, np.asarray(time)))

    def get_pose_distance(self, track_pose: Any, detect_pose: Any) -> F64:
        """Squared distances (T, D) of pose vectors (T, 229) and (D, 229), without the three of the place."""
        tracks, found = np.asarray(track_pose)[:, :-3], np.asarray(detect_pose)[:, :-3]
        if not len(tracks) or not len(found):
            return np.zeros((len(tracks), len(found)))
        own, other = np.square(tracks).sum(axis=1), np.square(found).sum(axis=1)
        # In upstream's order of summation, so that a cost at a threshold falls to the same side.
        squared = -2.0 * np.dot(tracks, found.T) + own[:, None] + other[None]
        distances: F64 = np.clip(squared, 0.0, np.inf)
        return distances

    def texture_codes(self, tracks: Sequence[Any], found: Sequence[Any]) -> list[tuple[F32, F32]]:
        """Of each pair of texture maps (4, 256, 256), a track's and a person's: the codes (4096,) of both, which look
        only where both are seen (the first two of PHALP's ``get_uv_distance``)."""
        torch = self._torch
        pairs = _PAIRS_ON_CPU if self._device.type == "cpu" else _PAIRS_ON_DEVICE
        codes: list[tuple[F32, F32]] = []
        while len(codes) < len(tracks):
            part = slice(len(codes), len(codes) + pairs)
            own, other = (
                torch.stack([torch.as_tensor(uv).to(self._device).float() for uv in side[part]])
                for side in (tracks, found)
            )
            both = (own[:, 3:] > 0.5) & (other[:, 3:] > 0.5)
            common = torch.where(both[:, None], torch.stack((own, other), 1), 0.0).flatten(0, 1)
            with torch.no_grad():
                encoded = self.encoder(common, en=True).reshape(len(own), 2, -1) / 10**3
            codes += [(pair[0], pair[1]) for pair in encoded.cpu().numpy()]
            # All pairs of a crowd together may take longer than any deadline on a CPU.
            self._report("comparing textures")
        return codes

    def _next_pose(self, pose: npt.NDArray[np.float32], when: npt.NDArray[Any], ahead: npt.NDArray[Any]) -> Tensor:
        """The transformer's completion of the tracks' histories, read for all of them at the frame that is to be
        predicted for the first: so does upstream (``predict_next``), which meant each track's own."""
        torch, predictor = self._torch, self.predictor
        length = int(predictor.cfg.frame_length)
        count = len(pose)
        poses = torch.zeros(count, length, 1, POSE)
        there = torch.zeros(count, length, 1, 1)
        slots = np.minimum(when - when[:, :1], length - 1).astype(np.int64)
        values = torch.from_numpy(pose)
        for track in range(count):
            for past, slot in enumerate(slots[track].tolist()):
                poses[track, slot, 0] = values[track, past]
                there[track, slot, 0] = 1
        mean, std = predictor.mean_[:, :, None], predictor.std_[:, :, None]
        data = {
            "pose_shape": (poses - mean) / (std + 1e-10),
            "has_detection": there,
            "mask_detection": torch.zeros(count, length, 1, 1),
        }
        data = {name: value.to(self._device) for name, value in data.items()}
        output, _ = predictor.encoder(data, predictor.cfg.mask_type_test)
        decoded = predictor.readout_pose(output[:, predictor.cfg.max_people :, :])
        target = min(int(slots[0, -1]) + int(ahead[0]) + 1, length - 1)
        return decoded["pose_camera"][:, target, 0, :].cpu()

    def _next_location(self, location: Any, when: Any, ahead: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Places extrapolated by ridge regression over the history, each with its 95 % prediction interval."""
        location = np.asarray(location)
        result = np.empty((len(location), LOCATION), np.float32)
        for track, (past, times) in enumerate(zip(location, np.asarray(when), strict=True)):
            points = past[:, :90].reshape(-1, PERSON_JOINTS, 2)
            placed = past[:, 90:].reshape(-1, 3, 3)
            target = min(int(ahead[track]), _AHEAD) + 1 + times[-1]
            # Repeated frames (the start of a history is its first frame repeated) tell nothing new.
            repeats = len(times) - 1 - int(np.count_nonzero(np.diff(times))) + 1
            logs = np.log(placed[:, 0, 2])
            depth, depth_range = self._extrapolate(logs, times, target, _DEPTH_RIDGE)
            x, x_range = self._extrapolate(points[:, _ROOT, 0], times, target, _X_RIDGE)
            y, y_range = self._extrapolate(points[:, _ROOT, 1], times, target, _Y_RIDGE)
            metres = np.exp(depth) / 5000.0 * 256.0
            # Upstream divides in float32 here, by way of a torch tensor.
            share = np.float32(1) / np.float32(repeats)
            ranges = [np.float32(value) * share for value in (x_range, y_range, np.exp(depth_range))]
            result[track, :90] = past[-1, :90]
            result[track, 2 * _ROOT : 2 * _ROOT + 2] = x, y
            result[track, 90:] = [(x - 0.5) * metres, (y - 0.5) * metres, np.exp(depth), *ranges, 1, 1, 0]
        return result

    def _extrapolate(self, values: Any, times: Any, target: Any, ridge: float) -> tuple[float, float]:
        """The line through ``values`` over ``times``, its slope shrunk by ``ridge``, at ``target``; and its
        interval."""
        values64 = values.astype(np.float64)
        centre, level = times.mean(), values64.mean()
        slope = np.dot(times - centre, values64 - level) / (np.square(times - centre).sum() + ridge)
        fitted = level + slope * (times - centre)
        return level + slope * (target - centre), self._interval(values, fitted, times, target)


def load_predictor(options: Options, cfg: SimpleNamespace, report: Report) -> Any:
    """PHALP's ``Pose_transformer_v2`` on the options' device.

    Upstream cuts every "encoder." out of the checkpoint's names, also the one in "pose_shape_encoder.", so that this
    part of it stays at its random initialisation, another one in each process. Here only the prefix is cut: a
    tracker that restarts must go on as it was.

    Raises:
        ConfigurationError: the checkpoint or its configuration cannot be read or belongs to another model.
    """
    torch = import_module("torch")
    transformer = import_module("phalp.models.predictor.pose_transformer_v2").Pose_transformer_v2
    try:
        # What the checkpoint lacks, if anything, must be the same in every process too.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            predictor = transformer(cfg, SimpleNamespace(HMAR=SimpleNamespace(smpl=None)))
    except Exception as error:
        raise ConfigurationError(
            f"PHALP's predictor cannot be built from {options.predictor_config}, {options.predictor_mean_std} and "
            f"{options.predictor_mean_params} ({type(error).__name__}: {error})"
        ) from error
    content = devices.read_torch(options.predictor_weights, "state_dict")
    state = {name.removeprefix("encoder."): value for name, value in content.items()}
    devices.load_state(
        predictor.encoder, state, options, report, source=options.predictor_weights, half=set(),
        may_lack=lambda name: not name.startswith(_NEEDED),
    )  # fmt: skip
    predictor.eval()
    return predictor
