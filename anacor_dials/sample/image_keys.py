"""The image keys of NXtomo: what each image of a tomography scan is."""

from __future__ import annotations

# https://manual.nexusformat.org/classes/applications/NXtomo.html
PROJECTION, FLAT, DARK, INVALID = 0, 1, 2, 3
