"""The content of anacor_reconstruct.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anacor_dials.jobs.records.record import Record


@dataclass(frozen=True)
class ReconstructionRecord(Record):
    """anacor_reconstruct.json.

    Attributes
    ----------
    scan, layout : str
        The path of the scan, and how its file is made.
    n_projections : int
    angles_deg : [float, float]
        The first and the last angle.
    largest_gap_deg : float
    full_turn : bool
        Whether the scan covers 360 degrees.
    energy_keV : float or null
    left_out : [{"projections": int, "why": str}]
        Projections that could not be used.
    beam_level : [float, float, float] or null
        Median, least and largest of the beam beside the sample, relative to the flats.
    drift_pixels : [float, float]
        Motion of the sample along and across the rotation axis, which was put back.
    tilt_deg : float
        Tilt of the rotation axis in the image, which was put back.
    backend, filter, rings : str
        How it was reconstructed.
    phase_retrieved : bool
    centre_of_rotation_pixel : float
        In the images as the camera took them.
    centre_method : str
    centre_per_slice : [float]
        Of each slice that was looked at.
    shape : [int, int, int]
        Voxels along X, Y, Z.
    voxel_size_um, origin_voxel : [float, float, float]
    clipped_percent, unusable_percent, zinger_percent : float
    seconds, seconds_per_slice : float
    histogram : {"edges_per_um": [float], "counts": [int]}
        mu of all voxels.
    warnings : [str]
    """

    VERSION = 1
    scan: str
    layout: str
    n_projections: int
    angles_deg: Sequence[float]
    largest_gap_deg: float
    full_turn: bool
    energy_keV: float | None
    left_out: Sequence[Mapping[str, int | str]]
    beam_level: Sequence[float] | None
    drift_pixels: Sequence[float]
    tilt_deg: float
    backend: str
    filter: str
    rings: str
    phase_retrieved: bool
    centre_of_rotation_pixel: float
    centre_method: str
    centre_per_slice: Sequence[float]
    shape: Sequence[int]
    voxel_size_um: Sequence[float]
    origin_voxel: Sequence[float]
    clipped_percent: float
    unusable_percent: float
    zinger_percent: float
    seconds: float
    seconds_per_slice: float
    histogram: Mapping[str, Sequence[float]]
    warnings: Sequence[str] = ()
