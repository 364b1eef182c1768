"""The content of the JSON file of dials.anacor_simulate compare=."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anacor_dials.jobs.records.record import Record


@dataclass(frozen=True)
class LikenessRecord(Record):
    """The JSON file of dials.anacor_simulate compare=.

    Attributes
    ----------
    angles_deg, ssim, psnr_db, mse : [float]
        Of each pair of projections.
    data_range : float
        The range of transmissions that SSIM and PSNR refer to.
    ssim_mean, ssim_least, ssim_largest : float
        Over all projections.
    psnr_db_mean, psnr_db_least, psnr_db_largest : float
        Over all projections.
    mse_mean, mse_least, mse_largest : float
        Over all projections.
    """

    VERSION = 1
    angles_deg: Sequence[float]
    ssim: Sequence[float]
    psnr_db: Sequence[float]
    mse: Sequence[float]
    data_range: float
    ssim_mean: float
    ssim_least: float
    ssim_largest: float
    psnr_db_mean: float
    psnr_db_least: float
    psnr_db_largest: float
    mse_mean: float
    mse_least: float
    mse_largest: float
