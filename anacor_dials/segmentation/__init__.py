"""From a tomogram to labels: AnACorNet, its training, and its refinement by SAM-2."""

from __future__ import annotations
