"""``subject.npz``: a person's movement in the layout of AMASS, which the SMPL world reads.

``poses`` (F, 156) axis-angles of SMPL-H: root, 21 body joints, 30 finger joints at rest; ``trans`` (F, 3) metres;
``betas`` (16,); ``mocap_framerate``; ``gender`` (neutral). N. Mahmood et al., "AMASS: Archive of Motion Capture as
Surface Shapes", ICCV 2019. Beside these: ``up`` (z or y), ``filled`` (F,) and ``frames`` (F,), the clip's frame
numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from daemon.exports.people_files import path_of, wanted
from daemon.exports.request import Request, appearing
from daemon.motion.ground import place

SMPL_FACES = 13776
BODY_JOINTS, ALL_JOINTS, SHAPES = 22, 52, 16


def export_npz(request: Request) -> list[Path]:
    """Write a file for each person that is wanted, a row for each frame that has it.

    ``trans`` is where the root joint is. Shape coefficients are SMPL's only where the surface is; those of another
    body are left out (zeros): they mean something else.

    Raises:
        ResultsError, SubjectError, NobodyError: see `daemon.exports.people_files.wanted`.
        OSError: a file cannot be written.
    """
    motion, people = wanted(request)
    header, made = motion.clip.header, []
    up = request.motion.up or "z"
    for person in people:
        placed = place(motion, person, up)
        count = len(person.frames)
        poses = np.zeros((count, ALL_JOINTS, 3))
        turns = Rotation.from_matrix(placed.pose[:, :BODY_JOINTS].reshape(-1, 3, 3)).as_rotvec()
        poses[:, :BODY_JOINTS] = turns.reshape(count, BODY_JOINTS, 3)
        betas = np.zeros(SHAPES)
        if len(header.faces) == SMPL_FACES:
            betas[: min(SHAPES, len(person.betas))] = person.betas[:SHAPES]
        path = path_of(request, person, "npz")
        with appearing(path) as (file,):
            np.savez(
                file,
                poses=poses.reshape(count, -1),
                trans=placed.root,
                betas=betas,
                mocap_framerate=np.float64(header.rate[0] / header.rate[1] if header.rate[1] else 0.0),
                gender=np.array("neutral"),
                up=np.array(up),
                filled=person.filled,
                frames=person.frames,
            )
        request.progress(len(motion.clip.times))
        made.append(path)
    return made
