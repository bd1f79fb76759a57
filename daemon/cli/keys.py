"""``poseward keys``: CURVE keys for daemons and clients on other machines."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import click

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@click.group()
def keys() -> None:
    """Make keys for a daemon that is reached over the network."""


@keys.command(
    epilog="""\b
Who is to be heard by a daemon with api.key must have its public key in the daemon's api.allow folder; who can
read a secret key is who it belongs to. Only public keys ever travel.

\b
Example: a daemon on one machine, a client named anna on another
  daemon$ poseward keys new daemon --folder ~/poseward-keys
  anna$   poseward keys new anna --folder ~/poseward-keys
  (copy anna.key to the daemon's ~/poseward-keys/allow/, daemon.key to anna's ~/poseward-keys/)
  daemon$ poseward serve --set api.address=tcp://192.168.1.20:5757 \\
            --set api.key=~/poseward-keys/daemon.key_secret --set api.allow=~/poseward-keys/allow
  anna$   poseward health --address tcp://192.168.1.20:5757 \\
            --key ~/poseward-keys/anna.key_secret --server-key ~/poseward-keys/daemon.key

\b
Exit codes: 0 made; 2 the name is none, is taken, or the folder cannot be written."""
)
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), metavar="DIR",
              help="Where to write them [default: keys beside the user's configuration].")  # fmt: skip
def new(name: str, folder: Path | None) -> None:
    """Write NAME.key (public) and NAME.key_secret (for its owner alone)."""
    import platformdirs

    from daemon.settings.sources import expand_home

    folder = expand_home(folder or platformdirs.user_config_path("poseward") / "keys", "--folder").absolute()
    if not NAME.fullmatch(name):
        _refuse("bad-name", f"{name!r}: letters, digits, '-', '_' and '.', at most 64")
    public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (public, secret):
            if path.exists() or path.is_symlink():
                _refuse(
                    "exists", f"{path} is there already: choose another name, or remove both files of that one"
                )
        _create(folder, name, public, secret)
    except OSError as error:
        _refuse("cannot-write", f"{error.filename or folder}: {error.strerror}: choose another --folder")
    click.echo(f"{public}         public: give it to the other side\n{secret}  secret: it stays here (mode 600)")
    click.echo(f"""
For a daemon with this key:
  poseward serve --set api.address=tcp://HOST:PORT --set api.key={secret} \\
    --set api.allow=FOLDER      the public keys of its clients lie in FOLDER
For a client with this key:
  copy {public.name} into the daemon's api.allow folder (it is seen within seconds), and then
  poseward health --address tcp://HOST:PORT --key {secret} --server-key DAEMON.key
  or set POSEWARD_ADDRESS, POSEWARD_CLIENT_KEY and POSEWARD_SERVER_KEY to these three once""")


def _create(folder: Path, name: str, public: Path, secret: Path) -> None:
    """Write both files, never over others, the secret one for its owner alone from its first moment on."""
    import tempfile

    import zmq.auth

    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as beside:  # mode 700
        made = zmq.auth.create_certificates(beside, name)
        for source, target, mode in zip(made, (public, secret), (0o644, 0o600), strict=True):
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(Path(source).read_bytes())


def _refuse(name: str, message: str) -> None:
    click.echo(f"poseward: {name}: {message}", err=True)
    sys.exit(2)
