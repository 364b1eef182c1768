"""The X-ray wave behind a sample: incident wave, passage through the sample, free propagation.

n = 1 - delta + i beta; the wave is exp(+ikz), k = 2 pi / wavelength. A layer with thicknesses T_m
of the materials m multiplies it by

    exp(-1/2 sum_m mu_m T_m - i k sum_m delta_m T_m),        mu = 2 k beta

and free space over a distance z multiplies its Fourier transform, spatial frequency f in 1/um, by

    exp(-i pi wavelength z f^2)                              Fresnel
    exp(i k z (sqrt(1 - (wavelength f)^2) - 1))              angular spectrum

(J. W. Goodman, Introduction to Fourier Optics, section 4; D. M. Paganin, Coherent X-ray Optics,
sections 1.3 and 2.2). On a grid of M points at distance dx, the phase of the first is sampled well
enough if |z| <= M dx^2 / wavelength; larger distances are refused. What leaves the grid on one side
enters it on the other; therefore it is padded. Images have their first index along X and their
second along Y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.materials import wavelength_from_energy

LARGEST_GRID = 16384  # points along one side: 2 GB in single precision
LARGEST_CHOSEN_GRID = 8192  # points along one side that `enough_points` takes, without margins
LEAST_POINTS = 2  # per pixel
# Electrons in 1 um^3 of what samples are made of (protein, its liquor, polyimide: 0.33 to 0.45 per
# cubic Angstrom)
ELECTRONS_PER_UM3 = 4.5e11
CLASSICAL_ELECTRON_RADIUS_UM = 2.8179403e-9
# At the rim of a body its thickness grows by so much more than the way from the rim, and more
# steeply still within 1/500 of the radius. In a ball of 60 um (4 keV, 15 mm, pixels of 1.5 um)
# -ln T differed from that of a finer grid by 0.057 (rms) at slopes up to 11, by 0.009 up to 22, and
# by 0.003 up to 33
STEEPEST_SLOPE = 32.0
PROPAGATORS = ("fresnel", "angular_spectrum")
PRECISIONS = {"single": torch.complex64, "double": torch.complex128}


def wavelength_um(energy_keV: float) -> float:
    """The wavelength in um of a photon energy in keV."""
    return wavelength_from_energy(energy_keV) * 1e-4


def fast_length(n: int) -> int:
    """The smallest even length >= n without a prime factor above 5, for fast Fourier transforms."""
    if n > 2**24:
        return n
    length = n + n % 2
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def longest_step_um(pixel_um: float, energy_keV: float, distance_mm: float) -> float:
    """The longest step of the wave by which light at rims goes where it belongs, um.

    A sample turns the wave by (2 pi / lambda) delta g per length where its thickness has the slope
    g. Where that is more than half a turn from point to point, the light is sent elsewhere. So
    lambda / (2 delta g) is the longest step for slopes up to STEEPEST_SLOPE, and half a pixel is
    short enough at any rate. Without free propagation the phase does not matter.

    Parameters
    ----------
    pixel_um, energy_keV, distance_mm : float
    """
    wavelength = wavelength_um(energy_keV)
    step = pixel_um / LEAST_POINTS
    if distance_mm == 0:
        return step
    delta = CLASSICAL_ELECTRON_RADIUS_UM * wavelength**2 * ELECTRONS_PER_UM3 / (2 * math.pi)
    return min(step, wavelength / (2 * delta * STEEPEST_SLOPE))


def enough_points(
    image_shape: tuple[int, int], pixel_um: float, energy_keV: float, distance_mm: float
) -> int:
    """Points of the wave per pixel and direction, for steps of :func:`longest_step_um`.

    There are no more than LARGEST_CHOSEN_GRID along one side, and at least LEAST_POINTS per pixel.

    Parameters
    ----------
    image_shape : (int, int)
        Pixels (nx, ny).
    pixel_um, energy_keV, distance_mm : float
    """
    longest = longest_step_um(pixel_um, energy_keV, distance_mm)
    if not longest > 0:
        return LEAST_POINTS  # WaveGrid refuses such pixels
    enough = math.ceil(pixel_um / longest - 1e-9)
    return max(LEAST_POINTS, min(enough, LARGEST_CHOSEN_GRID // max(image_shape)))


@dataclass(frozen=True)
class WaveGrid:
    """The grid of the wave: finer than the pixels of the detector, with a margin on each side.

    Attributes
    ----------
    image_shape : (int, int)
        Pixels (nx, ny) of the detector.
    pixel_um : float
        Their size.
    oversampling : int
        Points per pixel and direction.
    shape : (int, int)
        Points (mx, my) with the margins.
    margin : (int, int)
        Points before the first pixel along X and Y.
    """

    image_shape: tuple[int, int]
    pixel_um: float
    oversampling: int
    shape: tuple[int, int]
    margin: tuple[int, int]

    @classmethod
    def around(
        cls,
        image_shape: tuple[int, int],
        pixel_um: float,
        oversampling: int,
        energy_keV: float,
        distance_mm: float,
        least_margin: int = 8,
    ) -> WaveGrid:
        """The grid for an image, with margins and a fast length.

        The margins are wavelength z / (2 dx^2) points: so far the finest detail on the grid is
        displaced sideways over the distance z.

        Parameters
        ----------
        image_shape : (int, int)
            Pixels (nx, ny).
        pixel_um : float
        oversampling : int
            Points per pixel and direction.
        energy_keV, distance_mm : float
        least_margin : int
            Points.
        """
        if min(image_shape) < 2 or oversampling < 1:
            raise ValueError(
                f"An image of {image_shape[0]} x {image_shape[1]} pixels with {oversampling} points "
                "per pixel cannot be made; at least 2 x 2 pixels and 1 point are needed."
            )
        if not (math.isfinite(pixel_um) and 0 < pixel_um < 1e3):
            raise ValueError(f"The pixel size is {pixel_um} um; it must lie between 0 and 1000 um.")
        if not (math.isfinite(distance_mm) and 0 <= distance_mm < 1e5):
            raise ValueError(
                f"The distance from sample to detector is {distance_mm} mm; it must lie between 0 and "
                "100 m."
            )
        dx = pixel_um / oversampling
        carried = math.ceil(wavelength_um(energy_keV) * distance_mm * 1e3 / (2 * dx**2))
        shape, margin = [], []
        for n in image_shape:
            inside = n * oversampling
            length = fast_length(inside + 2 * max(carried, least_margin))
            if length > LARGEST_GRID:
                raise ValueError(
                    f"Images of {n} pixels with {oversampling} points of {dx:g} um per pixel over "
                    f"{distance_mm:g} mm need a grid of {length} points, and {LARGEST_GRID} are the "
                    "most; shorten the distance, or take fewer or larger pixels or less oversampling."
                )
            shape.append(length)
            margin.append((length - inside) // 2)
        return cls(
            image_shape, pixel_um, oversampling, (shape[0], shape[1]), (margin[0], margin[1])
        )

    @property
    def step_um(self) -> float:
        """The distance of the points, um."""
        return self.pixel_um / self.oversampling

    def first_point_um(self, centre: ArrayLike) -> FloatArray:
        """X and Y (2,) of the first point; the origin is at pixel `centre` (2,) of the image."""
        first_pixel = -np.asarray(centre, dtype=np.float64) * self.pixel_um
        in_pixel = 0.5 * (self.oversampling - 1) * self.step_um
        return first_pixel - in_pixel - np.array(self.margin) * self.step_um

    def refined(self, image: ArrayLike) -> NDArray[np.float64]:
        """An image (nx, ny) on the points of the grid: linear between pixels, mirrored beyond the
        edge.
        """
        out = np.asarray(image, dtype=np.float64)
        if out.shape != self.image_shape:
            raise ValueError(
                f"The flat has {out.shape[0]} x {out.shape[1]} pixels and the images "
                f"{self.image_shape[0]} x {self.image_shape[1]}; crop or bin one of them."
            )
        for axis in (0, 1):
            n = out.shape[axis]
            place = (
                np.arange(self.shape[axis]) - self.margin[axis] + 0.5
            ) / self.oversampling - 0.5
            place = place % (2 * n - 2)  # mirrored about the centres of the outermost pixels
            place = np.where(place > n - 1, 2 * n - 2 - place, place)
            low = np.minimum(place.astype(np.intp), n - 2)
            weight = (place - low).reshape((-1, 1) if axis == 0 else (1, -1))
            out = np.take(out, low, axis) * (1 - weight) + np.take(out, low + 1, axis) * weight
        return out


def require_sampling(
    shape: Sequence[int], step_um: float, distance_um: float, energy_keV: float
) -> None:
    """Raises ValueError if the grid is too coarse for the Fresnel transfer function.

    Parameters
    ----------
    shape : (int, int)
        Points.
    step_um, distance_um, energy_keV : float
    """
    longest_um = min(shape) * step_um**2 / wavelength_um(energy_keV)
    if abs(distance_um) > longest_um * (1 + 1e-9):
        raise ValueError(
            f"Propagation over {abs(distance_um) * 1e-3:.4g} mm is undersampled: {min(shape)} points of "
            f"{step_um:g} um at {energy_keV:g} keV reach {longest_um * 1e-3:.4g} mm; shorten the "
            "distance, take more pixels, larger ones, or less oversampling."
        )


def transfer_function(
    shape: tuple[int, int],
    step_um: float,
    distance_um: float,
    energy_keV: float,
    propagator: str = "fresnel",
    device: str = "cpu",
    precision: str = "single",
) -> torch.Tensor:
    """The factor (mx, my) on the Fourier transform of the wave; complex, modulus <= 1.

    Parameters
    ----------
    shape : (int, int)
        Points (mx, my).
    step_um, distance_um, energy_keV : float
    propagator : str
        fresnel or angular_spectrum.
    device : str
    precision : str
        single or double.

    Raises
    ------
    ValueError
        If the propagator is unknown, or the grid is too coarse or too small.
    """
    if propagator not in PROPAGATORS:
        raise ValueError(
            f"The propagator {propagator!r} is unknown; known are {', '.join(PROPAGATORS)}."
        )
    require_sampling(shape, step_um, distance_um, energy_keV)
    wavelength = wavelength_um(energy_keV)
    f2 = sum(
        torch.fft.fftfreq(n, step_um, dtype=torch.float64, device=device).square().reshape(view)
        for n, view in zip(shape, ((-1, 1), (1, -1)), strict=True)
    )
    if propagator == "fresnel":
        phase = -math.pi * wavelength * distance_um * f2
    else:
        cosine = torch.sqrt(torch.clamp(1 - wavelength**2 * f2, min=0.0))
        # cos - 1 = -(wavelength f)^2 / (cos + 1), without cancellation
        phase = -2 * math.pi * wavelength * distance_um * f2 / (cosine + 1)
    return torch.polar(torch.ones_like(phase), phase).to(PRECISIONS[precision])


def propagated(wave: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
    """The wave (mx, my) after the distance of its transfer function."""
    return torch.fft.ifft2(torch.fft.fft2(wave) * transfer)


def incident_wave(flat: torch.Tensor, transfer_to_detector: torch.Tensor) -> torch.Tensor:
    """The wave at the sample that gives the intensities `flat` (mx, my) on the detector.

    It is sqrt(flat) propagated back from the detector. So without a sample the detector sees
    exactly flat.
    """
    wave = torch.sqrt(flat.clamp(min=0)).to(transfer_to_detector.dtype)
    return propagated(wave, transfer_to_detector.conj())


def sample_factor(
    thicknesses_um: torch.Tensor, mu_per_um: ArrayLike, delta: ArrayLike, energy_keV: float
) -> torch.Tensor:
    """The factor (mx, my) by which a layer multiplies the wave.

    Parameters
    ----------
    thicknesses_um : tensor (n, mx, my)
    mu_per_um, delta : array (n,)
        Of the materials; mu in 1/um.
    energy_keV : float
    """
    k = 2 * math.pi / wavelength_um(energy_keV)
    weights = {"device": thicknesses_um.device, "dtype": thicknesses_um.dtype}
    mu = torch.as_tensor(np.asarray(mu_per_um, dtype=np.float64), **weights)
    phase_per_um = torch.as_tensor(-k * np.asarray(delta, dtype=np.float64), **weights)
    log_modulus = torch.tensordot(-0.5 * mu, thicknesses_um, dims=1)
    return torch.polar(
        torch.exp(log_modulus), torch.tensordot(phase_per_um, thicknesses_um, dims=1)
    )


def detector_intensity(
    incident: torch.Tensor,
    layers: Sequence[torch.Tensor],
    between: torch.Tensor | None,
    to_detector: torch.Tensor,
) -> torch.Tensor:
    """Intensities (mx, my) on the detector of a wave that passes layers one after the other.

    Parameters
    ----------
    incident : tensor (mx, my)
        The wave at the first layer.
    layers : iterable of tensors
        Factors of :func:`sample_factor`, in the order of the beam.
    between : tensor or None
        The transfer function from one layer to the next; None for one layer.
    to_detector : tensor
        The transfer function from the last layer to the detector.
    """
    wave = incident
    for number, layer in enumerate(layers):
        if number and between is not None:
            wave = propagated(wave, between)
        wave = wave * layer
    wave = propagated(wave, to_detector)
    return wave.real.square() + wave.imag.square()


def on_device(values: NDArray[Any], device: str, precision: str) -> torch.Tensor:
    """The values as a real tensor on a device.

    Parameters
    ----------
    values : array
    device : str
    precision : str
        single or double.
    """
    dtype = torch.float32 if precision == "single" else torch.float64
    return torch.as_tensor(np.ascontiguousarray(values), dtype=dtype).to(device)
