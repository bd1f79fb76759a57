"""What the daemon says of itself: `health` and `metrics` for programs, `logs`, `log_lines` and `story` for people.

Reads what others report to it; nothing here decides what happens.
"""
