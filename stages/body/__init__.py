"""The body: a skinned surface with SMPL's joints, and the fit of landmarks to its pose."""
