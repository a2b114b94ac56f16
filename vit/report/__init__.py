"""Scores, figures and pages from arrays: knows no run and no model."""
