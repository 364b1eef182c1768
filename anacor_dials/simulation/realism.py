"""How alike a simulated scan and a real one are: SSIM, PSNR and MSE of each projection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from anacor_dials.sample.frames import FloatArray


@dataclass(frozen=True, eq=False)
class Realism:
    """How alike a simulated scan and a real one are.

    Attributes
    ----------
    angles_deg : array (n,)
    ssim : array (n,)
        Structural similarity, 1 for equal images (Wang et al., IEEE Trans. Image Process. 13 (2004)
        600).
    psnr_db : array (n,)
        Peak signal-to-noise ratio, 10 log10(range^2 / MSE).
    mse : array (n,)
        Mean squared difference of the transmissions.
    data_range : float
        The range that SSIM and PSNR refer to.
    """

    angles_deg: FloatArray
    ssim: FloatArray
    psnr_db: FloatArray
    mse: FloatArray
    data_range: float

    def summary(self) -> dict[str, float]:
        """Means over all projections, and the least and largest of each figure."""
        figures = {"ssim": self.ssim, "psnr_db": self.psnr_db, "mse": self.mse}
        out: dict[str, float] = {"data_range": self.data_range}
        for name, values in figures.items():
            out[f"{name}_mean"] = float(values.mean())
            out[f"{name}_least"] = float(values.min())
            out[f"{name}_largest"] = float(values.max())
        return out


def compare_projections(
    pairs: Iterable[tuple[ArrayLike, ArrayLike]],
    angles_deg: ArrayLike,
    data_range: float = 1.0,
) -> Realism:
    """The likeness of pairs of images.

    Pixels that are no numbers in the real image are taken from the simulated one.

    Parameters
    ----------
    pairs : iterable of (array, array)
        Transmissions (nx, ny), real and simulated.
    angles_deg : array (n,)
    data_range : float
        The range that SSIM and PSNR refer to.

    Raises
    ------
    ValueError
        If two images have different sizes.
    """
    from skimage.metrics import structural_similarity

    ssim, mse = [], []
    for real, simulated in pairs:
        a, b = np.asarray(real, dtype=np.float64), np.asarray(simulated, dtype=np.float64)
        if a.shape != b.shape:
            raise ValueError(
                f"The real projections have {a.shape[0]} x {a.shape[1]} pixels and the simulated ones "
                f"{b.shape[0]} x {b.shape[1]}; simulate with the real scan's image shape."
            )
        a = np.clip(np.where(np.isfinite(a), a, b), 0, 1.5 * data_range)
        b = np.clip(b, 0, 1.5 * data_range)
        ssim.append(float(structural_similarity(a, b, data_range=data_range)))
        mse.append(float(np.mean((a - b) ** 2)))
    errors = np.array(mse)
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(data_range**2 / errors)
    angles = np.asarray(angles_deg, dtype=np.float64)
    if angles.shape != errors.shape:
        raise ValueError(f"There are {errors.size} pairs of projections and {angles.size} angles.")
    return Realism(angles, np.array(ssim), psnr, errors, data_range)
