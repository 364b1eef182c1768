"""From projections to a tomogram of the linear attenuation coefficient."""

from __future__ import annotations
