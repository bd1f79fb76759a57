"""More than one machine, by Ray: the front (`poseward serve`) cuts jobs into segments, stations work on them.

`pipeline` is what the service sees: it looks like one machine's pipeline. `dispatch` runs in a process of its own and
alone talks to Ray; `station` runs on the other machines and wraps the usual supervised pipeline; `plan` decides which
segment goes where, and knows no Ray. Nothing here is imported unless ``cluster.address`` is set.
"""
