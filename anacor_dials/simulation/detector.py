"""The detector: from intensities to counts, with noise and errors, and flats.

For each pixel, the intensity is blurred by source and point spread, summed over the pixel, turned
into photons and counted; then

    counts = gain * Poisson(photons * response) + read noise + dark level

and the sum is rounded and limited to the largest number of its type.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray
from anacor_dials.sample.hdf5_files import open_hdf5

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


@dataclass(frozen=True)
class DetectorModel:
    """A camera, and how steady the beam in front of it is.

    Parameters
    ----------
    photons : float
        Per pixel in the mean flat.
    gain : float
        Counts per photon.
    read_noise, dark_level : float
        Counts.
    psf_um, source_blur_um : float
        Full widths at half maximum, at the sample, of the point spread and of the blur by the
        source.
    response_spread : float
        Relative differences between pixels, the same in flats and projections.
    ring_strength, ring_fraction : float
        The response of this fraction of pixels differs between flats and projections by this
        relative amount; this makes rings in the tomogram.
    zinger_rate : float
        The fraction of pixels that are hit directly in an image.
    beam_drift : float
        Relative change of the beam's intensity over the scan.
    flat_shift_px : float
        How far the pattern of the beam moves over the scan, pixels.
    bits : int
        8 to 16.
    """

    photons: float = 4000.0
    gain: float = 4.0
    read_noise: float = 4.0
    dark_level: float = 100.0
    psf_um: float = 0.6
    source_blur_um: float = 0.2
    response_spread: float = 0.02
    ring_strength: float = 0.01
    ring_fraction: float = 0.02
    zinger_rate: float = 2e-6
    beam_drift: float = 0.02
    flat_shift_px: float = 0.5
    bits: int = 16

    def __post_init__(self) -> None:
        for name in ("photons", "gain"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"The detector's {name} is {value}; it must be > 0.")
        for name in (
            "read_noise",
            "dark_level",
            "psf_um",
            "source_blur_um",
            "response_spread",
            "ring_strength",
            "ring_fraction",
            "zinger_rate",
            "flat_shift_px",
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"The detector's {name} is {value}; it must be >= 0.")
        if not abs(self.beam_drift) < 1:
            raise ValueError(f"The beam drift is {self.beam_drift}; it lies between -1 and 1.")
        if not 8 <= self.bits <= 16:
            raise ValueError(f"The detector has {self.bits} bits; 8 to 16 can be written.")
        if self.dark_level + self.gain * self.photons > 0.95 * self.saturation:
            raise ValueError(
                f"{self.photons:g} photons of {self.gain:g} counts each saturate a detector of "
                f"{self.bits} bits ({self.saturation}); lower photons or gain."
            )

    @property
    def saturation(self) -> int:
        """The largest number of counts."""
        return 2**self.bits - 1

    @property
    def blur_sigma_um(self) -> float:
        """Standard deviation of source and point spread together, um."""
        return math.hypot(self.psf_um, self.source_blur_um) / FWHM_PER_SIGMA

    def blur_points(self, step_um: float) -> int:
        """How many points to either side the blur reaches (4 sigma)."""
        return math.ceil(4 * self.blur_sigma_um / step_um) if step_um > 0 else 0


def binning_kernel(sigma_points: float, reach: int, oversampling: int) -> FloatArray:
    """Weights (oversampling + 2 reach,) of the points in and around a pixel; their sum is one.

    A Gaussian, convolved with the pixel.

    Parameters
    ----------
    sigma_points : float
        Standard deviation of the Gaussian, points.
    reach : int
        The Gaussian is zero beyond so many points.
    oversampling : int
        Points per pixel.
    """
    x = np.arange(-reach, reach + 1)
    gauss = np.exp(-0.5 * (x / sigma_points) ** 2) if sigma_points > 0 else (x == 0).astype(float)
    kernel = np.convolve(gauss, np.ones(oversampling))
    return kernel / kernel.sum()


def binned(
    intensity: torch.Tensor,
    image_shape: tuple[int, int],
    margin: tuple[int, int],
    oversampling: int,
    sigma_points: float,
) -> torch.Tensor:
    """Blurred intensities summed into pixels (nx, ny), in units of the intensity.

    Parameters
    ----------
    intensity : tensor (mx, my)
        On the points.
    image_shape : (int, int)
        Pixels (nx, ny).
    margin : (int, int)
        Points before the first pixel along each axis; at least as many as the blur reaches.
    oversampling : int
        Points per pixel and direction.
    sigma_points : float
        Standard deviation of the blur, points.
    """
    reach = math.ceil(4 * sigma_points)
    if min(margin) < reach:
        raise ValueError(
            f"The blur reaches {reach} points and the margin has {min(margin)}; widen the margin."
        )
    kernel = torch.as_tensor(
        binning_kernel(sigma_points, reach, oversampling),
        dtype=intensity.dtype,
        device=intensity.device,
    )
    nx, ny = image_shape
    x0, y0 = margin[0] - reach, margin[1] - reach
    image = intensity[
        x0 : x0 + nx * oversampling + 2 * reach, y0 : y0 + ny * oversampling + 2 * reach
    ][None, None]
    conv = torch.nn.functional.conv2d
    image = conv(image, kernel.reshape(1, 1, 1, -1), stride=(1, oversampling))
    return conv(image, kernel.reshape(1, 1, -1, 1), stride=(oversampling, 1))[0, 0]


@dataclass(frozen=True, eq=False)
class Sensor:
    """The pixels of one camera during one scan, with their differences.

    Attributes
    ----------
    model : DetectorModel
    response : array (nx, ny)
        Relative, in flats.
    changed_response : array (nx, ny)
        In projections.
    dark : array (nx, ny)
        Counts without beam.
    """

    model: DetectorModel
    response: NDArray[np.float32]
    changed_response: NDArray[np.float32]
    dark: NDArray[np.float32]

    @classmethod
    def drawn(
        cls, model: DetectorModel, shape: tuple[int, int], rng: np.random.Generator
    ) -> Sensor:
        """A sensor of random pixels.

        Parameters
        ----------
        model : DetectorModel
        shape : (int, int)
            (nx, ny).
        rng : numpy.random.Generator
        """
        response = 1.0 + model.response_spread * rng.standard_normal(shape)
        changed = model.ring_strength * rng.standard_normal(shape)
        changed = changed * (rng.random(shape) < model.ring_fraction)
        dark = model.dark_level * (1.0 + 0.02 * rng.standard_normal(shape))
        return cls(
            model,
            np.clip(response, 0.1, None).astype(np.float32),
            np.clip(response * (1.0 + changed), 0.1, None).astype(np.float32),
            dark.astype(np.float32),
        )

    def counts(
        self, intensity: torch.Tensor | None, generator: torch.Generator, flat: bool = False
    ) -> NDArray[np.uint16]:
        """What the camera reads (nx, ny).

        Parameters
        ----------
        intensity : tensor (nx, ny) or None
            Relative to the mean flat; None: no beam.
        generator : torch.Generator
            On the device of the intensity.
        flat : bool
            Whether the pixels respond as in flats.
        """
        model = self.model
        device = generator.device
        dark = torch.as_tensor(self.dark, device=device)
        if intensity is None:
            counts = dark.clone()
        else:
            response = self.response if flat else self.changed_response
            photons = intensity.to(torch.float32) * torch.as_tensor(response, device=device)
            photons = torch.poisson((model.photons * photons).clamp(min=0), generator=generator)
            counts = model.gain * photons + dark
        if model.read_noise > 0:
            counts = counts + model.read_noise * torch.randn(
                counts.shape, generator=generator, device=device
            )
        if model.zinger_rate > 0:
            mean = torch.tensor([model.zinger_rate * counts.numel()], device=device)
            n_hits = int(torch.poisson(mean, generator=generator))
            hit = torch.randint(counts.numel(), (n_hits,), generator=generator, device=device)
            strength = torch.rand(n_hits, generator=generator, device=device)
            counts.view(-1)[hit] += (0.3 + 0.7 * strength) * model.gain * model.photons
        counts = torch.round(counts).clamp(0, model.saturation)
        return counts.cpu().numpy().astype(np.uint16)


# ---- flats ---------------------------------------------------------------------------------------


def synthetic_flats(
    shape: tuple[int, int], n_flats: int, rng: np.random.Generator, shift_px: float = 0.5
) -> FloatArray:
    """Flats (n_flats, nx, ny), each of mean one, as of a beam behind optics.

    They show a broad maximum, stripes of the mirrors (across X) and speckle of windows. The pattern
    moves in a random direction from the first flat to the last.

    Parameters
    ----------
    shape : (int, int)
        (nx, ny).
    n_flats : int
    rng : numpy.random.Generator
    shift_px : float
        How far the pattern moves, pixels.
    """
    from scipy.ndimage import gaussian_filter, gaussian_filter1d, shift

    nx, ny = shape
    pad = 4 + math.ceil(abs(shift_px))
    big = (nx + 2 * pad, ny + 2 * pad)
    x, y = (np.linspace(-1, 1, n) for n in big)
    middle = rng.uniform(-0.3, 0.3, 2)
    bell = np.exp(-0.25 * ((x[:, None] - middle[0]) ** 2 + (y[None] - middle[1]) ** 2))
    stripes = gaussian_filter1d(rng.standard_normal(big[0]), max(2.0, nx / 80))
    stripes /= max(float(stripes.std()), 1e-12)
    texture = np.zeros(big)
    for width, strength in ((max(1.5, nx / 300), 0.010), (max(4.0, nx / 40), 0.02)):
        noise = gaussian_filter(rng.standard_normal(big), width)
        texture += strength * noise / max(float(noise.std()), 1e-12)
    pattern = bell * (1 + 0.06 * stripes[:, None] + texture)
    direction = rng.standard_normal(2)
    direction *= shift_px / max(float(np.linalg.norm(direction)), 1e-12)
    flats = []
    for number in range(n_flats):
        moved = shift(pattern, direction * number / max(n_flats - 1, 1), order=1, mode="nearest")
        flat = moved[pad : pad + nx, pad : pad + ny]
        flats.append(flat / flat.mean())
    return np.stack(flats)


def read_flats(path: str | os.PathLike[str], smoothing_px: float = 1.0) -> FloatArray:
    """Flats (n, rows, columns), each divided by its mean, of an NXtomo file or a folder of images.

    Of an NXtomo file, images with image_key 1 less the mean of those with image_key 2.
    smoothing_px: sigma of a Gaussian that removes their noise.

    Raises ValueError if there are none, or if they have different sizes.
    """
    from scipy.ndimage import gaussian_filter

    source = Path(path)
    if source.is_dir():
        images = _images_of_folder(source)
    else:
        images = _flats_of_nxtomo(source)
    images = gaussian_filter(images.astype(np.float64), (0, smoothing_px, smoothing_px))
    mean = images.mean(axis=(1, 2), keepdims=True)
    if not np.all(mean > 0):
        raise ValueError(f"{path}: the flats are not brighter than the dark.")
    return np.clip(images / mean, 0, None)


def _images_of_folder(folder: Path) -> NDArray[Any]:
    from skimage.io import imread

    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in (".tif", ".tiff", ".png"))
    if not files:
        raise ValueError(
            f"The folder {folder} has no .tif, .tiff or .png images to take flats from."
        )
    images = [np.asarray(imread(f)) for f in files]
    if len({i.shape for i in images}) != 1 or images[0].ndim != 2:
        raise ValueError(
            f"The images in {folder} are not all grey and of one size; sort out the others."
        )
    return np.stack(images)


def _flats_of_nxtomo(path: Path) -> NDArray[Any]:
    with open_hdf5(path) as file:
        found: list[h5py.Dataset] = []
        file.visititems(
            lambda name, item: (
                found.append(item)
                if name.endswith("image_key") and isinstance(item, h5py.Dataset)
                else None
            )
        )
        for key in found:
            values = key[()]
            group = key.parent
            images = group.get("data")
            if images is None or images.ndim != 3 or len(images) != len(values):
                continue
            flats, darks = np.flatnonzero(values == 1), np.flatnonzero(values == 2)
            if len(flats):
                dark = images[darks].mean(axis=0) if len(darks) else 0.0
                return images[flats] - dark
    raise ValueError(
        f"{path} has no flats (frames with image_key 1 beside instrument/detector/data); give an "
        "NXtomo file or a folder of images."
    )


def flats_for_scan(
    flats: Sequence[NDArray[Any]] | NDArray[Any], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Real flats divided in two: those that light the projections, and those that are recorded.

    If there are two or more, no flat is in both.
    """
    images = np.asarray(flats, dtype=np.float64)
    order = rng.permutation(len(images))
    half = max(1, len(images) // 2)
    recorded = order[half:] if len(images) > 1 else order
    return images[np.sort(order[:half])], images[np.sort(recorded)]
