"""Virtual scans for the segmentation: random samples, their scans, and our own reconstructions.

The samples of ``simulation`` are handed to ``tomography``. For every sample three files are
written, ``NAME.nxs`` (optional), ``NAME.truth.h5`` and ``NAME.tomo.h5``, and ``NAME.json`` with how
it was made.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anacor_dials.sample.materials import NYLON, POLYIMIDE, Composition, protein_crystal
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.sample.tomogram_files import SampleFile, read_sample_file, write_sample
from anacor_dials.simulation.detector import DetectorModel
from anacor_dials.simulation.sample_families import random_solids
from anacor_dials.simulation.sample_surfaces import sample_of_solids
from anacor_dials.simulation.samples import Sample, random_sample
from anacor_dials.simulation.scan import ScanSettings, write_scan
from anacor_dials.tomography.projections import read_projections
from anacor_dials.tomography.reconstruction import reconstruct
from anacor_dials.tomography.reconstruction_plan import plan_reconstruction
from anacor_dials.tomography.reconstruction_settings import ReconstructionSettings

logger = logging.getLogger("dials.anacor_dials.jobs.training_scans")

# of a flat, at most: fringes are up to three times as bright, and 16 bits hold no more than 65535
MEAN_COUNTS = 20000.0


@dataclass(frozen=True)
class ScanRanges:
    """The ranges that samples and their scans are drawn from, uniformly between two limits.

    Parameters
    ----------
    crystal_size_um : (float, float)
        Mean size of the crystal.
    contrast : (float, float)
        mu of the crystal relative to that of the liquor, less one.
    pixel_size_um, distance_mm, energy_keV : (float, float)
    photons : (float, float)
        Per pixel in the mean flat; drawn logarithmically.
    n_projections : (int, int)
    shapes : tuple of str
        Families of crystals.
    stem_length_um : float
        Of the loop.
    solids : bool
        Whether samples are of all families of :mod:`anacor_dials.simulation.sample_families`
        instead of a crystal inside its drop. Then shapes and stem_length_um have no effect.
    """

    crystal_size_um: tuple[float, float] = (26.0, 56.0)
    contrast: tuple[float, float] = (-0.10, 0.10)
    pixel_size_um: tuple[float, float] = (1.0, 1.5)
    distance_mm: tuple[float, float] = (4.0, 25.0)
    energy_keV: tuple[float, float] = (3.3, 4.6)
    photons: tuple[float, float] = (8000.0, 50000.0)
    n_projections: tuple[int, int] = (160, 300)
    shapes: tuple[str, ...] = ("polyhedron", "plate", "needle")
    stem_length_um: float = 60.0
    solids: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, tuple) and name != "shapes" and not value[0] <= value[1]:
                raise ValueError(
                    f"{name} runs from {value[0]} to {value[1]}; give the lower limit first."
                )
        if not self.shapes:
            raise ValueError("There is no crystal shape to draw from; name polyhedron, say.")


def materials_of_contrast(
    rng: np.random.Generator, contrast: float, energy_keV: float
) -> dict[str, Composition]:
    """Random liquor, crystal and loop; mu of the crystal is (1 + contrast) that of the liquor.

    The contrast is reached by salt in the liquor (the solvent of the crystal is the liquor, too) or
    by iodine in the crystal.

    Parameters
    ----------
    rng : numpy.random.Generator
    contrast, energy_keV : float

    Raises
    ------
    ValueError
        If no concentration gives this contrast.
    """
    glycerol, salt = float(rng.uniform(0.1, 0.35)), float(rng.uniform(0.0, 0.02))
    solvent_content = float(rng.uniform(0.35, 0.65))
    loop = Composition.parse(*(POLYIMIDE if rng.random() < 0.7 else NYLON))

    def made(amount: float) -> tuple[Composition, Composition]:
        in_liquor, in_crystal = max(amount, 0.0), max(-amount, 0.0)
        nacl = salt + in_liquor
        liquor = Composition.parse(
            f"{1 - glycerol - nacl:.8f} H2O + {glycerol:.8f} C3H8O3 + {nacl:.8f} NaCl",
            1.0 + 0.25 * glycerol + 0.7 * nacl,
        )
        crystal = protein_crystal(solvent_content, liquor)
        if in_crystal:
            iodine = Composition.parse("I", 4.9)
            crystal = crystal.mixed_by_volume(iodine, in_crystal)
        return liquor, crystal

    def reached(amount: float) -> float:
        liquor, crystal = made(amount)
        return crystal.mu_per_um(energy_keV) / liquor.mu_per_um(energy_keV) - 1.0

    low, high = -0.1, 0.3  # the contrast falls as the amount grows
    if not reached(high) <= contrast <= reached(low):
        raise ValueError(
            f"A contrast of {contrast:.3f} at {energy_keV} keV cannot be had with salt in the liquor or "
            "iodine in the crystal; ask for one nearer to zero."
        )
    for _ in range(50):
        middle = 0.5 * (low + high)
        if reached(middle) > contrast:
            low = middle
        else:
            high = middle
    liquor, crystal = made(0.5 * (low + high))
    return {"liquor": liquor, "loop": loop, "crystal": crystal}


def scan_settings_around(
    sample: Sample, pixel_size_um: float, margin_um: float = 10.0, **choices: Any
) -> ScanSettings:
    """Settings whose images show all of the liquor and the crystal.

    They show the loop as far as liquor and crystal extend.

    Parameters
    ----------
    sample : Sample
    pixel_size_um, margin_um : float
    choices
        Further fields of ScanSettings.
    """
    low, high = sample.bounds_um("liquor", "crystal")
    along = max(-low[0], high[0]) + margin_um
    across = max(float(np.hypot(*m.vertices[:, 1:].T).max()) for m in sample.meshes) + margin_um
    shape = tuple(2 * math.ceil(half / pixel_size_um) for half in (along, across))
    return ScanSettings(pixel_size_um=pixel_size_um, image_shape=(shape[0], shape[1]), **choices)


def draw_scan(
    rng: np.random.Generator, ranges: ScanRanges
) -> tuple[Sample, ScanSettings, dict[str, Any]]:
    """A random sample, how it is scanned, and the numbers that were drawn."""
    drawn: dict[str, Any] = {
        "shape": str(rng.choice(ranges.shapes)),
        "crystal_size_um": float(rng.uniform(*ranges.crystal_size_um)),
        "contrast": float(rng.uniform(*ranges.contrast)),
        "pixel_size_um": float(rng.uniform(*ranges.pixel_size_um)),
        "distance_mm": float(rng.uniform(*ranges.distance_mm)),
        "energy_keV": float(rng.uniform(*ranges.energy_keV)),
        "photons": float(np.exp(rng.uniform(*np.log(ranges.photons)))),
        "n_projections": int(rng.integers(ranges.n_projections[0], ranges.n_projections[1] + 1)),
    }
    materials = materials_of_contrast(rng, drawn["contrast"], drawn["energy_keV"])
    if ranges.solids:
        radius = drawn["crystal_size_um"] * rng.uniform(1.0, 1.5)
        solids, families = random_solids(rng, radius)
        drawn |= families
        sample = sample_of_solids(solids, (1.3 * radius, radius, radius), materials)
        return sample, _scan_settings(sample, drawn), drawn
    sample = random_sample(
        rng,
        drawn["crystal_size_um"],
        materials,
        shape=drawn["shape"],
        stem_length_um=ranges.stem_length_um,
    )
    return sample, _scan_settings(sample, drawn), drawn


def _scan_settings(sample: Sample, drawn: dict[str, Any]) -> ScanSettings:
    return scan_settings_around(
        sample,
        drawn["pixel_size_um"],
        distance_mm=drawn["distance_mm"],
        energy_keV=drawn["energy_keV"],
        n_projections=drawn["n_projections"],
        detector=DetectorModel(
            photons=drawn["photons"], gain=min(1.0, MEAN_COUNTS / drawn["photons"])
        ),
    )


def write_training_scan(
    folder: Path, name: str, seed: Sequence[int], ranges: ScanRanges, keep_scan: bool = False
) -> dict[str, Any]:
    """Makes one sample, its scan and its tomogram, all or nothing; returns (and writes) the record.

    Samples that cannot be made (the crystal does not fit its drop) are drawn again, which is
    recorded.

    Parameters
    ----------
    folder : Path
    name : str
    seed : sequence of int
        The same numbers give the same sample.
    ranges : ScanRanges
    keep_scan : bool
        Whether the scan is kept.
    """
    for attempt in range(20):
        rng = np.random.default_rng([*seed, attempt])
        try:
            sample, settings, drawn = draw_scan(rng, ranges)
            break
        except ValueError as error:
            logger.debug("%s, attempt %d: %s", name, attempt, error)
    else:
        raise ValueError(f"No sample could be made from the seed {list(seed)}; take another one.")
    record = {"seed": [*seed, attempt], **drawn, "image_shape": settings.image_shape}
    scan = folder / f"{name}.nxs"
    with OutputFiles() as out:
        tomo_path = out.path(folder / f"{name}.tomo.h5")
        record_path = out.path(folder / f"{name}.json")
        write_scan(scan, folder / f"{name}.truth.h5", sample, settings, rng)
        try:
            plan = plan_reconstruction(
                read_projections(scan), ReconstructionSettings(), pictures=False
            )
            write_sample(
                tomo_path,
                SampleFile(
                    tomo_path,
                    tomogram=reconstruct(plan),
                    projections=scan,
                    scan_energy_keV=settings.energy_keV,
                    scan_distance_mm=settings.distance_mm,
                ),
            )
            record["rotation_centre_px"] = plan.axis
        finally:
            if not keep_scan:
                scan.unlink()
        truth = read_sample_file(folder / f"{name}.truth.h5").labels
        assert truth is not None
        record["voxels"] = dict(zip(truth.names, truth.counts().tolist(), strict=True))
        record_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def write_training_scans(
    folder: Path,
    n: int,
    seed: int,
    ranges: ScanRanges | None = None,
    keep_scans: bool = False,
    prefix: str = "sample",
) -> list[Path]:
    """Makes n samples in a folder, unless they exist, and returns the paths of the tomograms.

    Parameters
    ----------
    folder : Path
    n, seed : int
    ranges : ScanRanges
    keep_scans : bool
    prefix : str
        The names begin with it.
    """
    ranges = ranges or ScanRanges()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(n):
        name = f"{prefix}-{seed}-{number:03d}"
        path = folder / f"{name}.tomo.h5"
        if not path.is_file():
            record = write_training_scan(folder, name, (seed, number), ranges, keep_scans)
            logger.info(
                "%s: %s, crystal %.0f um, contrast %+.3f, %d projections",
                name,
                record["shape"],
                record["crystal_size_um"],
                record["contrast"],
                record["n_projections"],
            )
        paths.append(path)
    return paths
