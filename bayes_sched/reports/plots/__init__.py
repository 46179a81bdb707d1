"""Figures: each function returns a matplotlib Figure, never shows it, and computes nothing.

Captions say how to read them. matplotlib and a module of this room are loaded when a figure is first drawn.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
