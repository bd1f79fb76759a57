"""Poseward under systemd: the notify protocol, the units, and their installation."""
