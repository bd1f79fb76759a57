"""What runs in a child: `decode`, `worker` (detect and mesh) and `track`, their common `loop` and `start`.

Knows the pipes and the protocols of a backend; knows neither the parent nor the other stages.
"""
