"""Motion: a pass over finished results that makes one person's movement usable.

Picks the subject, joins the tracks of one person, fills short gaps, smooths, measures. Deterministic, for every
backend: it knows results and no models, and never changes the raw tracks.
"""
