"""The settings that PHIL scopes ask for: here parameters become the typed settings of the jobs.

A function for each scope that more than one command has; a command does its own scopes itself.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import h5py
import libtbx.phil

from anacor_dials.absorption.beam import BeamProfile
from anacor_dials.absorption.tracing import Tracing
from anacor_dials.jobs.segment import SegmentationSettings
from anacor_dials.phil import choice, parse_phil
from anacor_dials.sample.foreign_tomograms import TomogramDescription
from anacor_dials.sample.hdf5_files import open_hdf5
from anacor_dials.segmentation.clean_up import CleaningSettings
from anacor_dials.segmentation.sam2_refinement import Sam2Settings
from anacor_dials.segmentation.tiles import InferenceSettings
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings
from anacor_dials.tomography.scan_checks import ScanChecks
from anacor_dials.tomography.scan_files import ScanDescription

logger = logging.getLogger("dials.anacor_dials.phil.settings")


def scan_description(projections: Any) -> ScanDescription:
    """What the PHIL scope ``projections`` says about a scan."""
    return ScanDescription(
        data=projections.data,
        image_key=projections.image_key,
        angles=projections.angles,
        first_angle_deg=projections.first_angle,
        angle_step_deg=projections.angle_step,
        angle_units=projections.angle_units,
        flats=tuple(flat for flat in projections.flat if flat),
        darks=tuple(dark for dark in projections.dark if dark),
        flat_corrected=projections.flat_corrected,
        pixel_size_um=tuple(projections.pixel_size) if projections.pixel_size else None,
        energy_keV=projections.energy,
        distance_mm=projections.distance,
        fast_axis=tuple(projections.fast_axis) if projections.fast_axis else None,
        slow_axis=tuple(projections.slow_axis) if projections.slow_axis else None,
        saturation=projections.saturation,
        checks=ScanChecks(
            frames=bool(projections.check_frames),  # Auto is true
            level=bool(projections.normalise),
            angles=bool(projections.check_angles),
            drift=bool(projections.drift),
            tilt_deg=None if projections.tilt is libtbx.Auto else projections.tilt,
        ),
    )


def reconstruction_settings(reconstruction: Any) -> ReconstructionSettings:
    """The steps that the PHIL scope ``reconstruction`` asks for."""
    crop: str | tuple[int, ...] = choice(reconstruction.crop) or "off"
    if isinstance(crop, str) and crop not in ("off", "auto"):
        try:
            crop = tuple(int(number) for number in crop.replace(",", " ").split())
        except ValueError:
            raise ValueError(
                f"crop is {crop!r}; it is off, auto, or six whole numbers (the first and last + 1 "
                "voxel along X, Y and Z)."
            ) from None
    return ReconstructionSettings(
        centre=reconstruction.centre,
        centre_method=choice(reconstruction.centre_method),
        beam_centre=reconstruction.beam_centre,
        zinger_threshold=reconstruction.zinger_threshold if reconstruction.zingers else None,
        least_transmission=reconstruction.least_transmission,
        rings=reconstruction.rings,
        paganin_delta_beta=reconstruction.paganin_delta_beta,
        crop=crop,
        filter_name=reconstruction.filter,
        backend=choice(reconstruction.backend),
        memory_gb=reconstruction.memory,
        method=reconstruction.method,
        regularisation=reconstruction.regularisation,
    )


def tomogram_description(tomogram: Any) -> TomogramDescription:
    """What the PHIL scope ``tomogram`` says about a tomogram of another program."""
    return TomogramDescription(
        voxel_size_um=tuple(tomogram.voxel_size_um) if tomogram.voxel_size_um else None,
        axes=tomogram.axes,
        unit=tomogram.unit,
        scale=tomogram.scale,
        offset=tomogram.offset,
        centre=tuple(tomogram.origin_voxel) if tomogram.origin_voxel else None,
        left_handed=tomogram.left_handed,
        projections=tomogram.projections,
    )


def segmentation_settings(params: Any, keep_probabilities: bool) -> SegmentationSettings:
    """What the PHIL scopes ``segmentation`` and ``sam2`` and the parameter ``device`` ask for."""
    s, sam2 = params.segmentation, params.sam2
    return SegmentationSettings(
        weights=s.weights,
        inference=InferenceSettings(
            tile=s.tile,
            overlap=s.overlap,
            batch=None if s.batch is libtbx.Auto else s.batch,
            axes=choice(s.axes) or "auto",
            device=choice(params.device),
        ),
        clean_up=s.clean_up,
        edges=None if s.edges is libtbx.Auto else s.edges,
        uncertainty=s.uncertainty,
        cleaning=CleaningSettings(
            s.one_crystal,
            s.smallest_crystal,
            s.crystal_in_air,
            s.fill_crystal,
            s.smallest_body_um3,
            s.smallest_loop_um3,
            s.crystal_bridge_um,
        ),
        sam2=Sam2Settings(
            checkpoint=sam2.checkpoint,
            model=sam2.model,
            where=sam2.where,
            image_size=sam2.image_size,
            key_frames=sam2.key_frames,
            weight=sam2.weight,
        ),
        keep_probabilities=keep_probabilities,
        progress=sys.stderr.isatty(),
    )


def names_of_labels(text: str) -> list[str]:
    """The names in ``labels.names``, with commas between."""
    return [part.strip() for part in text.split(",")]


def recorded_scan_description(sample: Path, given: Any) -> ScanDescription:
    """What is known about a scan besides its files.

    Parameters that are given (PHIL) come before those that the tomo.h5 holds.
    """
    recorded = libtbx.phil.parse("")
    if h5py.is_hdf5(sample):
        with open_hdf5(sample) as file:
            text = file["entry/parameters"][()] if "entry/parameters" in file else b""
        try:
            recorded = libtbx.phil.parse(text.decode() if isinstance(text, bytes) else str(text))
        except RuntimeError as error:  # a record by another program
            logger.debug("The parameters in %s are no PHIL: %s", sample, error)
    scope = parse_phil("reconstruction.phil").fetch(sources=[recorded, given])
    return scan_description(scope.extract().projections)


def beam_profile(beam: Any) -> BeamProfile | None:
    """The cross-section of the beam that the PHIL scope ``beam`` asks for."""
    if beam.profile == "none":
        for name in ("size", "axis"):
            if getattr(beam, name):
                raise ValueError(f"beam.{name} was given without beam.profile=tophat or gaussian.")
        return None
    if not beam.size:
        raise ValueError(f"beam.profile={beam.profile} needs beam.size= (two lengths in um).")
    axis = None if beam.axis is None else tuple(beam.axis)
    return BeamProfile(beam.profile, tuple(beam.size), tuple(beam.offset), axis)


def number_of_processes(nproc: Any) -> int | None:
    """The parameter ``nproc``; None for Auto, all cores that this process may use."""
    return None if nproc is libtbx.Auto else int(nproc)


def tracing_settings(params: Any) -> Tracing:
    """What the scopes ``absorption`` and ``beam``, ``nproc``, ``device`` and ``seed`` ask for."""
    return Tracing(
        tolerance=params.absorption.tolerance / 100,
        method=choice(params.absorption.method),
        beam=beam_profile(params.beam),
        check_reflections=params.absorption.check_reflections,
        memory_gb=params.absorption.memory,
        nproc=number_of_processes(params.nproc),
        device=choice(params.device),
        seed=params.seed,
    )
