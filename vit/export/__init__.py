"""Trained models as files for other programs, checked against their checkpoint."""
