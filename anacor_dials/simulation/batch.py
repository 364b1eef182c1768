"""Many virtual scans of one recipe, on the cores of this machine or on a Dask cluster.

Every scan has a number. It depends on the recipe, the seed and this number alone, not on where or
in which order it is made. A scan whose files exist already, made by the same recipe, is not made
again; so an interrupted batch can be continued.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from anacor_dials.sample.materials import Composition
from anacor_dials.simulation.blender import blender_executable, blender_sample
from anacor_dials.simulation.detector import read_flats
from anacor_dials.simulation.meshes import read_stl
from anacor_dials.simulation.sample_parameters import CRYSTAL_SHAPES, WEAR, random_parameters
from anacor_dials.simulation.samples import (
    Sample,
    build_sample,
    random_materials,
    sample_from_meshes,
)
from anacor_dials.simulation.scan import ScanOptions, ScanSettings, require_in_view, write_scan

logger = logging.getLogger("dials.anacor_dials.simulation.batch")

MAKERS = ("built_in", "blender", "stl")
ATTEMPTS = 30  # to draw a sample whose parts fit together; chosen by hand


@dataclass(frozen=True)
class SampleRecipe:
    """Which samples are made.

    Parameters
    ----------
    maker : str
        built_in, blender, or stl.
    crystal_size_um : (float, float)
        The range of mean sizes.
    shape : str, optional
        One of CRYSTAL_SHAPES; all of them if not given.
    wear : str
        One of WEAR: whether crystals are rounded or broken.
    film : bool, optional
        Whether the loop has a film; random if not given.
    pin : bool
        Whether the stem ends in a pin.
    stem_length_um : float
    vary_materials : bool
        Whether compositions are random; else the usual ones are taken.
    compositions : mapping
        {name: (formula, density)}; they replace usual and random ones.
    stl : mapping
        {material: file names}.
    um_per_unit : float
        The unit of the STL files, um.
    blender : str, optional
        The program.
    """

    maker: str = "built_in"
    crystal_size_um: tuple[float, float] = (40.0, 120.0)
    shape: str | None = None
    wear: str = "none"
    film: bool | None = None
    pin: bool = False
    stem_length_um: float = 150.0
    vary_materials: bool = False
    compositions: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    stl: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    um_per_unit: float = 1.0
    blender: str | None = None

    def __post_init__(self) -> None:
        if self.maker not in MAKERS:
            raise ValueError(
                f"The maker {self.maker!r} is unknown; choose one of {', '.join(MAKERS)}."
            )
        low, high = self.crystal_size_um
        if not 0 < low <= high:
            raise ValueError(
                f"Crystal sizes from {low} to {high} um are no range; give least and largest, both > 0."
            )
        if self.shape is not None and self.shape not in CRYSTAL_SHAPES:
            raise ValueError(
                f"The crystal shape {self.shape!r} is unknown; known are {', '.join(CRYSTAL_SHAPES)}."
            )
        if self.wear not in WEAR:
            raise ValueError(f"The wear {self.wear!r} is unknown; known are {', '.join(WEAR)}.")
        if self.wear != "none" and self.maker == "stl":
            raise ValueError("Crystals of STL files are as they are; leave out sample.wear.")
        if self.maker == "stl" and "crystal" not in self.stl:
            raise ValueError("A sample of STL files needs at least one of the crystal.")
        if self.maker == "blender":
            blender_executable(self.blender)

    def materials(self, rng: np.random.Generator) -> tuple[dict[str, Composition], dict[str, str]]:
        """Compositions that replace the usual ones, and a line of text on each."""
        drawn, record = random_materials(rng) if self.vary_materials else ({}, {})
        for name, (formula, density) in self.compositions.items():
            drawn[name] = Composition.parse(formula, density)
            record[name] = f"{formula}; {density} g/cm3"
        return drawn, record

    def sample(self, rng: np.random.Generator, settings: ScanSettings | None = None) -> Sample:
        """A sample. If settings are given, sizes are drawn again until it fits the images.

        Raises ValueError if no sample fits.
        """
        materials, record = self.materials(rng)
        if self.maker == "stl":
            meshes = {
                name: [read_stl(f, self.um_per_unit) for f in files]
                for name, files in self.stl.items()
            }
            parameters = {"maker": "stl", "files": {n: list(f) for n, f in self.stl.items()}}
            sample = sample_from_meshes(meshes, materials, {**parameters, "materials": record})
            if settings is not None:
                require_in_view(sample, settings)
            return sample
        largest, reason = self.crystal_size_um[1], ""
        for _ in range(ATTEMPTS):
            size = float(rng.uniform(self.crystal_size_um[0], largest))
            parameters_drawn = random_parameters(
                rng,
                size,
                self.shape,
                self.stem_length_um,
                self.film,
                self.pin,
                wear=self.wear,
            )
            try:
                if self.maker == "blender":
                    sample = blender_sample(parameters_drawn, materials, self.blender)
                else:
                    sample = build_sample(parameters_drawn, materials)
                if settings is not None:
                    require_in_view(sample, settings)
            except ValueError as error:
                reason = str(error)
                largest = max(self.crystal_size_um[0], 0.9 * size)
                continue
            return replace(sample, parameters={**sample.parameters, "materials": record})
        raise ValueError(
            f"None of {ATTEMPTS} samples of {self.crystal_size_um[0]:g} to {self.crystal_size_um[1]:g} um "
            f"could be used; the last: {reason}"
        )


@dataclass(frozen=True)
class ScanJob:
    """One scan of a batch.

    Parameters
    ----------
    recipe : SampleRecipe
    settings : ScanSettings
    seed, number : int
        Of the batch, and of the scan in it.
    scan_file, truth_file : str
        Names of the files that are made.
    device : str
        "cpu" or "cuda".
    flats : str, optional
        A scan or folder of real flats.
    parameters : str
        PHIL text for the record.
    """

    recipe: SampleRecipe
    settings: ScanSettings
    seed: int
    number: int
    scan_file: str
    truth_file: str
    device: str = "cpu"
    flats: str | None = None
    parameters: str = ""

    def generators(self) -> tuple[np.random.Generator, np.random.Generator]:
        """Random numbers for the sample and for the scan, from the seed and the scan's number."""
        seeds = np.random.SeedSequence(self.seed, spawn_key=(self.number,)).spawn(2)
        return np.random.default_rng(seeds[0]), np.random.default_rng(seeds[1])

    def sample(self) -> Sample:
        """The scan's sample, the same at every call."""
        return self.recipe.sample(self.generators()[0], self.settings)

    def is_done(self) -> bool:
        """Whether both files exist. Raises ValueError if they were made by another recipe."""
        present = [Path(f).is_file() for f in (self.scan_file, self.truth_file)]
        if not all(present):
            return False
        try:
            with h5py.File(self.scan_file, "r") as file:
                record = json.loads(file["entry1/tomo_entry/process/simulation"][()])
        except (OSError, KeyError, ValueError):
            record = {}
        mine = {
            "settings": asdict(self.settings),
            "recipe": asdict(self.recipe),
            "seed": str(self.seed),
            "spawn_key": list(self.generators()[1].bit_generator.seed_seq.spawn_key),  # type: ignore[attr-defined]
        }
        if {name: record.get(name) for name in mine} != json.loads(json.dumps(mine)):
            raise ValueError(
                f"{self.scan_file} is there already and was made with another seed, recipe or settings; name "
                "another output.prefix, or remove it."
            )
        return True


def scan_jobs(
    recipe: SampleRecipe,
    settings: ScanSettings,
    seed: int,
    n_scans: int,
    prefix: str,
    **common: Any,
) -> list[ScanJob]:
    """Jobs for scans prefix_0001.nxs, prefix_0001_truth.h5, and so on.

    Parameters
    ----------
    recipe : SampleRecipe
    settings : ScanSettings
    seed, n_scans : int
    prefix : str
    common
        Further fields that all jobs have.
    """
    if n_scans < 1:
        raise ValueError(f"{n_scans} scans were asked for; at least one is needed.")
    digits = max(4, len(str(n_scans)))
    return [
        ScanJob(
            recipe,
            settings,
            seed,
            number,
            f"{prefix}_{number:0{digits}d}.nxs",
            f"{prefix}_{number:0{digits}d}_truth.h5",
            **common,
        )
        for number in range(1, n_scans + 1)
    ]


def make_scan(job: ScanJob, progress: Callable[[int], object] = lambda done: None) -> str:
    """Makes the files of a job, both or neither; returns the name of the scan."""
    flats = None if job.flats is None else read_flats(job.flats)
    write_scan(
        job.scan_file,
        job.truth_file,
        job.sample(),
        job.settings,
        job.generators()[1],
        ScanOptions(job.device, flats, job.parameters, asdict(job.recipe), progress),
    )
    return job.scan_file


def _in_worker(job: ScanJob) -> str:
    """make_scan on one thread, since the workers share the cores already."""
    import numba
    import torch

    torch.set_num_threads(1)
    numba.set_num_threads(1)
    return make_scan(job)


def run_jobs(
    jobs: Sequence[ScanJob], nproc: int = 1, scheduler: str | None = None
) -> Iterator[str]:
    """Makes the scans that do not exist yet, and yields the name of each when it is made.

    Parameters
    ----------
    jobs : sequence of ScanJob
    nproc : int
        Processes on this machine.
    scheduler : str, optional
        The address of a Dask cluster, which is used instead. Its workers must see the same folders.

    Raises
    ------
    ValueError
        As the scans do, after all others have ended.
    """
    waiting = [job for job in jobs if not job.is_done()]
    if len(waiting) < len(jobs):
        logger.info("%d of %d scans are there already", len(jobs) - len(waiting), len(jobs))
    if scheduler is not None:
        yield from _on_dask(waiting, scheduler)
    elif nproc > 1 and len(waiting) > 1:
        # threads of torch and numba do not survive a fork
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(nproc, len(waiting)), context) as pool:
            futures = [pool.submit(_in_worker, job) for job in waiting]
            failure: Exception | None = None
            for future in as_completed(futures):
                try:
                    yield future.result()
                except ValueError as error:
                    failure = failure or error
            if failure is not None:
                raise failure
    else:
        for job in waiting:
            yield make_scan(job)


def _on_dask(jobs: Sequence[ScanJob], scheduler: str) -> Iterator[str]:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise ValueError(
            "dask.scheduler= needs the package distributed: pip install 'anacor_dials[dask]'."
        ) from None
    try:
        client = distributed.Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The Dask scheduler {scheduler} cannot be reached ({error}); start one, or use nproc=."
        ) from None
    with client:
        absolute = [_with_absolute_paths(job) for job in jobs]
        futures = client.map(_in_worker, absolute, pure=False)
        failure: Exception | None = None
        for future in distributed.as_completed(futures):
            if future.status == "finished":
                yield str(future.result())
            else:
                failure = failure or future.exception()
        if failure is not None:
            raise failure


def _with_absolute_paths(job: ScanJob) -> ScanJob:
    return replace(
        job,
        scan_file=os.path.abspath(job.scan_file),
        truth_file=os.path.abspath(job.truth_file),
        flats=None if job.flats is None else os.path.abspath(job.flats),
    )
