"""Typed settings: schema, checks, durations, composition. Imports no torch."""
