"""What the parent knows of a pipeline: its processes, the jobs in work, whose fault a death is, how it goes on.

Runs in the process that owns the pipeline (`poseward run` or the daemon), never in a child; imports no model.
"""
