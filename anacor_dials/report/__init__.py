"""What the program says of its results: HTML pages, JSON, tables for the log, CIF. Computes
nothing.
"""

from __future__ import annotations
