"""A run: set-up, the loop, one step, its checkpoints and what it reports."""
