"""Draws from a PyMC model whose posterior may have several modes."""
