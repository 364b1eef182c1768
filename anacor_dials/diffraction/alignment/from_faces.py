"""The alignment from the faces of the crystal: the offset and the sense at which they are lattice
planes.

It needs no intensities and no absorption. At a trial alignment each normal of a face is turned into
the datum frame. Either the face has nothing to do with the lattice, and any direction is as likely;
or it belongs to a form of lattice planes, with the density of its normal

    p(n) = 1 / m sum_k exp(-angle(n, r_k)^2 / (2 s^2)) / (2 pi s^2)

over the unit reciprocal vectors r_k of its m planes; s is the standard error of the normal.
Crystals have few forms: that the next face is one of a form that n faces are of already has the
probability (n + a) / (N + 1) after N faces (Polya's urn). The a of all forms together are 1; they
fall with the rank, since forms of large interplanar distance are frequent. The likelihood of a
trial is the product of these densities and probabilities, with each face in that form in which it
is most likely. It is compared with the likelihood that no face has to do with the lattice.

An alignment is determined only if its likelihood is far above that of faces that have nothing to do
with the lattice, and above that of every other trial. Symmetry makes rivals: a twofold axis of the
lattice along the rotation axis gives two offsets, and one across it both senses. A mirror image of
the sample cannot be seen in this way. Reciprocal lattices have a centre of symmetry, and the mirror
image turned by 180 deg about the normal of the mirror has the negative normals; so mirrored labels
fit at another offset or with the other sense.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

from anacor_dials.diffraction.crystal_surface.indices import LatticePlanes
from anacor_dials.diffraction.reflections import Alignment
from anacor_dials.sample.frames import FloatArray, transform

logger = logging.getLogger("dials.anacor_dials.diffraction.alignment")

STEP_DEG = 0.5
OTHER_FACES = 0.3  # a of the faces that have nothing to do with the lattice
RANK_POWER = 4 / 3  # a of a plane is as the fourth power of the interplanar distance
ROUNDS = 6  # of shares of forms and assignment of faces in turn
LEAST_ERROR_DEG = 0.7  # added to that of a normal, in the search: grid, cell and orientation matrix
COMMON_ERROR_DEG = 0.3  # the same, in the standard error of the offset
BASIN_DEG = 5.0  # trials nearer than this to the best one are no rivals
# Logarithms of likelihood ratios that are needed. About 700 trials are independent: e^6.5.
AGAINST_CHANCE = 14.0
AGAINST_RIVALS = 7.0
FEWEST_DIRECTIONS = 3  # of faces; two opposite ones are one direction
SAME_DIRECTION_DEG = 10.0
LARGEST_ERROR_DEG = 2.0
LARGEST_TILT_DEG = 2.0  # of the whole rotation from one about the axis, without a warning

ToDatum = Callable[[float, int], FloatArray]


@dataclass(frozen=True, eq=False)
class FaceAlignment:
    """The alignment at which the faces of a crystal are lattice planes.

    Attributes
    ----------
    before, after : Alignment
        As given, and the one to use from now on.
    reason : str
        Why it is not determined; empty if it is.
    n_faces, n_directions : int
        Numbers of faces, and of directions among the faces that are lattice planes.
    offset_deg, offset_error_deg : float
        The best offset and its standard error, deg.
    sense : int
        The best rotation sense.
    log_likelihood : float
        Log of the likelihood ratio of the best alignment and of faces without a lattice.
    log_likelihood_before : float
        The same at the given alignment.
    rivals : tuple of (float, int, float)
        Other maxima: offset, deg, sense, and the log of the likelihood ratio of the best to it.
    rms_angle_deg : float
        Between normals of faces and reciprocal vectors, of the lattice planes at the best.
    tilt_deg, tilt_error_deg : float
        How far the whole rotation that fits best is from one about the rotation axis, deg, and its
        standard error.
    offsets_deg : array (m,)
        The trials, deg.
    curves : array (2, m)
        The log of the likelihood ratio at the trials, for the senses 1 and -1.
    """

    before: Alignment
    after: Alignment
    reason: str
    n_faces: int = 0
    n_directions: int = 0
    offset_deg: float = math.nan
    offset_error_deg: float = math.inf
    sense: int = 1
    log_likelihood: float = 0.0
    log_likelihood_before: float = 0.0
    rivals: tuple[tuple[float, int, float], ...] = ()
    rms_angle_deg: float = math.nan
    tilt_deg: float = 0.0
    tilt_error_deg: float = math.inf
    offsets_deg: FloatArray = field(default_factory=lambda: np.zeros(0))
    curves: FloatArray = field(default_factory=lambda: np.zeros((2, 0)))

    @property
    def determined(self) -> bool:
        """Whether the faces determine the alignment."""
        return not self.reason

    @property
    def warnings(self) -> list[str]:
        """Sentences for the user on what does not fit."""
        if self.determined and self.tilt_deg > max(3 * self.tilt_error_deg, LARGEST_TILT_DEG):
            return [
                f"The crystal's faces fit the lattice best if the sample is turned by {self.tilt_deg:.1f} "
                f"({self.tilt_error_deg:.1f}) deg about an axis across the rotation axis as well: see whether "
                "the tomogram was taken on this axis, and whether its voxels are cubes."
            ]
        return []

    def contradicts(self, offset_deg: float, sense: int, error_deg: float = 0.0) -> bool:
        """Whether an alignment is not that of the faces.

        Parameters
        ----------
        offset_deg : float
        sense : int
        error_deg : float
            The standard error of its offset, deg.
        """
        apart = angle_between(offset_deg, self.offset_deg)
        error = math.hypot(self.offset_error_deg, error_deg)
        return sense != self.sense or apart > max(3 * error, BASIN_DEG / 2)


def angle_between(a_deg: float, b_deg: float) -> float:
    """The angle, 0 to 180 deg, between two directions on a circle."""
    return abs((a_deg - b_deg + 180.0) % 360.0 - 180.0)


class _Likelihood:
    """Log of the likelihood ratio of trial alignments of faces (n, 3) in the tomo frame."""

    def __init__(
        self, normals: FloatArray, errors_deg: FloatArray, planes: LatticePlanes, to_datum: ToDatum
    ) -> None:
        self.normals = normals
        self.s = np.radians(np.hypot(errors_deg, LEAST_ERROR_DEG))
        self.planes = planes
        self.to_datum = to_datum
        n_forms = int(planes.form.max()) + 1
        of_form = np.zeros((len(planes), n_forms))
        of_form[np.arange(len(planes)), planes.form] = 1
        self._mean_of_form = of_form / of_form.sum(axis=0)
        a = of_form.T @ planes.rank**-RANK_POWER
        # the last is for faces that have nothing to do with the lattice
        self.a = np.append((1 - OTHER_FACES) * a / a.sum(), OTHER_FACES)

    def _densities(self, offset_deg: float, sense: int) -> tuple[FloatArray, FloatArray]:
        """Densities of the faces, times 4 pi: about the planes (n, m), in the forms (n, f + 1)."""
        turned = transform(self.to_datum(offset_deg, sense), self.normals)
        # 2 (1 - cos) is the square of the chord, and near the square of the angle
        chord = 2 - 2 * np.clip(turned @ self.planes.normals.T, -1.0, 1.0)
        s = self.s[:, None] ** 2
        of_planes = np.exp(-chord / (2 * s)) * 2 / s
        ones = np.ones((len(turned), 1))
        return of_planes, np.hstack([of_planes @ self._mean_of_form, ones])

    def _forms_of(self, densities: FloatArray) -> NDArray[np.int64]:
        """The form (n,) of each face; the last number is for none."""
        share = self.a
        for _ in range(ROUNDS):
            chances = share * densities
            chances = chances / chances.sum(axis=1, keepdims=True)
            share = (chances.sum(axis=0) + self.a) / (len(densities) + 1)
        return np.argmax(share * densities, axis=1)

    def _urn(self, counts: FloatArray) -> float:
        """Log of the probability that so many faces are of each form, in a given order."""
        return float(np.sum(gammaln(counts + self.a) - gammaln(self.a)))

    def __call__(self, offset_deg: float, sense: int) -> float:
        densities = self._densities(offset_deg, sense)[1]
        form = self._forms_of(densities)
        counts = np.bincount(form, minlength=len(self.a)).astype(np.float64)
        none = np.zeros(len(self.a))
        none[-1] = len(form)
        of_faces = np.log(np.maximum(densities[np.arange(len(form)), form], 1e-300)).sum()
        return float(of_faces) + self._urn(counts) - self._urn(none)

    def pairs(
        self, offset_deg: float, sense: int
    ) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
        """Faces (p,) that are lattice planes, their normals and the reciprocal vectors (p, 3)."""
        of_planes, densities = self._densities(offset_deg, sense)
        form = self._forms_of(densities)
        faces = np.flatnonzero(form < len(self.a) - 1)
        mine = np.where(self.planes.form == form[faces, None], of_planes[faces], -1.0)
        turned = transform(self.to_datum(offset_deg, sense), self.normals[faces])
        return faces, turned, self.planes.normals[np.argmax(mine, axis=1)]


def align_by_faces(
    normals: FloatArray,
    errors_deg: FloatArray,
    planes: LatticePlanes,
    to_datum: ToDatum,
    alignment: Alignment,
) -> FaceAlignment:
    """The offset and the sense at which faces are lattice planes, if they are determined.

    Parameters
    ----------
    normals : array (n, 3)
        Outward unit normals of the faces in the tomo frame.
    errors_deg : array (n,)
        Their standard errors, deg.
    planes : LatticePlanes
        Of the crystal, in the datum frame.
    to_datum : function of (offset in deg, sense)
        It returns the rotation (3, 3) from the tomo frame to the datum frame.
    alignment : Alignment
        As given.
    """
    if len(normals) < FEWEST_DIRECTIONS:
        return FaceAlignment(
            alignment, alignment, f"the crystal has {len(normals)} faces", n_faces=len(normals)
        )
    likelihood = _Likelihood(normals, errors_deg, planes, to_datum)
    offsets = np.arange(0.0, 360.0, STEP_DEG)
    curves = np.array([[likelihood(x, sense) for x in offsets] for sense in (1, -1)])
    maxima = _maxima(likelihood, offsets, curves)
    best = maxima[0]
    rivals = tuple(
        (x, sense, best[2] - value)
        for x, sense, value in maxima[1:]
        if sense != best[1] or angle_between(x, best[0]) > BASIN_DEG
    )[:8]
    faces, turned, vectors = likelihood.pairs(best[0], best[1])
    fit = FaceAlignment(
        alignment,
        alignment,
        "",
        n_faces=len(normals),
        n_directions=_directions(vectors),
        offset_deg=best[0] % 360.0,
        sense=best[1],
        log_likelihood=best[2],
        log_likelihood_before=likelihood(alignment.angle_offset_deg, alignment.rotation_sense),
        rivals=rivals,
        offsets_deg=offsets,
        curves=curves,
    )
    if len(faces) >= FEWEST_DIRECTIONS:
        axis = _turning_axis(to_datum, *best[:2])
        s = np.radians(np.hypot(errors_deg[faces], COMMON_ERROR_DEG))
        errors = _errors(turned, vectors, s, axis)
        fit = replace(
            fit,
            offset_error_deg=errors.offset_deg,
            rms_angle_deg=errors.rms_angle_deg,
            tilt_deg=errors.tilt_deg,
            tilt_error_deg=errors.tilt_error_deg,
        )
    reason = _why_not(fit)
    return replace(fit, reason=reason, after=alignment if reason else _moved(fit))


def _maxima(
    likelihood: _Likelihood, offsets: FloatArray, curves: FloatArray
) -> list[tuple[float, int, float]]:
    """Offset, sense and height of the maxima of both curves, the highest first."""
    found = []
    for sense, curve in zip((1, -1), curves, strict=True):
        peaks = (curve >= np.roll(curve, 1)) & (curve > np.roll(curve, -1))
        places = np.flatnonzero(peaks)
        for i in places[np.argsort(-curve[places])][:12]:

            def height(x: float, sense: int = sense, start: float = float(offsets[i])) -> float:
                return -likelihood(start + x, sense)

            result = minimize_scalar(
                height, bounds=(-STEP_DEG, STEP_DEG), method="bounded", options={"xatol": 1e-3}
            )
            found.append((float(offsets[i] + result.x) % 360.0, sense, -float(result.fun)))
    return sorted(found, key=lambda maximum: -maximum[2])


def _directions(vectors: FloatArray) -> int:
    """The number of directions among unit vectors (p, 3); opposite ones are one."""
    chosen: list[FloatArray] = []
    limit = math.cos(math.radians(SAME_DIRECTION_DEG))
    for v in vectors:
        if all(abs(float(v @ c)) < limit for c in chosen):
            chosen.append(v)
    return len(chosen)


def _turning_axis(to_datum: ToDatum, offset_deg: float, sense: int) -> FloatArray:
    """The vector (3,) in the datum frame with d(n) / d(offset) = vector x n, 1/rad."""
    step = 0.5
    ahead, behind = to_datum(offset_deg + step, sense), to_datum(offset_deg - step, sense)
    turn = ahead @ behind.T
    across = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    return np.asarray(across / np.linalg.norm(across))


@dataclass(frozen=True)
class _Errors:
    """Standard errors, and what the residuals of the faces show; see :class:`FaceAlignment`."""

    offset_deg: float
    rms_angle_deg: float
    tilt_deg: float
    tilt_error_deg: float


def _errors(turned: FloatArray, vectors: FloatArray, s: FloatArray, axis: FloatArray) -> _Errors:
    """Standard error of the offset, and the rotation across the axis, from pairs (p, 3).

    Residuals are linear in a small rotation w: vector - normal = w x normal. The error is that of
    the errors s (p,), rad, of the normals, larger if the residuals are, and at least that which the
    scores of the faces give (sandwich formula).
    """
    weight = 1 / s**2
    residual = vectors - turned
    along = np.cross(axis, turned)
    information = float(weight @ (along**2).sum(axis=1))
    step = float(weight @ np.einsum("ij,ij->i", residual, along)) / information
    rest = residual - step * along
    chi2 = float(weight @ (rest**2).sum(axis=1)) / max(2 * len(s) - 1, 1)
    scores = weight * np.einsum("ij,ij->i", rest, along)
    sandwich = math.sqrt(float(scores @ scores) * len(s) / max(len(s) - 1, 1)) / information
    error = max(math.sqrt(max(chi2, 1.0) / information), sandwich)
    # [n]_x^T w = w x n: normal equations of the whole rotation
    x, y, z = turned.T
    zero = np.zeros(len(x))
    cross = np.stack([[zero, z, -y], [-z, zero, x], [y, -x, zero]]).transpose(2, 0, 1)
    normal = np.einsum("k,kji,kjl->il", weight, cross, cross)
    w = np.linalg.solve(normal, np.einsum("k,kji,kj->i", weight, cross, residual))
    covariance = max(chi2, 1.0) * np.linalg.inv(normal)
    tilt = w - (w @ axis) * axis
    length = float(np.linalg.norm(tilt))
    direction = tilt / length if length > 0 else np.cross(axis, turned[0])
    return _Errors(
        offset_deg=math.degrees(error),
        rms_angle_deg=math.degrees(math.sqrt(float((residual**2).sum(axis=1).mean()))),
        tilt_deg=math.degrees(length),
        tilt_error_deg=math.degrees(math.sqrt(float(direction @ covariance @ direction))),
    )


def _why_not(fit: FaceAlignment) -> str:
    """Why the alignment is not determined; empty if it is."""
    if fit.log_likelihood < AGAINST_CHANCE:
        return (
            f"the {fit.n_faces} faces fit the lattice no better at any alignment than faces of another "
            f"crystal might (log of the likelihood ratio {fit.log_likelihood:.1f}; {AGAINST_CHANCE:g} is "
            "needed)"
        )
    if fit.n_directions < FEWEST_DIRECTIONS:
        return (
            f"the faces that are lattice planes have {fit.n_directions} directions, and "
            f"{FEWEST_DIRECTIONS} are needed"
        )
    near = [r for r in fit.rivals if r[2] < AGAINST_RIVALS]
    if near:
        listed = ", ".join(f"{x:.1f} deg with sense {sense:+d}" for x, sense, _ in near)
        return (
            f"offset {fit.offset_deg:.1f} deg with sense {fit.sense:+d} fits the faces hardly better than "
            f"{listed}: the faces are too symmetric about the rotation axis"
        )
    if not fit.offset_error_deg <= LARGEST_ERROR_DEG:
        return (
            f"the standard error of the offset is {fit.offset_error_deg:.1f} deg (at most "
            f"{LARGEST_ERROR_DEG:g} is accepted)"
        )
    return ""


def _moved(fit: FaceAlignment) -> Alignment:
    """The given alignment with the sense and the offset of the faces, nearest to the given one."""
    given = fit.before.angle_offset_deg
    offset = given + ((fit.offset_deg - given + 180.0) % 360.0 - 180.0)
    return replace(fit.before, angle_offset_deg=float(offset), rotation_sense=fit.sense)


def resolved(fit: FaceAlignment, offset_deg: float, sense: int, error_deg: float) -> FaceAlignment:
    """The fit, with the best of its rivals that another determination of the alignment allows.

    Parameters
    ----------
    fit : FaceAlignment
        That is not determined, because of rivals.
    offset_deg, sense : float, int
        What the intensities say.
    error_deg : float
        Its standard error, deg.
    """
    best: Sequence[tuple[float, int, float]] = [(fit.offset_deg, fit.sense, 0.0), *fit.rivals]
    allowed = [
        r
        for r in best
        if r[2] < AGAINST_RIVALS
        and r[1] == sense
        and angle_between(r[0], offset_deg) < max(3 * error_deg, 3 * BASIN_DEG)
    ]
    if len(allowed) != 1:
        return fit
    chosen = replace(fit, offset_deg=allowed[0][0], sense=allowed[0][1], rivals=())
    reason = _why_not(chosen)
    return replace(chosen, reason=reason, after=fit.before if reason else _moved(chosen))
