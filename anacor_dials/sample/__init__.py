"""The sample: its frames, volumes, materials and files. Imports no other part of the program."""

from __future__ import annotations
