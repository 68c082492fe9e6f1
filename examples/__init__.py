"""Programs that show Perdure at work; each runs by `python -m examples.<name>`."""
