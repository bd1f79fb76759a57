"""Start, watch and restart worker processes; knows processes only, not what they work on."""

import sys

# Older interpreters end in ways that tell nothing (a missing package, a syntax error); this is the first line of ours
# that a child's interpreter runs, and has to be understood by all of them.
if sys.version_info < (3, 10):  # noqa: UP036
    raise ImportError("Python %d.%d is too old, 3.10 or newer is needed" % sys.version_info[:2])  # noqa: UP031
