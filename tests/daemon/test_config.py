"""Configuration: sources, precedence, origins, and errors that teach."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.settings.loading import ConfigError, Settings, find_file, leaves, load
from daemon.settings.show import explain, rows, template


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "poseward.toml"
    path.write_text(text, encoding="utf-8")
    return path


def fails(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), environ={})
    return str(caught.value)


def test_without_anything_the_defaults_hold() -> None:
    loaded = load(environ={"XDG_CONFIG_HOME": "/nonexistent"})
    assert loaded.settings == Settings()
    assert loaded.origins == {}
    assert loaded.changed() == {}


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[stages]\nslots = 4\n\n[stages.mesh]\nbatch = 5\nthreads = 6\nnice = 7\n")
    loaded = load(
        file,
        environ={"POSEWARD_STAGES__MESH__THREADS": "3", "POSEWARD_STAGES__MESH__NICE": "3", "POSEWARD_CACHE": "x"},
        sets=["stages.mesh.nice=1"],
    )
    mesh = loaded.settings.stages.mesh
    assert (loaded.settings.stages.slots, mesh.batch, mesh.threads, mesh.nice) == (4, 5, 3, 1)
    assert loaded.origins == {
        "stages.slots": f"{file}:2",
        "stages.mesh.batch": f"{file}:5",
        "stages.mesh.threads": "environment POSEWARD_STAGES__MESH__THREADS",
        "stages.mesh.nice": "--set stages.mesh.nice",
    }
    assert loaded.changed() == {
        "stages.slots": 4,
        "stages.mesh.batch": 5,
        "stages.mesh.threads": 3,
        "stages.mesh.nice": 1,
    }


def test_unknown_key_names_itself_its_line_and_the_nearest(tmp_path: Path) -> None:
    message = fails(tmp_path, "[stages]\nslots = 4\n\n[stages.mesh]\nbacth = 2\n")
    assert "poseward.toml:5" in message
    assert "stages.mesh.bacth" in message
    assert "did you mean stages.mesh.batch?" in message


def test_unknown_section_and_a_section_that_is_a_value(tmp_path: Path) -> None:
    assert "did you mean stages.mesh.batch?" in fails(tmp_path, "[stages.mehs]\nbatch = 2\n")
    message = fails(tmp_path, "[stages]\nmesh = 2\n")
    assert "stages.mesh is a section" in message
    assert "batch" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[stages.mesh]\nbatch = "2"', "stages.mesh.batch"),
        ("[stages.mesh]\nbatch = 2.5", "stages.mesh.batch"),
        ("[stages.mesh]\nbatch = true", "stages.mesh.batch"),
        ("[stages.mesh]\nbatch = 0", "stages.mesh.batch"),
        ("[stages.mesh]\nnice = 20", "stages.mesh.nice"),
        ("[stages.mesh]\nnice = -1", "stages.mesh.nice"),
        ("[stages.mesh]\nreplicas = 0", "stages.mesh.replicas"),
        ("[stages.track]\nreplicas = 2", "stages.track.replicas"),
        ("[stages]\nslots = 1", "stages.slots"),
        ("[stages]\nmax_failed_fraction = 1.1", "stages.max_failed_fraction"),
        ("[stages.deadlines]\nworking = 0", "stages.deadlines.working"),
        ("[stages.deadlines]\nworking = inf\nheartbeat = nan", "stages.deadlines"),
        ("[stages.mesh.env]\nPORT = 5", "stages.mesh.env.PORT"),
        ("[stages]\nvertices = 1", "stages.vertices"),
        ('[results]\nexports = "overlay"', "results.exports"),
        ("[results]\nexports = [1]", "results.exports[0]"),
        ('[daemon]\nlog_level = "wran"', "daemon.log_level"),
    ],
)
def test_wrong_types_and_values_out_of_range_name_key_and_line(tmp_path: Path, text: str, key: str) -> None:
    message = fails(tmp_path, text)
    assert key in message
    assert re.search(r"poseward\.toml:\d", message)


def test_whole_numbers_serve_as_floats(tmp_path: Path) -> None:
    assert (
        load(write(tmp_path, "[stages.deadlines]\nworking = 90\n"), environ={}).settings.stages.deadlines.working
        == 90
    )


def test_open_tables_take_any_name(tmp_path: Path) -> None:
    file = write(tmp_path, '[stages.options]\nmin_score = 0.4\nnested = {a = 1}\n[stages.mesh.env]\nHTTP = "x"\n')
    loaded = load(
        file,
        environ={"POSEWARD_STAGES__MESH__ENV__CUDA_VISIBLE_DEVICES": "1", "POSEWARD_STAGES__OPTIONS__TILES": "3"},
    )
    assert loaded.settings.stages.options == {"min_score": 0.4, "nested": {"a": 1}, "tiles": 3}
    assert loaded.settings.stages.mesh.env == {"HTTP": "x", "CUDA_VISIBLE_DEVICES": "1"}
    assert loaded.origins["stages.options.min_score"] == f"{file}:2"
    found = {row["key"]: row for row in rows(loaded)}
    assert found["stages.options.tiles"]["value"] == 3


@pytest.mark.parametrize(
    ("text", "expected"), [("overlay,glb", ("overlay", "glb")), ('["json"]', ("json",)), ("", ())]
)
def test_lists_from_text(text: str, expected: tuple[str, ...]) -> None:
    assert load(environ={}, sets=[f"results.exports={text}"]).settings.results.exports == expected


@pytest.mark.parametrize("text", ["true", "1", "yes", "on"])
def test_switches_from_text(text: str) -> None:
    assert load(environ={"POSEWARD_STAGES__VERTICES": text}).settings.stages.vertices is True


def test_text_settings_are_taken_as_they_stand() -> None:
    assert load(environ={}, sets=["stages.mesh.python=123"]).settings.stages.mesh.python == "123"


def test_unknown_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"POSEWARD_STAGES__MESH__BACTH.*did you mean stages\.mesh\.batch"):
        load(environ={"POSEWARD_STAGES__MESH__BACTH": "2"})


def test_set_needs_an_equals_sign() -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        load(environ={}, sets=["stages.mesh.batch"])


@pytest.mark.parametrize("content", [b"[stages\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "poseward.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load(path, environ={})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", environ={})


def test_search_order(tmp_path: Path) -> None:
    here, user, system = tmp_path / "here", tmp_path / "user", tmp_path / "system"
    files = []
    for folder in (system, user / "poseward", here):
        folder.mkdir(parents=True)
        file = folder / "poseward.toml"
        assert find_file({"XDG_CONFIG_HOME": str(user)}, here=here, system=system) == (
            files[-1] if files else None
        )
        file.touch()
        files.append(file)
    assert find_file({"XDG_CONFIG_HOME": str(user)}, here=here, system=system) == files[-1]
    named = write(tmp_path, "")
    assert find_file({"POSEWARD_CONFIG": str(named)}, here=here, system=system) == named
    with pytest.raises(ConfigError, match="POSEWARD_CONFIG"):
        find_file({"POSEWARD_CONFIG": str(tmp_path / "none")})


def test_template_holds_every_key_at_its_default(tmp_path: Path) -> None:
    text = template()
    assert load(write(tmp_path, text), environ={}).origins == {}
    active = re.sub(r"(?m)^# (?=[a-z_]+ = )(?!name = |python = )", "", text)
    loaded = load(write(tmp_path, active), environ={})
    assert loaded.settings == Settings()
    expected = {key for key, leaf in leaves().items() if not leaf.table and not key.endswith(".python")}
    assert set(loaded.origins) == expected


def test_every_key_is_explained() -> None:
    assert [key for key, leaf in leaves().items() if not explain(leaf)] == []


def test_replace_validates_and_keeps_the_rest() -> None:
    loaded = load(environ={}, sets=["stages.options.a=1", "stages.slots=5"])
    changed = loaded.replace("stages.vertices", False, "--no-vertices")
    assert changed.settings.stages.vertices is False
    assert changed.settings.stages.slots == 5
    assert changed.settings.stages.options == {"a": 1}
    assert changed.origins["stages.vertices"] == "--no-vertices"
    with pytest.raises(ConfigError):
        loaded.replace("stages.vertices", "no", "--no-vertices")


@settings(deadline=None)
@given(st.sampled_from(sorted(leaves())), st.text(max_size=12))
def test_any_text_is_taken_or_refused_by_name(key: str, text: str) -> None:
    try:
        load(environ={}, sets=[f"{key}={text}"])
    except ConfigError as error:
        assert key in str(error)


@settings(deadline=None)
@given(st.dictionaries(st.text("abces._TOML \n=[]\"'", max_size=20), st.text(max_size=8), max_size=3))
def test_strange_flags_are_refused_by_name(items: dict[str, str]) -> None:
    sets = [f"{key}={value}" for key, value in items.items()]
    try:
        load(environ={}, sets=sets)
    except ConfigError as error:
        assert "--set" in str(error)


@pytest.mark.parametrize(
    "setting", ["stages.deadlines.working=inf", "retention.results_days=inf", "drop.settle=nan"]
)
def test_what_is_not_finite_is_no_limit(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        load(environ={}, sets=[setting])


def test_files_as_windows_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "poseward.toml"
    file.write_bytes(b"\xef\xbb\xbf[stages]\r\nslots = 6\r\n")
    assert load(file, environ={}).settings.stages.slots == 6
    file.write_text("[stages]\nslots = 6\n", encoding="utf-16")
    with pytest.raises(ConfigError, match="save it as UTF-8"):
        load(file, environ={})


def test_what_python_cannot_read_is_named_and_not_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "poseward.toml"
    for text in (f"slots = {'9' * 5000}", f"slots = {'[' * 5000}"):
        file.write_text(f"[stages]\n{text}\n")
        with pytest.raises(ConfigError, match=re.escape(str(file))):
            load(file, environ={})
        with pytest.raises(ConfigError, match=r"stages\.slots"):
            load(environ={}, sets=[f"stages.{text.replace(' ', '')}"])


def test_one_setting_is_one_setting() -> None:
    with pytest.raises(ConfigError, match=r"stages\.slots"):
        load(environ={}, sets=["stages.slots=8\nfoo=3"])


@pytest.mark.parametrize("digits", [19, 30, 4000])
@pytest.mark.parametrize(
    "key", ["api.max_queue", "api.max_upload_mb", "daemon.log_mb", "stages.mesh.batch", "drop.poll"]
)
def test_numbers_that_nothing_can_count_are_refused_by_name(key: str, digits: int) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        load(environ={}, sets=[f"{key}={'9' * digits}"])


def test_the_largest_number_goes_through_all_that_it_is_given_to() -> None:
    loaded = load(environ={}, sets=["api.max_upload_mb=1000000000", "drop.poll=1000000000"])
    assert loaded.settings.api.max_upload_mb << 20 < 1 << 63  # what a reply can hold


def test_a_home_of_nobody_is_named_with_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"results\.folder.*no-such-user-here"):
        load(environ={}, sets=["results.folder=~no-such-user-here/results"])
    with pytest.raises(ConfigError, match=r"api\.roots.*no-such-user-here"):
        load(environ={}, sets=["api.roots=/srv,~no-such-user-here"])
    with pytest.raises(ConfigError, match=r"POSEWARD_CONFIG.*no-such-user-here"):
        load(environ={"POSEWARD_CONFIG": "~no-such-user-here/poseward.toml"})
    with pytest.raises(ConfigError, match=r"--config.*no-such-user-here"):
        load(Path("~no-such-user-here/poseward.toml"), environ={})
