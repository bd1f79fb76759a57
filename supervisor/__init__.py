"""Start, watch and restart worker processes; knows processes only, not what they work on."""
