"""Models and tables of DIALS. Beside this wing only some jobs and the commands import DIALS."""

from __future__ import annotations
