"""Files about people, each opened by a reader that is not ours where there is one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import cv2
import joblib
import numpy as np
import pytest
from bvh import Bvh
from click.testing import CliRunner
from scipy.spatial.transform import Rotation

from daemon.cli import cli
from daemon.exports import EXPORTS, export
from daemon.exports.people_files import NobodyError
from daemon.jobs.summary import read_summary, write_summary
from daemon.motion.options import MotionOptions
from daemon.motion.people import read_motion
from daemon.motion.world import TO_Y_UP, TO_Z_UP
from stages.body.model import forward_kinematics
from stages.body.skeleton import JOINT, JOINT_NAMES, JOINT_PARENTS
from tests.daemon.motion_clips import F64, body, header, records, walking, write
from tests.stages.harness import write_squares

RAW = MotionOptions(raw=True)
COUNT = 40


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    actor = walking()
    return write(folder / "frames.msgpack", records((f / 30, [actor.track(3, f / 30)]) for f in range(COUNT)))


def truth() -> tuple[F64, F64]:
    """Poses (N, 24, 3, 3) and joints (N, 24, 3), camera axes, relative to the root."""
    actor = walking()
    poses = np.stack([actor.pose(f / 30) for f in range(COUNT)])
    rest = body().rest_joints(np.zeros(10))
    return poses, np.stack([forward_kinematics(pose, rest)[1] for pose in poses])


def of_bvh(path: Path) -> tuple[F64, F64, F64]:
    """What another reader finds: rotations (N, 24, 3, 3), root places (N, 3) and joints (N, 24, 3) from its
    offsets."""
    found = Bvh(path.read_text())
    count = found.nframes
    pose, root = np.empty((count, 24, 3, 3)), np.empty((count, 3))
    offsets = np.zeros((24, 3))
    for name in found.get_joints_names():
        offsets[JOINT[name]] = found.joint_offset(name)
        parent = found.joint_parent(name)
        assert (JOINT[parent.name] if parent else -1) == JOINT_PARENTS[JOINT[name]]
        channels = [channel for channel in found.joint_channels(name) if channel.endswith("rotation")]
        angles = np.array(found.frames_joint_channels(name, channels))
        order = "".join(channel[0] for channel in channels)
        pose[:, JOINT[name]] = Rotation.from_euler(order, angles, degrees=True).as_matrix()
    root[:] = found.frames_joint_channels("pelvis", ["Xposition", "Yposition", "Zposition"])
    rest = np.zeros((24, 3))
    for joint, parent in enumerate(JOINT_PARENTS):
        if parent >= 0:
            rest[joint] = rest[parent] + offsets[joint]
    joints = np.stack([forward_kinematics(one, rest)[1] for one in pose])
    return pose, root, joints


def degrees(a: F64, b: F64) -> float:
    turns = Rotation.from_matrix((a.swapaxes(-1, -2) @ b).reshape(-1, 3, 3))
    return float(np.rad2deg(turns.magnitude()).max())


def test_bvh_by_another_reader(results: Path, tmp_path: Path) -> None:
    (path,) = export("bvh", "clip.mp4", results, tmp_path, motion=RAW)
    assert path.name == "subject.bvh"
    pose, root, joints = of_bvh(path)
    expected, places = truth()
    expected[:, 0] = TO_Y_UP @ expected[:, 0]
    assert len(pose) == COUNT and degrees(pose, expected) < 0.01
    assert np.abs(joints - places @ TO_Y_UP.T).max() < 1e-4
    assert Bvh(path.read_text()).frame_time == pytest.approx(1 / 30, abs=1e-8)
    # It walks to the right, at the speed at which it does, and its feet are on the ground.
    assert root[-1, 0] - root[0, 0] == pytest.approx(1.3 * (COUNT - 1) / 30, abs=1e-3)
    assert (joints + root[:, None])[..., 1].min() == pytest.approx(0, abs=1e-4)


def test_bvh_angles_do_not_jump(tmp_path: Path) -> None:
    """Somebody who turns about himself three times, leaning: by angles without a jump of half a turn or more."""
    actor = walking()
    found = []
    for frame in range(90):
        track = actor.track(1, frame / 30)
        track.pose = track.pose.copy()
        turn = Rotation.from_euler("yx", [12 * frame, 80], degrees=True).as_matrix()
        track.pose[0] = (np.diag([1.0, -1.0, -1.0]) @ turn).astype(np.float32)
        found.append((frame / 30, [track]))
    (path,) = export("bvh", "clip.mp4", write(tmp_path / "frames.msgpack", records(found)), tmp_path, motion=RAW)
    turns = np.array(
        Bvh(path.read_text()).frames_joint_channels("pelvis", ["Zrotation", "Xrotation", "Yrotation"])
    )
    assert np.abs(np.diff(turns, axis=0)).max() < 90


def test_bvh_has_a_frame_for_each_of_the_clip(tmp_path: Path) -> None:
    actor = walking()
    found = records((f / 30, [actor.track(1, f / 30)] if f in range(10, 20) or f >= 25 else []) for f in range(40))
    (path,) = export(
        "bvh", "clip.mp4", write(tmp_path / "frames.msgpack", found), tmp_path, motion=MotionOptions(gap=0)
    )
    pose, root, _ = of_bvh(path)
    assert len(pose) == 40
    assert np.allclose(root[:10], root[10]) and np.all(np.diff(root[10:, 0]) > 0)


@pytest.mark.parametrize(("up", "turn"), [("z", TO_Z_UP), ("y", TO_Y_UP)])
def test_npz_as_amass_has_it(results: Path, tmp_path: Path, up: str, turn: F64) -> None:
    (path,) = export("npz", "clip.mp4", results, tmp_path, motion=MotionOptions(raw=True, up=up))
    with np.load(path, allow_pickle=False) as found:
        assert found["poses"].shape == (COUNT, 156) and found["trans"].shape == (COUNT, 3)
        assert found["betas"].shape == (16,) and str(found["gender"]) == "neutral" and str(found["up"]) == up
        assert found["mocap_framerate"] == pytest.approx(30)
        pose = Rotation.from_rotvec(found["poses"][:, :66].reshape(-1, 3)).as_matrix().reshape(COUNT, 22, 3, 3)
        assert not found["poses"][:, 66:].any()
        moved = found["trans"][-1] - found["trans"][0]
    expected = truth()[0][:, :22]
    expected[:, 0] = turn @ expected[:, 0]
    assert degrees(pose, expected) < 0.01
    assert moved[0] == pytest.approx(1.3 * (COUNT - 1) / 30, abs=1e-3)


def test_csv_has_units_and_numbers(results: Path, tmp_path: Path) -> None:
    (path,) = export("csv", "clip.mp4", results, tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(COUNT))
    assert float(rows[10]["time_s"]) == pytest.approx(1 / 3, abs=1e-5)
    # A thigh that swings by 28 degrees, once a second.
    bends = np.array([float(row["left_hip_flexion_deg"]) for row in rows])
    assert bends.max() == pytest.approx(28, abs=1) and bends.min() == pytest.approx(-28, abs=1)
    turning = np.array([float(row["left_hip_flexion_deg_per_s"]) for row in rows])
    assert turning[15] == pytest.approx(-28 * 2 * np.pi, rel=0.05)
    speeds = np.array([float(row["centre_of_mass_speed_m_per_s"]) for row in rows])
    assert np.median(speeds) == pytest.approx(1.3, abs=0.1)
    assert all(float(row["pelvis_y_m"]) > 0.5 for row in rows)


def test_angles_as_records(results: Path, tmp_path: Path) -> None:
    (path,) = export("angles", "clip.mp4", results, tmp_path)
    found = json.loads(path.read_text())
    assert found["poseward_angles"] == 1 and found["fps"] == [30, 1]
    (person,) = found["people"]
    assert person["id"] == 3 and person["subject"] and person["tracks"] == [3]
    frame = person["frames"][15]
    assert frame["frame"] == 15 and frame["filled"] is False and len(frame["centre_of_mass"]) == 3
    assert frame["angles"].keys() == frame["velocities"].keys()
    assert {"left_knee_flexion", "right_shoulder_elevation", "pelvis_tilt"} <= frame["angles"].keys()


def test_trc_and_mot_by_opensim(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it leaves a log where it is imported
    opensim = pytest.importorskip("opensim", reason="OpenSim (pip install opensim, 280 MB) is not installed")
    (trc,) = export("trc", "clip.mp4", results, tmp_path, motion=RAW)
    (mot,) = export("mot", "clip.mp4", results, tmp_path, motion=RAW)
    markers = opensim.TimeSeriesTableVec3(str(trc))
    assert list(markers.getColumnLabels()) == list(JOINT_NAMES) and markers.getNumRows() == COUNT
    table = opensim.TimeSeriesTable(str(mot))
    assert table.getNumRows() == COUNT
    flexion = table.getDependentColumn("hip_flexion_r").to_numpy()
    assert flexion.max() == pytest.approx(28, abs=1)


def test_trc_columns(results: Path, tmp_path: Path) -> None:
    """By the format's own description: three lines of head, names over every third column, an empty line, rows."""
    (path,) = export("trc", "clip.mp4", results, tmp_path, motion=RAW)
    lines = path.read_text().split("\n")
    assert lines[0].startswith("PathFileType\t4\t(X/Y/Z)\t")
    head = dict(zip(lines[1].split("\t"), lines[2].split("\t"), strict=True))
    assert (head["NumFrames"], head["NumMarkers"], head["Units"]) == (str(COUNT), "24", "m")
    assert [name for name in lines[3].split("\t")[2:] if name] == list(JOINT_NAMES)
    rows = np.array([[float(value) for value in line.split("\t")] for line in lines[6:] if line])
    assert rows.shape == (COUNT, 2 + 72) and rows[:, 0].tolist() == list(range(1, COUNT + 1))
    joints = rows[:, 2:].reshape(COUNT, 24, 3)
    _, places = truth()
    assert np.abs((joints - joints[:, :1]) - places @ TO_Y_UP.T).max() < 1e-4


def test_mot_columns(results: Path, tmp_path: Path) -> None:
    (path,) = export("mot", "clip.mp4", results, tmp_path, motion=RAW)
    head, _, rest = path.read_text().partition("endheader\n")
    assert f"nRows={COUNT}" in head and "inDegrees=yes" in head
    names, *rows = [line.split("\t") for line in rest.strip().split("\n")]
    table = {name: np.array([float(row[column]) for row in rows]) for column, name in enumerate(names)}
    assert f"nColumns={len(names)}" in head
    assert table["hip_flexion_r"].max() == pytest.approx(28, abs=0.5)
    assert table["hip_flexion_l"] == pytest.approx(-table["hip_flexion_r"], abs=0.5)
    assert table["knee_angle_r"].min() > -1 and table["knee_angle_r"].max() > 30
    assert np.abs(table["pelvis_tilt"]).max() < 0.1
    assert table["arm_add_r"] == pytest.approx(-15, abs=3)  # hanging 15 degrees from the side


def test_everybody_or_one_by_name(tmp_path: Path) -> None:
    first, second = walking(), walking(start=np.array([0.0, 0.3, 80.0]), speed=0.1)
    frames = records((f / 30, [first.track(1, f / 30), second.track(2, f / 30)]) for f in range(10))
    results = write(tmp_path / "frames.msgpack", frames)
    both = export("bvh", "clip.mp4", results, tmp_path, motion=MotionOptions(subject="all"))
    assert [path.name for path in both] == ["person-1.bvh", "person-2.bvh"]
    (one,) = export("csv", "clip.mp4", results, tmp_path, motion=MotionOptions(subject="2"))
    assert one.name == "person-2.csv"
    assert read_motion(results, MotionOptions(subject="2")).subject == 2


@pytest.mark.parametrize("name", ["bvh", "npz", "csv", "angles", "trc", "mot"])
def test_nobody_to_export_is_named_and_leaves_no_file(tmp_path: Path, name: str) -> None:
    results = write(tmp_path / "frames.msgpack", records((f / 30, []) for f in range(3)))
    with pytest.raises(NobodyError, match=r"frames\.msgpack: nobody is in it"):
        export(name, "clip.mp4", results, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["frames.msgpack"]


def test_the_header_s_joints_are_the_skeleton() -> None:
    assert header().joint_names == JOINT_NAMES


def test_bundle_has_the_names_that_importers_look_for(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 6, size=(640, 360))
    folder = tmp_path / "job-7"
    folder.mkdir()
    actor = walking()
    found = write(folder / "frames.msgpack", records((f / 30, [actor.track(1, f / 30)]) for f in range(6)))
    (made,) = export("bundle", clip, found, folder)
    (again,) = export("bundle", clip, found, folder)  # replaced when it is whole
    assert made == again == folder / "temp_job-7"
    assert sorted(path.name for path in made.iterdir()) == ["original.mp4", "overlay.mp4", "tracks.pkl"]
    assert (made / "original.mp4").read_bytes() == clip.read_bytes()
    tracks = joblib.load(made / "tracks.pkl")
    assert len(tracks) == 6
    frame = tracks["000003.jpg"]
    assert frame["tid"] == [1] and frame["smpl"][0]["body_pose"].shape == (23, 3, 3)
    assert np.allclose(frame["camera"][0], actor.place(2 / 30), atol=1e-4)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_bundle_of_another_container_has_an_mp4(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mkv", 6, size=(640, 360))
    found = write(tmp_path / "frames.msgpack", records((f / 30, []) for f in range(6)))
    (made,) = export("bundle", clip, found, tmp_path)
    with av.open(str(made / "original.mp4")) as container:
        frames = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert len(frames) == 6 and float(frames[5] - frames[0]) == pytest.approx(5 / 30, abs=2e-3)


def test_the_plot_is_a_picture_of_what_was_measured(results: Path, tmp_path: Path) -> None:
    (path,) = export("plot", "clip.mp4", results, tmp_path)
    assert path.name == "angles.png"
    picture = cv2.imread(str(path))
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {(200, 110, 40), (50, 60, 210)} <= colours


def test_the_command_takes_several_names_and_a_subject(tmp_path: Path) -> None:
    first, second = walking(), walking(start=np.array([0.0, 0.3, 80.0]), speed=0.1)
    frames = records((f / 30, [first.track(1, f / 30), second.track(2, f / 30)]) for f in range(10))
    write(tmp_path / "frames.msgpack", frames)
    content = {
        "poseward": 1,
        "backend": "blazepose",
        "frames": 10,
        "input": {"path": "gone.mp4", "name": "gone.mp4"},
    }
    write_summary(tmp_path, content)
    # Neither needs the video.
    made = CliRunner().invoke(cli, ["export", "bvh,csv", "--subject", "2", "--ground", str(tmp_path)])
    assert made.exit_code == 0, made.output
    assert {"person-2.bvh", "person-2.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert read_summary(tmp_path)["exports"] == {
        "bvh": {"files": ["person-2.bvh"]}, "csv": {"files": ["person-2.csv"]},
    }  # fmt: skip
    wrong = CliRunner().invoke(cli, ["export", "bvh", "--subject", "9", str(tmp_path)])
    assert wrong.exit_code == 1 and "there are 1, 2" in wrong.output
    unknown = CliRunner().invoke(cli, ["export", "bvh,bhv", str(tmp_path)])
    assert unknown.exit_code != 0 and "did you mean bvh?" in str(unknown.exception or unknown.output)
    told = CliRunner().invoke(cli, ["export", "--help"])
    for name in EXPORTS:
        assert name in told.output
    assert "Blender" in told.output and "OpenSim" in told.output
