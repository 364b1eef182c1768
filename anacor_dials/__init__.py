"""Analytical absorption correction by X-ray tomography, inside DIALS."""

from __future__ import annotations

__version__ = "0.1.0"
