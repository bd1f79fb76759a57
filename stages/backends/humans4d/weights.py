"""The files that the real models need: where upstream keeps them, where they come from, and how large they are.

Paths are those that 4D-Humans and PHALP compute from the home folder, so that an installation which already runs
``track.py`` needs nothing more. Sizes and checksums stand here only where they are known for certain: the servers
publish none, except that detectron2 writes the beginning of the file's SHA-256 into its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Stage = Literal["detect", "mesh", "track"]

PHALP_SITE = "https://www.cs.utexas.edu/~pavlakos/phalp"
DETECTRON_SITE = "https://dl.fbaipublicfiles.com/detectron2"
HMR2_ARCHIVE = "https://people.eecs.berkeley.edu/~jathushan/projects/4dhumans/hmr2_data.tar.gz"

MEGABYTE = 1 << 20

SMPL_WAY = (
    "SMPL's licence forbids passing it on: register at https://smplify.is.tue.mpg.de (SMPLify's code, the file "
    "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl) or https://smpl.is.tue.mpg.de, and put the neutral model there "
    "or name it with the option smpl_model"
)
FETCH_WAY = "`poseward models fetch humans4d` downloads it"


@dataclass(frozen=True)
class WeightFile:
    """One file: ``option`` names its path in `Options`; ``stages`` need it; ``default`` is relative to the home
    folder; ``url`` is where it comes from, or None where only the user can get it; a smaller file than
    ``at_least`` bytes is a download that broke off. ``member`` is its path inside the archive at ``url``."""

    option: str
    stages: tuple[Stage, ...]
    default: str
    url: str | None
    at_least: int
    licence: str
    member: str = ""
    detector: str = ""
    """Needed with this detector only."""
    also: tuple[str, ...] = ()
    """Other places, relative to the home folder, where the same file may be already."""

    @property
    def sha256_begins(self) -> str:
        """The first hexadecimal digits of the SHA-256, where the file's name tells them."""
        found = re.search(r"_([0-9a-f]{6})\.pkl$", self.url or "")
        return found.group(1) if found else ""


_HMR2 = "4D-Humans weights: MIT (github.com/shubham-goel/4D-Humans, LICENSE.md)"
_PHALP = "PHALP weights: MIT (github.com/brjathu/PHALP, LICENSE)"
_D2 = "detectron2 model zoo: Creative Commons Attribution-ShareAlike 3.0"
_SMPL = "SMPL: Max Planck Institute, own licence, registration required"
_RUN = ".cache/4DHumans/logs/train/multiruns/hmr2/0"
_ZOO = ".torch/iopath_cache/detectron2"
_VITDET = "ViTDet/COCO/cascade_mask_rcnn_vitdet_h/f328730692/model_final_f05665.pkl"
_REGNETY = "new_baselines/mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ/42045954/model_final_ef3a80.pkl"

FILES: tuple[WeightFile, ...] = (
    WeightFile("vitdet_weights", ("detect",), f"{_ZOO}/{_VITDET}", f"{DETECTRON_SITE}/{_VITDET}",
               2000 * MEGABYTE, _D2, detector="vitdet"),
    WeightFile("regnety_weights", ("detect",), f"{_ZOO}/{_REGNETY}", f"{DETECTRON_SITE}/{_REGNETY}",
               100 * MEGABYTE, _D2, detector="regnety"),
    WeightFile("hmr2_checkpoint", ("mesh",), f"{_RUN}/checkpoints/epoch=35-step=1000000.ckpt", HMR2_ARCHIVE,
               2000 * MEGABYTE, _HMR2,
               member="logs/train/multiruns/hmr2/0/checkpoints/epoch=35-step=1000000.ckpt"),
    WeightFile("hmr2_config", ("mesh",), f"{_RUN}/model_config.yaml", HMR2_ARCHIVE, 1, _HMR2,
               member="logs/train/multiruns/hmr2/0/model_config.yaml"),
    WeightFile("joint_regressor", ("mesh",), ".cache/4DHumans/data/SMPL_to_J19.pkl", HMR2_ARCHIVE, 1000, _HMR2,
               member="data/SMPL_to_J19.pkl"),
    WeightFile("mean_params", ("mesh",), ".cache/4DHumans/data/smpl_mean_params.npz", HMR2_ARCHIVE, 200, _HMR2,
               member="data/smpl_mean_params.npz"),
    WeightFile("smpl_model", ("mesh", "track"), ".cache/4DHumans/data/smpl/SMPL_NEUTRAL.pkl", None, 1000, _SMPL,
               also=(".cache/phalp/3D/models/smpl/SMPL_NEUTRAL.pkl",)),
    WeightFile("hmar_weights", ("mesh", "track"), ".cache/phalp/weights/hmar_v2_weights.pth",
               f"{PHALP_SITE}/weights/hmar_v2_weights.pth", 1000, _PHALP),
    WeightFile("texture_faces", ("mesh",), ".cache/phalp/3D/fmap_256.npy", f"{PHALP_SITE}/fmap_256.npy", 1000,
               _PHALP),
    WeightFile("texture_weights", ("mesh",), ".cache/phalp/3D/bmap_256.npy", f"{PHALP_SITE}/bmap_256.npy", 1000,
               _PHALP),
    WeightFile("predictor_weights", ("track",), ".cache/phalp/weights/pose_predictor.pth",
               f"{PHALP_SITE}/weights/pose_predictor_40006.ckpt", 1000, _PHALP),
    WeightFile("predictor_config", ("track",), ".cache/phalp/weights/pose_predictor.yaml",
               f"{PHALP_SITE}/weights/config_40006.yaml", 1, _PHALP),
    WeightFile("predictor_mean_std", ("track",), ".cache/phalp/3D/mean_std.npy", f"{PHALP_SITE}/3D/mean_std.npy",
               100, _PHALP),
    WeightFile("predictor_mean_params", ("track",), ".cache/phalp/3D/smpl_mean_params.npz",
               f"{PHALP_SITE}/3D/smpl_mean_params.npz", 100, _PHALP),
)  # fmt: skip


def files_of(stage: str, detector: str) -> tuple[WeightFile, ...]:
    """The files that a stage reads with the chosen detector."""
    return tuple(f for f in FILES if stage in f.stages and f.detector in ("", detector))
