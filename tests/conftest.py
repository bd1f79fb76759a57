"""What all tests share: the sample data, if it is there, and no configuration from outside."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.paths import SHARED


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with ``runner.mp4`` and ``skates.png`` beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"sample data is not there: {SHARED}")
    return SHARED


@pytest.fixture(autouse=True, scope="session")
def _no_outside_configuration() -> None:
    """Settings in the developer's environment must not decide about tests."""
    for name in [name for name in os.environ if name.startswith("POSEWARD_") and "__" in name]:
        del os.environ[name]
    os.environ.pop("POSEWARD_CONFIG", None)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    """Who starts tests in the background may have them ignore Ctrl-C, and every program that they start too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
