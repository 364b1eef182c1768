"""What the program does: typed settings and files in, results out. No PHIL, no command line, no reports."""

from __future__ import annotations
