"""Processes, seeds, signals and the device."""
