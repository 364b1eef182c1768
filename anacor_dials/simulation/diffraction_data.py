"""Virtual diffraction data of a virtual sample: integrated reflections with known intensities.

The beamline is I23 of Diamond Light Source (:mod:`.i23`). The crystal has the cell and space group
of its habit (:mod:`.crystal_habits`), or of thaumatin, and random atoms in it, sulfur among them.
So its intensities have Wilson's distribution and the anomalous signal of the wavelength. The faces
of a crystal with a habit are planes of the lattice that diffracts.

A reflection's expected counts are

    I = k |F(h)|^2 A_h L P Q exp(-B t / (2 d^2))

with the transmission A_h of the sample's meshes, Lorentz factor L, polarisation P, quantum
efficiency Q of the sensor, and a temperature factor that grows with the dose t. A_h is the mean of
exp(-tau_in - tau_out) over points in the crystal, with lines traced through the meshes themselves.
It uses no voxels and nothing of the program's own absorption correction, so that it can test that
correction.

Needs DIALS.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import numpy as np
from cctbx import crystal, miller, xray
from dials.array_family import flex
from dxtbx.model import (
    Crystal,
    Experiment,
    ExperimentList,
)

from anacor_dials.sample.frames import (
    FloatArray,
    datum_from_tomo,
    rotation_about,
    tomo_axes_in_lab,
    transform,
    unit,
)
from anacor_dials.sample.materials import energy_from_wavelength
from anacor_dials.sample.output_files import OutputFiles
from anacor_dials.simulation.diffraction_settings import (
    USUAL_WAVELENGTH,
    DiffractionSettings,
    Sweep,
)
from anacor_dials.simulation.i23 import (
    MODULE_GAP,
    MODULE_WIDTH,
    ROW_PIXELS,
    THAUMATIN_ATOMS,
    THAUMATIN_CELL,
    THAUMATIN_SPACE_GROUP,
    detector_called,
    i23_beam,
    thaumatin_experiments,
)
from anacor_dials.simulation.meshes import attenuation_to_outside, quadrature_points
from anacor_dials.simulation.samples import Sample

SAME_TRANSMISSION = 0.003  # relative, rms
MOST_POINTS = 65536

logger = logging.getLogger("dials.anacor_dials.simulation.diffraction_data")


def thaumatin_structure(rng: np.random.Generator, b_iso: float = 25.0) -> xray.structure:
    """Random atoms in thaumatin's cell and space group, as many of each element as thaumatin has.

    b_iso in A^2. The sulfurs, which cause the anomalous signal, are last.
    """
    symmetry = crystal.symmetry(THAUMATIN_CELL, THAUMATIN_SPACE_GROUP)
    return _random_atoms(symmetry, THAUMATIN_ATOMS, rng, b_iso)


def structure_of(sample: Sample, rng: np.random.Generator) -> xray.structure:
    """Random atoms in the cell of the sample's crystal; in that of thaumatin if it has none.

    Parameters
    ----------
    sample : Sample
    rng : numpy.random.Generator
    """
    if sample.lattice is None:
        return thaumatin_structure(rng)
    symmetry = crystal.symmetry(sample.lattice.cell, sample.lattice.space_group)
    return _random_atoms(symmetry, sample.lattice.atoms, rng)


def _random_atoms(
    symmetry: crystal.symmetry,
    content: Mapping[str, int],
    rng: np.random.Generator,
    b_iso: float = 25.0,
) -> xray.structure:
    """Atoms at random places, {element: number}; b_iso in A^2."""
    atoms = xray.structure(crystal_symmetry=symmetry)
    elements = [e for e, n in content.items() for _ in range(n)]
    for element, site in zip(elements, rng.random((len(elements), 3)), strict=True):
        atoms.add_scatterer(
            xray.scatterer(element, site=tuple(site), b=b_iso, scattering_type=element)
        )
    return atoms


def structure_factor_intensities(
    structure: xray.structure, wavelength: float, d_min: float
) -> miller.array:
    """|F|^2 of a structure, Friedel mates apart, with anomalous scattering.

    f' and f'' are those of Henke, Gullikson and Davis (1993). The sum is direct, so that other
    programs find the same from the same atoms (a Fourier transform of the density at usual settings
    is wrong by 1 %).

    Parameters
    ----------
    structure : cctbx.xray.structure
    wavelength, d_min : float
        Angstrom.

    Raises
    ------
    ValueError
        If nothing diffracts to d_min at this wavelength.
    """
    if not d_min > wavelength / 2:
        raise ValueError(
            f"The resolution limit {d_min} A is beyond half the wavelength ({wavelength / 2:.3f} A); "
            "nothing diffracts there."
        )
    atoms = structure.deep_copy_scatterers()
    atoms.set_inelastic_form_factors(wavelength, "henke")
    f_calc = atoms.structure_factors(d_min=d_min, anomalous_flag=True, algorithm="direct").f_calc()
    return f_calc.as_intensity_array()


def goniometer_rotations(experiment: Experiment, phi: np.ndarray) -> np.ndarray:
    """S R'(axis, phi) F (n, 3, 3) of an experiment at scan angles phi (n,) in radians."""
    goniometer = experiment.goniometer
    setting = np.reshape(goniometer.get_setting_rotation(), (3, 3))
    fixed = np.reshape(goniometer.get_fixed_rotation(), (3, 3))
    turn = rotation_about(goniometer.get_rotation_axis_datum(), np.degrees(phi))
    return setting @ turn @ fixed


def tomo_to_datum(experiment: Experiment, angle_offset: float, rotation_sense: int) -> np.ndarray:
    """The matrix (3, 3) from the tomo frame to the datum frame.

    Parameters
    ----------
    experiment : Experiment
        The sweep that the tomogram belongs to.
    angle_offset : float
        Its scan angle, degrees, at which the rotation angle of the tomography is zero.
    rotation_sense : int
        1, or -1 if the rotation angle of the tomography decreases as the scan angle grows.
    """
    goniometer = experiment.goniometer
    setting = np.reshape(goniometer.get_setting_rotation(), (3, 3))
    axes = tomo_axes_in_lab(
        setting @ np.array(goniometer.get_rotation_axis_datum()),
        experiment.beam.get_s0(),
        rotation_sense,
    )
    rotation = goniometer_rotations(experiment, np.array([np.deg2rad(angle_offset)]))[0]
    return datum_from_tomo(rotation, axes)


def directions_in_tomo(
    experiment: Experiment, s1: np.ndarray, phi: np.ndarray, datum: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (n, 3) in the tomo frame: to the source, and along the diffracted beams.

    Parameters
    ----------
    experiment : Experiment
    s1 : array (n, 3)
        In the lab frame.
    phi : array (n,)
        Scan angles, radians.
    datum : array (3, 3)
        Of :func:`tomo_to_datum`.
    """
    from_lab = np.einsum("ki,nlk->nil", datum, goniometer_rotations(experiment, phi))
    to_source = np.array(experiment.beam.get_sample_to_source_direction())
    return transform(from_lab, np.broadcast_to(to_source, s1.shape)), transform(from_lab, unit(s1))


def true_transmissions(
    sample: Sample,
    energy_keV: float,
    to_source: np.ndarray,
    exit: np.ndarray,
    n_points: int,
    rng: np.random.Generator,
    incident_step: float = 0.1,
) -> np.ndarray:
    """Transmissions (n,) of reflections: means over the crystal, by lines through the meshes.

    The mean is a quadrature of about n_points points (:func:`quadrature_points`). The tests measure
    its error; it is near 0.1 % with 256 points in a polyhedron of mu times size 2.

    Parameters
    ----------
    sample : Sample
    energy_keV : float
    to_source, exit : array (n, 3)
        Unit vectors in the tomo frame.
    n_points : int
    rng : numpy.random.Generator
    incident_step : float
        Reflections whose incident directions differ by less, in degrees, share one. Each exit
        direction is traced separately.
    """
    points, weights = quadrature_points(sample.of("crystal"), n_points, rng)
    mu = sample.mu_per_um(energy_keV)[sample.labels]
    cells = np.round(to_source / np.deg2rad(incident_step)).astype(np.int64)
    _, first, group = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    group = group.ravel()
    tau_in = attenuation_to_outside(sample.meshes, mu, points, to_source[first])
    transmission = np.empty(len(exit))
    for start in range(0, len(exit), 2000):
        part = slice(start, start + 2000)
        tau_out = attenuation_to_outside(sample.meshes, mu, points, exit[part])
        transmission[part] = np.exp(-tau_in[group[part]] - tau_out) @ weights
    return transmission


def lorentz_polarisation(experiment: Experiment, s1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Lorentz factor L and the polarisation factor P (n,) of diffracted beams s1 (n, 3) in the
    lab.

    L = |s0| |s1| / |s1 . (e x s0)| with the rotation axis e. P: see :func:`polarisation`.
    """
    s0 = unit(experiment.beam.get_s0())
    s = unit(s1)
    axis = unit(
        np.reshape(experiment.goniometer.get_setting_rotation(), (3, 3))
        @ np.array(experiment.goniometer.get_rotation_axis_datum())
    )
    lorentz = 1.0 / np.abs(s @ np.cross(axis, s0))
    return lorentz, polarisation(experiment, s1)


def polarisation(experiment: Experiment, s1: np.ndarray) -> np.ndarray:
    """The polarisation factor P (n,) of diffracted beams s1 (n, 3) in the lab.

    With p the fraction of the intensity whose electric field is perpendicular to the polarisation
    normal m, P = (1 - p) (1 - (m x s0 . s)^2) + p (1 - (m . s)^2), roles of m as in Kahn et al.,
    J. Appl. Cryst. 15 (1982) 330, all vectors of length one.
    """
    s0, s = unit(experiment.beam.get_s0()), unit(s1)
    normal = unit(experiment.beam.get_polarization_normal())
    field = unit(np.cross(normal, s0))
    fraction = experiment.beam.get_polarization_fraction()
    along_field, along_normal = s @ field, s @ normal
    return fraction * (1 - along_field**2) + (1 - fraction) * (1 - along_normal**2)


def predict_reflections(experiment: Experiment, d_min: float) -> flex.reflection_table:
    """All reflections that DIALS predicts on the modules of the detector, fully within the sweep.

    As in dials.integrate, reflections between two modules of a row and reflections near the
    rotation axis (|zeta| < 0.05) are left out.
    """
    table = flex.reflection_table.from_predictions(experiment, dmin=d_min)
    table["id"] = flex.int(len(table), 0)
    table.compute_zeta(experiment)
    table = table.select(flex.abs(table["zeta"]) >= 0.05)
    table.compute_bbox(ExperimentList([experiment]))
    table.compute_d_single(experiment)
    x, y, z = (np.array(v) for v in table["xyzcal.px"].parts())
    low, high = experiment.scan.get_array_range()
    bbox = np.array(list(table["bbox"])).reshape(-1, 6)
    columns, rows = experiment.detector[0].get_image_size()
    on_module = (x > 3) & (x < columns - 3) & (y > 3) & (y < rows - 3)
    if (columns, rows) == ROW_PIXELS:
        column = np.mod(x, MODULE_WIDTH + MODULE_GAP)
        on_module &= (column > 3) & (column < MODULE_WIDTH - 3)
    whole = (bbox[:, 4] > low) & (bbox[:, 5] < high)
    return table.select(flex.bool(on_module & whole))


def intensities_of(table: flex.reflection_table, true: miller.array) -> np.ndarray:
    """|F|^2 (n,) of the table's reflections, from symmetry-unique values; Friedel mates apart.

    NaN where it is not known.
    """
    indices = table["miller_index"].deep_copy()
    miller.map_to_asu(true.space_group().type(), True, indices)
    unique = true.map_to_asu()
    known = dict(zip(unique.indices(), unique.data(), strict=True))
    return np.array([known.get(h, np.nan) for h in indices])


def _add_counts(
    table: flex.reflection_table,
    expected: np.ndarray,
    background: float,
    instrument_error: float,
    rng: np.random.Generator,
) -> None:
    """Adds measured intensities, their variances and the background, from expected counts (n,)."""
    n = len(table)
    bbox = np.array(list(table["bbox"])).reshape(-1, 6)
    size = (bbox[:, 1::2] - bbox[:, ::2]).prod(axis=1)
    n_peak = np.maximum(9, np.round(0.25 * size))
    n_around = np.maximum(30, size - n_peak)
    signal = np.clip(expected * (1.0 + instrument_error * rng.standard_normal(n)), 0, None)
    peak = rng.poisson(signal + background * n_peak)
    around = rng.poisson(background * n_around) / n_around
    value = peak - around * n_peak
    variance = peak + around * n_peak**2 / n_around
    variance = np.maximum(variance, 1.0)
    # profile fitting weights the pixels: it gains where the background is strong
    gain = 1.0 / (1.0 + 0.5 * background * n_peak / (np.clip(value, 0, None) + background * n_peak))
    extra = rng.standard_normal(n) * 0.02 * np.sqrt(variance)
    columns = {
        "intensity.sum.value": value,
        "intensity.sum.variance": variance,
        "intensity.prf.value": value + extra,
        "intensity.prf.variance": variance * np.sqrt(gain),
        "background.mean": around,
        "background.sum.value": around * n_peak,
        "background.sum.variance": around * n_peak,
        "profile.correlation": 1.0
        - 0.4 / np.sqrt(1.0 + np.clip(value, 0, None) / np.sqrt(variance)),
        "partiality": np.ones(n),
    }
    for name, values in columns.items():
        table[name] = flex.double(np.ascontiguousarray(values, dtype=float))
    for name, numbers in (
        ("num_pixels.foreground", n_peak),
        ("num_pixels.background", n_around),
        ("num_pixels.background_used", n_around),
        ("num_pixels.valid", n_peak + n_around),
    ):
        table[name] = flex.int(numbers.astype(np.int32))


def _add_centroids(
    table: flex.reflection_table, experiment: Experiment, rng: np.random.Generator
) -> None:
    """Adds observed centroids: the predicted ones with an error of 0.2 pixels and 0.2 images."""
    n, spread = len(table), 0.2
    x, y, z = table["xyzcal.px"].parts()
    noise = rng.normal(0.0, spread, (3, n))
    table["xyzobs.px.value"] = flex.vec3_double(
        x + flex.double(noise[0]), y + flex.double(noise[1]), z + flex.double(noise[2])
    )
    table["xyzobs.px.variance"] = flex.vec3_double(n, (spread**2,) * 3)
    table.centroid_px_to_mm(ExperimentList([experiment]))


def simulate_diffraction(
    sample: Sample,
    rng: np.random.Generator,
    settings: DiffractionSettings | None = None,
    structure: xray.structure | None = None,
) -> tuple[ExperimentList, flex.reflection_table]:
    """Experiments and integrated reflections of a sample, ready for dials.scale.

    Besides the columns of dials.integrate the table has ``true.intensity`` (|F|^2, the same scale
    for all), ``true.transmission``, and ``true.counts``, those that are expected without errors.

    Parameters
    ----------
    sample : Sample
        In the tomo frame of the first sweep. If its crystal has a lattice, the orientation of the
        experiments is that of this lattice; if not, it is random.
    rng : numpy.random.Generator
    settings : DiffractionSettings, optional
        Wavelength, resolution, sweeps, counts and errors.
    structure : cctbx.xray.structure, optional
        What is in the cell; if not given, :func:`structure_of` the sample, which is drawn first.

    Raises
    ------
    ValueError
        If wavelength or resolution are impossible, or no reflection of a sweep meets the detector.
    """
    settings = settings or DiffractionSettings()
    wavelength = USUAL_WAVELENGTH if settings.wavelength is None else settings.wavelength
    energy_keV = energy_from_wavelength(wavelength)
    structure = structure_of(sample, rng) if structure is None else structure
    true = structure_factor_intensities(structure, wavelength, settings.d_min)
    experiments = thaumatin_experiments(
        list(settings.sweeps) or [Sweep()],
        rng,
        i23_beam(wavelength),
        detector_called(settings.detector, wavelength, settings.distance_mm),
    )
    datum = tomo_to_datum(experiments[0], settings.angle_offset, settings.rotation_sense)
    if sample.lattice is not None:
        lattice = sample.lattice.turned(datum)
        for experiment in experiments:
            experiment.crystal = Crystal(*map(tuple, lattice.axes.T), lattice.space_group)
    predicted = [
        _predicted(experiment, number, settings.d_min, datum, rng)
        for number, experiment in enumerate(experiments)
    ]
    tables, to_source, exits, lp_factors = zip(*predicted, strict=True)
    reflections = flex.reflection_table.concat(list(tables))
    logger.info("tracing %d reflections through %r", len(reflections), sample)
    directions = np.concatenate(to_source), np.concatenate(exits)
    transmission = true_transmissions(
        sample,
        energy_keV,
        *directions,
        settings.n_points or enough_points(sample, energy_keV, *directions),
        rng,
    )
    intensity = intensities_of(reflections, true)
    factor = intensity * np.concatenate(lp_factors) * np.array(reflections["qe"])
    factor *= _decay(experiments, reflections, [len(t) for t in tables], settings.decay_b)
    factor *= settings.mean_counts / np.nanmean(factor)
    keep = np.isfinite(factor)
    expected = np.nan_to_num(factor * transmission)
    _add_counts(
        reflections,
        expected,
        settings.background,
        settings.instrument_error,
        rng,
    )
    reflections["true.intensity"] = flex.double(np.nan_to_num(intensity))
    reflections["true.transmission"] = flex.double(transmission)
    reflections["true.counts"] = flex.double(expected)
    _mark_as_integrated(reflections)
    reflections = reflections.select(flex.bool(keep))
    for number, experiment in enumerate(experiments):
        reflections.experiment_identifiers()[number] = experiment.identifier
    return experiments, reflections


def enough_points(
    sample: Sample, energy_keV: float, to_source: FloatArray, exit: FloatArray
) -> int:
    """How many points in the crystal give its transmission within about SAME_TRANSMISSION (rms).

    From 256 for a crystal that is one polyhedron, 2048 for others, it is made four times larger
    until a few reflections have the same transmissions with four times as many points, after one
    scale.
    Thin plates and strong absorption need many: of a plate of 158 x 143 x 41 um with mu = 18 /mm
    256 points were 1.3 % off, 1024 0.6 %, 4096 0.1 %.

    Parameters
    ----------
    sample : Sample
    energy_keV : float
    to_source, exit : array (n, 3)
        Of the reflections, as for :func:`true_transmissions`.
    """
    crystals = sample.of("crystal")
    n_points = 256 if len(crystals) == 1 and len(crystals[0].faces) <= 42 else 2048
    some = np.linspace(0, len(exit) - 1, min(len(exit), 32)).astype(int)

    def found(n: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        return true_transmissions(sample, energy_keV, to_source[some], exit[some], n, rng)

    fewer = found(n_points)
    while n_points < MOST_POINTS:
        more = found(4 * n_points)
        ratio = fewer / more
        if ratio.std() <= SAME_TRANSMISSION * ratio.mean():
            break
        n_points, fewer = 4 * n_points, more
    return n_points


def _predicted(
    experiment: Experiment,
    number: int,
    d_min: float,
    datum: FloatArray,
    rng: np.random.Generator,
) -> tuple[flex.reflection_table, FloatArray, FloatArray, FloatArray]:
    """Reflections of a sweep, their directions to the source and out (n, 3), and LP factors (n,).

    datum: (3, 3) from the tomo frame to the datum frame.
    """
    table = predict_reflections(experiment, d_min)
    if len(table) == 0:
        raise ValueError(
            f"No reflection of sweep {number + 1} falls on the detector to {d_min} A; widen the "
            "sweep or the resolution."
        )
    _add_centroids(table, experiment, rng)
    table.compute_corrections(ExperimentList([experiment]))
    s1 = np.array(list(table["s1"])).reshape(-1, 3)
    phi = np.array(table["xyzcal.mm"].parts()[2])
    source, exit = directions_in_tomo(experiment, s1, phi, datum)
    lorentz, polarisation = lorentz_polarisation(experiment, s1)
    table["id"] = flex.int(len(table), number)
    table["imageset_id"] = flex.int(len(table), number)
    return table, source, exit, lorentz * polarisation


def _decay(
    experiments: ExperimentList,
    reflections: flex.reflection_table,
    sizes: list[int],
    decay_b: float,
) -> FloatArray:
    """exp(-B t / (2 d^2)) (n,) with the dose t, which grows from 0 to 1 over all sweeps.

    sizes: the number of reflections of each sweep, in the order of the table.
    """
    z = np.array(reflections["xyzcal.px"].parts()[2])
    images = [e.scan.get_num_images() for e in experiments]
    before = np.repeat(np.cumsum([0, *images[:-1]]), sizes)
    dose = (before + z) / sum(images)
    return np.exp(-decay_b * dose / (2 * np.array(reflections["d"]) ** 2))


def _mark_as_integrated(reflections: flex.reflection_table) -> None:
    """Sets the flags and columns that dials.integrate leaves."""
    reflections["partial_id"] = flex.size_t(range(len(reflections)))
    reflections.set_flags(
        flex.bool(len(reflections), True),
        reflections.flags.predicted
        | reflections.flags.observed
        | reflections.flags.indexed
        | reflections.flags.used_in_refinement
        | reflections.flags.strong
        | reflections.flags.integrated_sum
        | reflections.flags.integrated_prf,
    )


def write_diffraction(
    experiments: ExperimentList,
    reflections: flex.reflection_table,
    experiments_file: str | os.PathLike[str],
    reflections_file: str | os.PathLike[str],
    structure: xray.structure | None = None,
    structure_file: str | os.PathLike[str] | None = None,
) -> None:
    """Writes the experiments, the reflections and, as PDB, the structure: all of them or none.

    Parameters
    ----------
    experiments : ExperimentList
    reflections : reflection_table
    experiments_file, reflections_file : path
    structure : cctbx.xray.structure, optional
    structure_file : path, optional
        The structure is written if both are given.
    """
    with OutputFiles() as out:
        experiments.as_file(os.fspath(out.path(experiments_file)))
        reflections.as_file(os.fspath(out.path(reflections_file)))
        if structure is not None and structure_file is not None:
            out.path(structure_file).write_text(structure.as_pdb_file(), encoding="ascii")
