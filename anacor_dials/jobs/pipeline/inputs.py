"""What the pipeline begins with: integrated sweeps, and the tomography of each crystal."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anacor_dials.sample.output_files import file_name


@dataclass(frozen=True)
class SweepFiles:
    """The integrated files of one sweep.

    Parameters
    ----------
    crystal, wavelength, name : str
        The names that xia2 gave to crystal, wavelength and sweep.
    experiments, reflections : Path
        The integrated files.
    """

    crystal: str
    wavelength: str
    name: str
    experiments: Path
    reflections: Path


@dataclass(frozen=True)
class Crystal:
    """All sweeps of one crystal, and its tomography.

    Parameters
    ----------
    name : str
    sweeps : tuple of SweepFiles
    tomography : Path
        A scan, a tomogram, a labelled volume, or a list of the crystal's faces.
    """

    name: str
    sweeps: tuple[SweepFiles, ...]
    tomography: Path


def sweeps_of_xia2(folder: str | os.PathLike[str]) -> list[SweepFiles]:
    """The integrated sweeps of a finished xia2 directory, in the order of xia2.

    xia2.json names project, crystals, wavelengths and sweeps. Their files are
    ``DataFiles/PROJECT_CRYSTAL_WAVELENGTH_SWEEP.expt`` and ``.refl``, or where the integration left
    them. If xia2.json cannot be read, the names are taken from the names of the files in DataFiles.

    Raises
    ------
    ValueError
        If it is no directory of xia2, or integrated files are missing.
    """
    folder = Path(folder).absolute()
    data = folder / "DataFiles"
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    if not (folder / "xia2.json").is_file() and not data.is_dir():
        raise ValueError(
            f"{folder} is no directory of xia2 (it has neither xia2.json nor DataFiles); name one, or "
            "integrated .expt and .refl files."
        )
    try:
        project = json.loads((folder / "xia2.json").read_text(encoding="utf-8"))
        named = [
            (project["_name"], crystal["_name"], wavelength["_name"], sweep["_name"], sweep)
            for crystal in project["_crystals"].values()
            for wavelength in crystal["_wavelengths"].values()
            for sweep in wavelength["_sweeps"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sweeps = _sweeps_by_name(data)
    else:
        sweeps = [_sweep_of_record(folder, project, *names) for names in named]
    if not sweeps:
        raise ValueError(
            f"{folder} holds no integrated .expt and .refl files: xia2 did not finish there, or by "
            "another pipeline than dials; run xia2 pipeline=dials."
        )
    return sweeps


def _sweep_of_record(
    folder: Path,
    record: Mapping[str, Any],
    project: str,
    crystal: str,
    wavelength: str,
    name: str,
    sweep: Mapping[str, Any],
) -> SweepFiles:
    stem = "_".join((project, crystal, wavelength, name)).replace(" ", "_")
    integrater = sweep.get("_integrater") or {}
    found = []
    for kind, key in (
        ("expt", "_intgr_experiments_filename"),
        ("refl", "_intgr_integrated_reflections"),
    ):
        places = [folder / "DataFiles" / f"{stem}.{kind}"]
        if integrater.get(key):
            there = Path(integrater[key])
            places.append(there)
            if there.is_relative_to(record.get("path") or folder):  # the directory may have moved
                places.append(folder / there.relative_to(record.get("path") or folder))
        found.append(next((place for place in places if place.is_file()), None))
    experiments, reflections = found
    if experiments is None or reflections is None:
        raise ValueError(
            f"{folder} lacks the integrated files of the sweep {name} of {crystal} "
            f"(DataFiles/{stem}.expt and .refl): xia2 did not finish there, or by another pipeline than "
            "dials; run xia2 pipeline=dials."
        )
    return SweepFiles(crystal, wavelength, name, experiments, reflections)


def _sweeps_by_name(data: Path) -> list[SweepFiles]:
    """Sweeps named PROJECT_CRYSTAL_WAVELENGTH_SWEEP; further parts count to the project."""
    sweeps = []
    for experiments in sorted(data.glob("*.expt")):
        parts = experiments.stem.rsplit("_", 3)
        reflections = experiments.with_suffix(".refl")
        if len(parts) == 4 and parts[-1] != "scaled" and reflections.is_file():
            _, crystal, wavelength, name = parts
            sweeps.append(SweepFiles(crystal, wavelength, name, experiments, reflections))
    return sweeps


def sweeps_of_directories(folders: Sequence[str | os.PathLike[str]]) -> list[SweepFiles]:
    """The sweeps of several xia2 directories, each with crystals of its own.

    If two directories give the same name to their crystals (the default of xia2 is DEFAULT), the
    name of the directory is put before it.

    Raises
    ------
    ValueError
        If crystals of the same name cannot be told apart.
    """
    per_folder = [sweeps_of_xia2(folder) for folder in folders]
    counts = Counter(name for sweeps in per_folder for name in {sweep.crystal for sweep in sweeps})
    result = []
    for folder, sweeps in zip(folders, per_folder, strict=True):
        for sweep in sweeps:
            crystal = sweep.crystal
            if counts[crystal] > 1:
                crystal = file_name(f"{Path(folder).absolute().name}_{crystal}", "crystal")
            result.append(replace(sweep, crystal=crystal))
    identity = {(sweep.crystal, sweep.wavelength, sweep.name) for sweep in result}
    if len(identity) != len(result):
        raise ValueError(
            f"The directories {', '.join(map(str, folders))} have the same name and crystals of the "
            "same name; rename one of them."
        )
    return result


def sweeps_of_files(
    experiments: Sequence[str | os.PathLike[str]],
    reflections: Sequence[str | os.PathLike[str]],
    crystals: Sequence[str] = ("DEFAULT",),
) -> list[SweepFiles]:
    """Integrated files divided evenly among the crystals, in their order.

    Parameters
    ----------
    experiments, reflections : sequence of paths
        An .expt and a .refl for each sweep.
    crystals : sequence of str
        The names of the crystals.

    Raises
    ------
    ValueError
        If they cannot be divided, or a file is absent.
    """
    expts = [Path(path).absolute() for path in experiments]
    refls = [Path(path).absolute() for path in reflections]
    for path in (*expts, *refls):
        if not path.is_file():
            raise ValueError(f"There is no file {path}.")
    if not expts or len(expts) != len(refls):
        raise ValueError(
            f"{len(expts)} experiment files and {len(refls)} reflection files were given; "
            "give an .expt and a .refl for each sweep."
        )
    if len(expts) % len(crystals):
        raise ValueError(
            f"{len(expts)} sweeps cannot be divided among {len(crystals)} crystals "
            f"({', '.join(crystals)}); give equally many files for each crystal, one crystal after the "
            "other."
        )
    each = len(expts) // len(crystals)
    return [
        SweepFiles(crystals[i // each], "", f"SWEEP{i + 1}", expt, refl)
        for i, (expt, refl) in enumerate(zip(expts, refls, strict=True))
    ]


def assign_tomography(
    sweeps: Sequence[SweepFiles],
    in_order: Sequence[str | os.PathLike[str]],
    by_name: Mapping[str, str | os.PathLike[str]],
) -> list[Crystal]:
    """The crystals with their sweeps and tomography.

    Parameters
    ----------
    sweeps : sequence of SweepFiles
    in_order : sequence of paths
        One for each crystal, in the order of their sweeps.
    by_name : mapping
        {crystal: path}, instead.

    Raises
    ------
    ValueError
        If both are given, numbers or names do not fit, or a file does not exist.
    """
    names = list(dict.fromkeys(sweep.crystal for sweep in sweeps))
    listed = ", ".join(names)
    if in_order and by_name:
        raise ValueError(
            "Tomography was given by crystal and without; name the crystal of each "
            f"(tomography.CRYSTAL=scan; the crystals are {listed})."
        )
    if not in_order and not by_name:
        raise ValueError("No tomography was given; name a scan or a tomo.h5 by tomography=.")
    if by_name:
        if unknown := [name for name in by_name if name not in names]:
            raise ValueError(
                f"tomography.{unknown[0]} was given, but the crystals of the data are {listed}."
            )
        if lacking := [name for name in names if name not in by_name]:
            raise ValueError(
                f"The crystal {lacking[0]} has no tomography; give tomography.{lacking[0]}=, or name "
                "only the other crystals' integrated .expt and .refl files."
            )
    elif len(in_order) != len(names):
        raise ValueError(
            f"{len(in_order)} tomograms were given for {len(names)} crystals ({listed}); give one for "
            "each crystal, by name (tomography.CRYSTAL=scan) or in this order."
        )
    given = dict(by_name) or dict(zip(names, in_order, strict=True))
    return [
        Crystal(
            name,
            tuple(sweep for sweep in sweeps if sweep.crystal == name),
            existing_tomography(given[name], name),
        )
        for name in names
    ]


def existing_tomography(given: str | os.PathLike[str], crystal: str = "") -> Path:
    """The absolute path of a file, a folder, a pattern or file.h5:/dataset.

    Raises ValueError if it does not exist; crystal is named in the message.
    """
    text = os.fspath(given)
    path = Path(os.path.abspath(text))
    if not files_of(path):
        of = f" of the crystal {crystal}" if crystal else ""
        raise ValueError(f"The tomography {text}{of} does not exist.")
    return path


def files_of(tomography: Path) -> tuple[Path, ...]:
    """The files of a scan or volume, without external files that an HDF5 file links to."""
    if tomography.is_file():
        return (tomography,)
    if tomography.is_dir():
        return tuple(sorted(path for path in tomography.iterdir() if path.is_file()))
    matching = tuple(sorted(Path(name) for name in glob.glob(str(tomography))))
    if matching:
        return matching
    file = Path(re.sub(r":/.*$", "", str(tomography)))
    return (file,) if file.is_file() else ()
