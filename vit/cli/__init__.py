"""The commands. The only place that imports hydra."""
