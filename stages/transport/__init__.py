"""Between the stages: pixels in a shared-memory `ring`, messages through `pipes`, their form in `wire`.

Knows no stage and no backend.
"""
