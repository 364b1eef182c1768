"""Virtual samples, their scans and their diffraction data. Never imports absorption/."""

from __future__ import annotations
