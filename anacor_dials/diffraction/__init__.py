"""DIALS' experiments and reflections: with simulation/diffraction_data.py, all that imports DIALS."""

from __future__ import annotations
