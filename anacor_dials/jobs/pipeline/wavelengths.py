"""The wavelengths of sweeps that were scaled together: their names, and the data of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anacor_dials.diffraction.models import read_models
from anacor_dials.diffraction.wavelengths import wavelength_groups
from anacor_dials.jobs.pipeline.results import CorrectedCrystal
from anacor_dials.jobs.pipeline.steps import Step, WorkingFolder
from anacor_dials.sample.output_files import file_name


def wavelength_names(
    wavelengths: Sequence[float], corrections: Sequence[CorrectedCrystal]
) -> list[str]:
    """A name for each wavelength (Angstrom).

    It is the name that xia2 gave, if all sweeps of the wavelength have it and no other wavelength
    does. Otherwise the names are WAVE1, WAVE2 ..., or NATIVE for a single wavelength.
    """
    names: list[set[str]] = [set() for _ in wavelengths]
    for correction in corrections:
        for sweep in correction.crystal.sweeps:
            for model in read_models(sweep.experiments):
                length = model.beam.get_wavelength()
                nearest = min(range(len(wavelengths)), key=lambda i: abs(wavelengths[i] - length))
                names[nearest].add(file_name(sweep.wavelength, ""))
    plain = [next(iter(known)) if len(known) == 1 else "" for known in names]
    if all(plain) and len(set(plain)) == len(plain):
        return plain
    if len(wavelengths) == 1:
        return ["NATIVE"]
    return [f"WAVE{i + 1}" for i in range(len(wavelengths))]


def by_wavelength(
    step_name: str, files: tuple[Path, Path], work: WorkingFolder
) -> list[tuple[Path, Path]]:
    """(experiments, reflections) of each wavelength, from the shortest to the longest.

    For a single wavelength these are the files themselves.

    Parameters
    ----------
    step_name : str
        Of the step that divides them.
    files : (Path, Path)
        Experiments and reflections.
    work : WorkingFolder
        It runs the step.
    """
    models = read_models(files[0])
    n = len(wavelength_groups(models))
    if n == 1:
        return [files]
    digits = len(str(len(models) - 1))  # as dials.split_experiments numbers them
    names = [f"split_{i:0{digits}d}" for i in range(n)]
    done = work.run(
        Step(
            step_name,
            ("dials.split_experiments", *map(str, files), "by_wavelength=True"),
            files,
            tuple(f"{one}.{kind}" for one in names for kind in ("expt", "refl")),
        )
    )
    return [(done.path(f"{one}.expt"), done.path(f"{one}.refl")) for one in names]
