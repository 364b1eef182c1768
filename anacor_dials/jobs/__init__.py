"""What the program does: typed settings and files in, results out; no PHIL and no reports."""

from __future__ import annotations
