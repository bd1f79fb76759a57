"""Poseward as a service of systemd."""
