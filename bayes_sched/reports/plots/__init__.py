"""Figures: each function returns a matplotlib Figure, never shows it, and computes nothing."""
