"""DIALS' experiments and reflections; the only part of the program that imports DIALS."""

from __future__ import annotations
