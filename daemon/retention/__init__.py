"""What is removed after a while: `pruning` decides, `retention` does it, `clock` says whether the time can be believed.

Knows the store and the results on disk; asks the daemon's loop before it touches anything.
"""
