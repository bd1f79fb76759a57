"""`poseward keys new`, and a daemon that hears only clients whose public keys it was given."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import stat
from pathlib import Path

import pytest
import zmq.auth
from click.testing import CliRunner, Result

from daemon.cli import cli
from tests.daemon.daemons import Daemon, until
from tests.stages.harness import write_squares

NOTHING = {"XDG_CONFIG_HOME": "/nonexistent", "COLUMNS": "120"}


def poseward(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env={**NOTHING, **env})


def new(name: str, folder: Path) -> tuple[Path, Path]:
    """A pair; its public and its secret file."""
    result = poseward("keys", "new", name, "--folder", str(folder))
    assert result.exit_code == 0, result.output
    return folder / f"{name}.key", folder / f"{name}.key_secret"


def two_free_ports() -> int:
    """The first of two ports beside each other that nobody uses."""
    while True:
        port = random.randrange(20000, 60000)
        try:
            with socket.socket() as one, socket.socket() as two:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
                return port
        except OSError:
            continue


def test_keys_are_a_pair_and_the_secret_is_secret(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    public, secret = new("anna", folder)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["anna.key", "anna.key_secret"]
    known, none = zmq.auth.load_certificate(public)
    again, hidden = zmq.auth.load_certificate(secret)
    assert known == again and none is None and hidden is not None
    assert hidden not in public.read_bytes()
    other, _ = zmq.auth.load_certificate(new("bert", folder)[0])
    assert other != known


def test_keys_says_what_to_do_next_on_both_sides(tmp_path: Path) -> None:
    text = poseward("keys", "new", "anna", "--folder", str(tmp_path)).output
    for word in ("api.key=", "api.allow=", "poseward health --address", "--server-key", "POSEWARD_CLIENT_KEY"):
        assert word in text


@pytest.mark.parametrize("suffix", [".key", ".key_secret"])
def test_keys_are_never_replaced(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"anna{suffix}").write_text("mine")
    result = poseward("keys", "new", "anna", "--folder", str(tmp_path))
    assert result.exit_code == 2 and "poseward: exists:" in result.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["../anna", "", "-x/", "a b", "ü", "x" * 80, ".hidden"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    result = poseward("keys", "new", "--folder", str(tmp_path / "keys"), "--", name)
    assert result.exit_code == 2 and "poseward: bad-name:" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = poseward("keys", "new", "anna", "--folder", str(tmp_path / "file" / "keys"))
    assert result.exit_code == 2 and "poseward: cannot-write:" in result.stderr


def test_only_known_keys_are_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, secret = new("daemon", tmp_path / "daemon")
    anna, anna_secret = new("anna", tmp_path / "anna")
    stranger = new("stranger", tmp_path / "stranger")[1]
    allow = tmp_path / "allow"
    allow.mkdir()
    (allow / "anna.key").write_bytes(anna.read_bytes())
    address = f"tcp://127.0.0.1:{two_free_ports()}"
    daemon = Daemon(tmp_path, f"api.address={address}", f"api.key={secret}", f"api.allow={allow}")
    own = {
        "POSEWARD_ADDRESS": address,
        "POSEWARD_CLIENT_KEY": str(anna_secret),
        "POSEWARD_SERVER_KEY": str(public),
    }
    with contextlib.ExitStack() as stack:
        stack.push(daemon)  # ends it; it cannot be entered, as that asks it without a key
        daemon.start(wait=False)
        until(lambda: poseward("status", **own).exit_code == 0, "the first answer")
        clip = write_squares(tmp_path / "clip.mp4", 20)
        done = poseward("submit", "--upload", "--wait", "--json", str(clip), **own)
        assert done.exit_code == 0 and json.loads(done.stdout)[0]["state"] == "done", done.output
        # With the daemon's own configuration the address and the daemon's key are known; the client's is not.
        sets = ("--set", f"api.address={address}", "--set", f"api.key={secret}", "--set", f"api.allow={allow}")
        assert poseward("status", *sets, "--key", str(anna_secret)).exit_code == 0
        with monkeypatch.context() as short:
            short.setattr("daemon.cli.connect.PATIENCE", 2.0)
            short.setattr("daemon.client.aio.QUICK", 2.0)
            without = poseward("status", "--address", address)
            assert without.exit_code == 2 and without.stderr.startswith("poseward: timeout: "), without.output
            assert "give --key and --server-key" in without.stderr
            assert "api.key is set" in poseward("status", *sets).stderr
            unknown = poseward("status", **{**own, "POSEWARD_CLIENT_KEY": str(stranger)})
            assert unknown.exit_code == 2 and "api.allow" in unknown.stderr
            wrong_server = poseward("status", **{**own, "POSEWARD_SERVER_KEY": str(anna)})
            assert wrong_server.exit_code == 2 and "--server-key" in wrong_server.stderr
        public_only = poseward("status", **{**own, "POSEWARD_CLIENT_KEY": str(anna)})
        assert public_only.exit_code == 2 and "name the .key_secret file" in public_only.stderr
        half = poseward("status", "--address", address, "--key", str(anna_secret))
        assert half.exit_code == 2 and "poseward: bad-key:" in half.stderr
        heard = poseward("events", "--count", "1", "--json", "memory", **own)
        assert json.loads(heard.stdout)["host"]["total"] > 0
        (allow / "anna.key").unlink()
        until(lambda: poseward("status", **own).exit_code == 2, "a removed key is refused")
        (allow / "anna.key").write_bytes(anna.read_bytes())
        until(lambda: poseward("status", **own).exit_code == 0, "a key that is put back is heard again")
