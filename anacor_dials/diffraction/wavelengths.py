"""Which experiments have the same wavelength."""

from __future__ import annotations

from dials.util.export_mtz import match_wavelengths
from dxtbx.model import ExperimentList


def wavelength_groups(experiments: ExperimentList) -> list[tuple[float, list[int]]]:
    """(wavelength in Angstrom, indices of its experiments), in order of first appearance.

    Two wavelengths are the same if DIALS takes them as the same when it splits, merges and exports
    data (``dials.util.export_mtz.match_wavelengths``): if they differ by less than 1e-4 A.

    Raises ValueError for a beam without a single wavelength.
    """
    for index, experiment in enumerate(experiments):
        try:
            experiment.beam.get_wavelength()
        except (AttributeError, RuntimeError):
            raise ValueError(
                f"Experiment {index} has no single wavelength; absorption is computed for "
                "monochromatic beams."
            ) from None
    return [
        (wavelength, list(group.exp_nos))
        for wavelength, group in match_wavelengths(experiments).items()
    ]
