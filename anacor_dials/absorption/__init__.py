"""Rays through a labelled sample, and the absorption factors of reflections."""

from __future__ import annotations
