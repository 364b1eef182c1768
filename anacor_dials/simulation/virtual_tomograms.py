"""Virtual tomograms made in the volume, without projections: fresh training data in a second or
two.

Filtered back-projection of -ln T of a weakly refracting sample is, to good approximation, the
sample itself seen through the contrast transfer of free propagation, in three dimensions::

    t(f) = cos(chi) mu(f) + (4 pi / lambda) sin(chi) delta(f),    chi = pi lambda z |f|^2

(Guigay, Optik 49 (1977) 121, for a projection; the central-slice theorem makes it
three-dimensional), times the detector's point spread. f: in 1/um; mu in 1/um; lambda, z in um.
For small chi that is mu - z laplacian(delta). What few projections and a missing wedge leave out is
taken out of the spectrum by the density of the projections' lines in it,
:func:`projection_density`. Noise is white
in projections, so that in slices across the rotation axis its power grows as |f|, and along the
axis it is white. Rings, streaks, cupping and an offset are added.

What the model lacks: that -ln saturates where fringes are strong (their steps are 1.0 times those
of a scan at 0.4 mm, 1.4 times at 2.5 mm and 2.4 times at 8 mm; 3.5 keV, voxels of 1 um; half of the
random tomograms are bent for that), that refraction shows surfaces further out and draws a shadow
along the rim (:mod:`anacor_dials.segmentation.edges`), the streaks between very dense bodies,
detectors' non-linearity. Training mixes it with full scans therefore.

Everything is drawn wider than life, so that a network trained on it depends on none of it
(SynthSeg: Billot et al., Med. Image Anal. 86 (2023) 102789).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import wavelength_from_energy
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Tomogram
from anacor_dials.simulation.sample_families import random_solids
from anacor_dials.simulation.samples import default_materials
from anacor_dials.simulation.solids import Solid, on_grid

Array = NDArray[np.float32]

# of the tomograms have traits wider than life; in the others a person would see the crystal, and
# from those a network learns most
WIDE = 0.3

# what counts as what in the labels
LABEL_OF = {
    "background": "background",
    "liquor": "liquor",
    "salt": "liquor",
    "ice": "liquor",
    "dirt": "liquor",
    "loop": "loop",
    "pin": "loop",
    "crystal": "crystal",
}


@dataclass(frozen=True)
class Optics:
    """How a tomogram is taken.

    Parameters
    ----------
    energy_keV : float
    distance_um : float
        From the sample to the scintillator.
    blur_um : float
        Standard deviation of the point spread, with that of interpolation.
    bin_um : float
        The edge of the blocks over which fine voxels were averaged, 0 for none.
    n_projections : int
        Over 180 degrees less the missing wedge.
    missing_wedge_deg, wedge_at_deg : float
        How wide the missing wedge is, and where it begins.
    noise : float
        Standard deviation of a voxel, 1/um.
    noise_cut : float
        0 for the full ramp, 1 for noise whose highest frequencies a window has removed.
    """

    energy_keV: float
    distance_um: float
    blur_um: float
    bin_um: float = 0.0
    n_projections: int = 600
    missing_wedge_deg: float = 0.0
    wedge_at_deg: float = 0.0
    noise: float = 0.0
    noise_cut: float = 0.0

    def __post_init__(self) -> None:
        for name in ("distance_um", "blur_um", "bin_um", "noise"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be >= 0.")
        if self.n_projections < 2 or not 0 <= self.missing_wedge_deg < 180:
            raise ValueError(
                f"{self.n_projections} projections over {180 - self.missing_wedge_deg} degrees make no tomogram."
            )

    @property
    def wavelength_um(self) -> float:
        """The wavelength of the photons, um."""
        return wavelength_from_energy(self.energy_keV) * 1e-4


@dataclass(frozen=True)
class Artefacts:
    """What else is wrong with a tomogram; amplitudes in units of mu of the liquor.

    Parameters
    ----------
    rings : float
        Standard deviation.
    n_streaks, streak : int, float
        How many, and their largest amplitude.
    cupping : float
        Change of the sample's values from the middle to the edge of the field of view.
    ramp : float
        Change of the values across the volume.
    offset : float
        Added everywhere.
    truncation : float
        Brightening towards the rim, as of a sample larger than the field of view.
    saturation : float
        The level s at which -ln of strong fringes bends, s asinh(t / s); 0 for none.
    """

    rings: float = 0.0
    n_streaks: int = 0
    streak: float = 0.0
    cupping: float = 0.0
    ramp: float = 0.0
    offset: float = 0.0
    truncation: float = 0.0
    saturation: float = 0.0


@dataclass(frozen=True, eq=False)
class VirtualTomogram:
    """A tomogram with its true labels.

    Parameters
    ----------
    tomogram : Tomogram
        In 1/um.
    labels : LabelVolume
    record : mapping
        How it was made, plain values.
    """

    tomogram: Tomogram
    labels: LabelVolume
    record: Mapping[str, Any]


def projection_density(
    shape: tuple[int, int],
    n_projections: int,
    missing_wedge_deg: float = 0.0,
    wedge_at_deg: float = 0.0,
) -> Array:
    """How densely projections sample each frequency (ny, nz // 2 + 1) of a slice; 1 where enough
    of them do.

    Parameters
    ----------
    shape : (int, int)
        Of the slice, (ny, nz).
    n_projections : int
    missing_wedge_deg, wedge_at_deg : float
        As of :class:`Optics`.

    Notes
    -----
    Every projection gives the spectrum on a line through the origin at its angle. The lines are
    laid down weighted by |f| times their angular distance, as filtered back-projection does, with
    linear interpolation; the sum is one where the lines lie closer than the spectrum's own grid,
    uneven beyond, and zero in a missing wedge.
    """
    ny, nz = shape
    size = max(ny, nz)
    r = np.arange(0.25, 0.75 * size, 0.5)
    span = np.pi * (1 - missing_wedge_deg / 180)
    start = np.deg2rad(wedge_at_deg + missing_wedge_deg)
    angles = start + span * (np.arange(n_projections) + 0.5) / n_projections
    weight = np.broadcast_to(r * 0.5 * span / n_projections, (n_projections, r.size))
    total = np.zeros((ny, nz))
    for sign in (1.0, -1.0):
        v = sign * np.sin(angles)[:, None] * r * (ny / size)
        w = sign * np.cos(angles)[:, None] * r * (nz / size)
        v0, w0 = np.floor(v).astype(int), np.floor(w).astype(int)
        for dv in (0, 1):
            for dw in (0, 1):
                part = weight * np.abs(1 - dv - (v - v0)) * np.abs(1 - dw - (w - w0))
                i, j = v0 + dv, w0 + dw
                keep = (i >= -(ny // 2)) & (i < (ny + 1) // 2)
                keep &= (j >= -(nz // 2)) & (j < (nz + 1) // 2)
                index = ((i % ny) * nz + (j % nz))[keep]
                total += np.bincount(index, part[keep], minlength=ny * nz).reshape(ny, nz)
    total *= (ny / size) * (nz / size)
    total[0, 0] = 1.0  # all projections share it
    return total[:, : nz // 2 + 1].astype(np.float32)


def propagated(
    mu: Array, delta: Array, voxel_size_um: float, optics: Optics, rng: np.random.Generator
) -> Array:
    """The tomogram (nx, ny, nz) in 1/um, with noise, as the optics show it.

    The volume is periodic here: it needs a margin of air, or of what continues beyond it.

    Parameters
    ----------
    mu, delta : array (nx, ny, nz)
        mu in 1/um; 1 - delta is the refractive index.
    voxel_size_um : float
    optics : Optics
    rng : Generator
        Of the noise.
    """
    nx, ny, nz = mu.shape
    fx, fy = (scipy.fft.fftfreq(n, voxel_size_um).astype(np.float32) for n in (nx, ny))
    fz = scipy.fft.rfftfreq(nz, voxel_size_um).astype(np.float32)
    across = fy[:, None] ** 2 + fz**2
    squares = fx[:, None, None] ** 2 + across
    chi = np.float32(np.pi * optics.wavelength_um * optics.distance_um) * squares
    spectrum = scipy.fft.rfftn(mu)
    if optics.distance_um > 0:
        spectrum *= np.cos(chi)
        spectrum += (
            np.float32(4 * np.pi / optics.wavelength_um) * np.sin(chi) * scipy.fft.rfftn(delta)
        )
    squares *= np.float32(-2 * np.pi**2 * optics.blur_um**2)
    spectrum *= np.exp(squares)
    if optics.bin_um > 0:
        for k, f in enumerate((fx, fy, fz)):
            spectrum *= (
                np.sinc(f * optics.bin_um)
                .astype(np.float32)
                .reshape([-1 if i == k else 1 for i in range(3)])
            )
    density = projection_density(
        (ny, nz), optics.n_projections, optics.missing_wedge_deg, optics.wedge_at_deg
    )
    spectrum *= np.minimum(density, 3.0)
    if optics.noise > 0:
        power = np.sqrt(across) * np.minimum(density, 3.0)
        if optics.noise_cut > 0:
            nyquist = 0.5 / voxel_size_um
            window = np.cos(0.5 * np.pi * np.minimum(np.sqrt(across) / nyquist, 1.0)) ** 2
            power = power * ((1 - optics.noise_cut) + optics.noise_cut * window) ** 2
        # of white noise of one per voxel each coefficient of the spectrum has the power nx ny nz
        full = np.concatenate([power, power[:, 1 : (nz + 1) // 2]], axis=1)
        amplitude = np.sqrt(power / full.mean()) * np.float32(optics.noise)
        white = rng.standard_normal(mu.shape, dtype=np.float32)
        spectrum += amplitude.astype(np.float32) * scipy.fft.rfftn(white)
    out: Array = scipy.fft.irfftn(spectrum, mu.shape)
    return out


def add_artefacts(
    values: Array, level: float, artefacts: Artefacts, rng: np.random.Generator
) -> None:
    """Adds rings, streaks and slow changes to a tomogram, in place.

    Parameters
    ----------
    values : array (nx, ny, nz)
        In 1/um.
    level : float
        mu of the liquor, 1/um.
    artefacts : Artefacts
    rng : Generator
    """
    a = artefacts
    nx, ny, nz = values.shape
    y = (np.arange(ny) - (ny - 1) / 2 + rng.normal(0, 3))[:, None]
    z = (np.arange(nz) - (nz - 1) / 2 + rng.normal(0, 3))[None, :]
    r = np.sqrt(y**2 + z**2)
    rim = max(ny, nz) / 2
    if a.saturation:
        s = np.float32(a.saturation * level)
        np.multiply(np.arcsinh(values / s), s, out=values)
    if a.cupping:
        values *= (1 + a.cupping * ((r / rim) ** 2 - 0.3)).astype(np.float32)
    if a.truncation:
        values += np.float32(a.truncation * level) * np.minimum((r / rim) ** 4, 1.5).astype(
            np.float32
        )
    if a.ramp:
        slope = rng.uniform(-1, 1, 3) * a.ramp * level
        for k, n in enumerate((nx, ny, nz)):
            line = np.linspace(-0.5, 0.5, n).reshape([-1 if i == k else 1 for i in range(3)])
            values += (slope[k] * line).astype(np.float32)
    if a.rings:
        n_r = int(r.max()) + 3
        table = rng.standard_normal((nx, n_r)) * (rng.random((1, n_r)) < rng.uniform(0.1, 1.0))
        table = scipy.ndimage.gaussian_filter(table, (rng.uniform(0.0, 6.0), rng.uniform(0.3, 1.0)))
        table *= a.rings * level / max(float(table.std()), 1e-9)
        nearest = np.rint(r).astype(np.intp)
        fade = (1 / np.sqrt(1 + r / 20)).astype(np.float32)
        for x in range(nx):
            values[x] += fade * table[x].astype(np.float32)[nearest]
    for _ in range(a.n_streaks):
        angle, shift = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5) * rim
        off = np.abs(y * np.cos(angle) + z * np.sin(angle) - shift)
        width = rng.uniform(0.5, 2.5)
        profile = np.exp(-0.5 * (off / width) ** 2) * rng.uniform(-1, 1) * a.streak * level
        middle, length = int(rng.integers(nx)), rng.uniform(1.0, 12.0)
        first, last = max(0, int(middle - 3 * length)), min(nx, int(middle + 3 * length) + 1)
        along = np.exp(-0.5 * ((np.arange(first, last) - middle) / length) ** 2)
        values[first:last] += (along[:, None, None] * profile).astype(np.float32)
    if a.offset:
        values += np.float32(a.offset * level)


# ---- random tomograms ----------------------------------------------------------------------------


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def random_optics(
    rng: np.random.Generator, energy_keV: float, voxel_size_um: float, mu: float, wide: bool = True
) -> Optics:
    """Random optics of a tomogram.

    Parameters
    ----------
    rng : Generator
    energy_keV, voxel_size_um : float
    mu : float
        Of the liquor, 1/um.
    wide : bool
        True: from no fringes to strong ones, from 60 to 900 projections, noise of 1 to 45 % of mu,
        and missing wedges. False, as most scans are: 1.5 to 25 mm of free path, 140 to 900
        projections, noise of 1 to 12 %.
    """
    binned = rng.random() < 0.3
    wedge = float(rng.uniform(4, 50)) if wide and rng.random() < 0.15 else 0.0
    few = wide and rng.random() < 0.25
    none = wide and rng.random() < 0.15
    path_mm = _log_uniform(rng, 0.25, 30.0) if wide else _log_uniform(rng, 1.5, 25.0)
    return Optics(
        energy_keV=energy_keV,
        distance_um=0.0 if none else 1e3 * path_mm,
        blur_um=voxel_size_um * _log_uniform(rng, 0.45, 1.5 if wide else 1.1),
        bin_um=voxel_size_um if binned else 0.0,
        n_projections=int(rng.integers(60, 140)) if few else int(rng.integers(140, 900)),
        missing_wedge_deg=wedge,
        wedge_at_deg=float(rng.uniform(0, 180)),
        noise=mu * _log_uniform(rng, 0.01, 0.45 if wide else 0.12),
        # linear interpolation alone takes off what 0.45 does
        noise_cut=float(rng.uniform(0.2, 1)) if rng.random() < 0.7 else 0.0,
    )


def random_artefacts(rng: np.random.Generator, local: bool = False, wide: bool = True) -> Artefacts:
    """Random artefacts, from none to strong.

    Parameters
    ----------
    rng : Generator
    local : bool
        Whether those of a sample larger than the field of view are among them.
    wide : bool
        If False, they are half as strong and less than half as frequent.
    """
    often, strong = (1.0, 1.0) if wide else (0.4, 0.5)

    def some(chance: float, low: float, high: float) -> float:
        if rng.random() >= chance * often:
            return 0.0
        return float(rng.uniform(low * strong, high * strong))

    return Artefacts(
        rings=some(0.4, 0.005, 0.09),
        n_streaks=int(some(0.35, 4, 40)),
        streak=float(rng.uniform(0.05, 0.5)) * strong,
        cupping=some(0.45, -0.25, 0.25),
        ramp=some(0.25, 0.0, 0.1),
        offset=some(0.4, -0.06, 0.06) + (some(0.7, -0.2, 0.35) if local else 0.0),
        truncation=some(0.6, 0.05, 0.5) if local else 0.0,
        saturation=_log_uniform(rng, 1.5, 10.0) if rng.random() < 0.5 else 0.0,
    )


def random_levels(
    rng: np.random.Generator, energy_keV: float, loop_material: str, fringes: bool = True
) -> tuple[dict[str, tuple[float, float]], float]:
    """(mu in 1/um and delta by material, contrast).

    The contrast is mu of the crystal over that of the liquor, less one: -30 to +60 %, and within
    2 % of equal in a fourth of all. From compositions: at 3.5 keV a crystal of 35 % solvent has
    -29 % in 2 M NaCl, -25 % in 2 M ammonium sulfate and +15 % in 50 % MPD; heavy atoms add to it.
    The crystal's electron density, and so its delta, is 0.96 to 1.22 times that of the liquor.
    Loops are as bright beside the liquor as in 4 M NaCl with glycerol, in 50 % MPD, or between.
    Without fringes a crystal as bright as its liquor cannot be seen, so that the contrast is then
    at least 5 %.

    Parameters
    ----------
    rng : Generator
    energy_keV : float
    loop_material : str
        "nylon" or "polyimide".
    fringes : bool
        Whether there are any.
    """
    compositions = default_materials()
    mu = compositions["liquor"].mu_per_um(energy_keV)
    delta = compositions["liquor"].refractive_index(energy_keV)[0]
    kind = rng.random()
    if kind < 0.25:
        contrast = rng.uniform(-0.02, 0.02)
    elif kind < 0.72:
        contrast = rng.uniform(-0.15, 0.15)
    elif kind < 0.86:
        contrast = rng.uniform(-0.30, -0.15)
    else:
        contrast = rng.uniform(0.15, 0.60)
    if not fringes and abs(contrast) < 0.05:
        contrast = rng.choice([-1.0, 1.0]) * rng.uniform(0.05, 0.15)
    denser = rng.uniform(1.02, 1.22) if rng.random() < 0.9 else rng.uniform(0.96, 1.02)
    # relative to the liquor of default_materials; then the range of liquors, from 4 M NaCl with
    # glycerol to 50 % MPD
    loop_mu, loop_delta = (0.81, 1.22) if loop_material == "polyimide" else (0.59, 1.045)
    loop_mu *= _log_uniform(rng, 0.45, 1.4)
    loop_delta *= rng.uniform(0.91, 1.10)
    salt = _log_uniform(rng, 3.0, 20.0)
    levels = {
        "background": (0.0, 0.0),
        "liquor": (mu, delta),
        "crystal": (mu * (1 + contrast), delta * denser),
        "loop": (mu * loop_mu, delta * loop_delta),
        "salt": (mu * salt, delta * rng.uniform(1.4, 2.2)),
        "ice": (
            mu * (rng.uniform(0.75, 1.1) if rng.random() < 0.6 else _log_uniform(rng, 1.5, 6.0)),
            delta * 0.87,
        ),
        "dirt": (mu * rng.uniform(0.4, 4.0), delta * rng.uniform(0.8, 2.0)),
        "pin": (mu * _log_uniform(rng, 0.8, 20.0), delta * rng.uniform(1.2, 2.5)),
    }
    return levels, float(contrast)


def random_tomogram(
    rng: np.random.Generator,
    voxel_size_um: tuple[float, float] = (0.9, 1.7),
    voxels: tuple[int, int] = (96, 160),
) -> VirtualTomogram:
    """A fresh virtual tomogram with its labels; about a second of one core for 128^3 voxels.

    One in twelve samples is larger than the field of view.

    Parameters
    ----------
    rng : Generator
    voxel_size_um : (float, float)
        The range that most voxels' sizes are drawn from. One in six is coarser, up to 2.5 um.
    voxels : (int, int)
        Least and largest number along an edge.
    """
    voxel = float(rng.uniform(*voxel_size_um))
    if rng.random() < 1 / 6:
        voxel = float(rng.uniform(voxel_size_um[1], 2.5))
    local = rng.random() < 1 / 12
    across = int(rng.integers(voxels[0], voxels[1] + 1))
    along = int(rng.integers(voxels[0], voxels[1] + 1))
    shape = (along, across, across)
    shape = tuple(scipy.fft.next_fast_len(n, real=True) for n in shape)
    centre = (np.array(shape) - 1) / 2
    field = 0.5 * min(shape) * voxel
    radius = field * (rng.uniform(1.3, 2.6) if local else rng.uniform(0.55, 0.92))
    solids, record = random_solids(rng, radius)
    energy = _log_uniform(rng, 2.2, 7.0)
    wide = rng.random() < WIDE
    optics = random_optics(rng, energy, voxel, 1.0, wide)
    fringes = optics.distance_um > 500.0
    levels, contrast = random_levels(rng, energy, record["loop_material"], fringes)
    (mu, delta), found = sample_on_grid(solids, levels, shape, voxel, centre)
    level = levels["liquor"][0]
    optics = replace(optics, noise=optics.noise * level)
    artefacts = random_artefacts(rng, local, wide)
    values = propagated(mu, delta, voxel, optics, rng)
    add_artefacts(values, level, artefacts, rng)
    record = {
        **record,
        "maker": "volume",
        "contrast": contrast,
        "local": local,
        "wide": wide,
        "optics": asdict(optics),
        "artefacts": asdict(artefacts),
        "noise_of_mu": optics.noise / level,
    }
    size = np.full(3, voxel)
    return VirtualTomogram(
        Tomogram(values, size, centre), LabelVolume(found, size, centre, DEFAULT_NAMES), record
    )


def sample_on_grid(
    solids: list[Solid],
    levels: Mapping[str, tuple[float, float]],
    shape: tuple[int, int, int],
    voxel_size_um: float,
    centre: FloatArray,
) -> tuple[tuple[Array, Array], NDArray[np.uint8]]:
    """((mu in 1/um, delta), labels uint8) of solids, each (nx, ny, nz).

    Parameters
    ----------
    solids : list of Solid
    levels : mapping
        (mu in 1/um, delta) by material.
    shape : (int, int, int)
    voxel_size_um : float
    centre : array (3,)
        Voxel index of the origin.
    """
    labels = {material: DEFAULT_NAMES.index(name) for material, name in LABEL_OF.items()}
    (mu, delta), found = on_grid(solids, levels, labels, shape, voxel_size_um, centre)
    return (mu, delta), found
