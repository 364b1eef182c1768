"""How the pipeline is to run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anacor_dials.diffraction.free_set import FRACTION
from anacor_dials.diffraction.resolution_limit import CC_HALF
from anacor_dials.diffraction.scaling import Strategy, strategy_called
from anacor_dials.diffraction.statistics import STATISTICS
from anacor_dials.jobs.pipeline.inputs import Crystal, files_of


@dataclass(frozen=True)
class PipelineSettings:
    """How the pipeline is to run.

    Parameters
    ----------
    strategies : tuple of str
        The strategies of scaling that are compared.
    strategy : str, optional
        The one to take, whatever the statistics say.
    statistic, margin : str, float
        How the best is chosen: see :func:`anacor_dials.diffraction.selection.choose_strategy`.
    d_min : float, optional
        Resolution limit, Angstrom.
    cc_half : float, optional
        Where d_min is not given, statistics and merged data end where CC1/2 falls below this.
    n_bins : int
        Resolution shells of the statistics.
    model : str
        The scaling model of dials.scale.
    together : bool
        Whether all crystals are scaled together.
    symmetry : str
        "auto", "cosym", "symmetry" or "none": which program finds the Laue group.
    space_group : str, optional
        The space group, if it is known.
    absences : bool
        Whether systematic absences are looked for.
    segmentation_options, absorption_options : mapping
        {crystal: further arguments}; those of "" are for all crystals.
    symmetry_options, scaling_options, merging_options : tuple of str
        Further arguments of these programs.
    free_set : Path, optional
        An MTZ file whose free set is taken.
    free_fraction : float
        The part of the reflections in a free set that is new, above 0 and below 0.5.
    nproc : int
        The number of processes: on this machine, or on each worker of a cluster.
    crystals_at_a_time : int, optional
        How many crystals at most are worked on side by side. If not given: as many as cores and
        memory allow.

    Raises
    ------
    ValueError
        If the settings do not go together.
    """

    strategies: tuple[str, ...] = ("none", "sh_high", "analytical", "analytical_sh")
    strategy: str | None = None
    statistic: str = "r_meas"
    margin: float = 0.02
    d_min: float | None = None
    cc_half: float | None = CC_HALF
    n_bins: int = 20
    model: str = "auto"
    together: bool = False
    symmetry: str = "auto"
    space_group: str | None = None
    absences: bool = True
    segmentation_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absorption_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    symmetry_options: tuple[str, ...] = ()
    scaling_options: tuple[str, ...] = ()
    merging_options: tuple[str, ...] = ()
    free_set: Path | None = None
    free_fraction: float = FRACTION
    nproc: int = 1
    crystals_at_a_time: int | None = None

    def __post_init__(self) -> None:
        for name in (*self.strategies, *([self.strategy] if self.strategy else [])):
            strategy_called(name).options(self.model)
        if not self.strategies and not self.strategy:
            raise ValueError("No strategy was asked for; name at least one.")
        if self.statistic not in STATISTICS:
            raise ValueError(
                f"The statistic {self.statistic} is not known; there are {', '.join(STATISTICS)}."
            )
        if self.symmetry not in ("auto", "cosym", "symmetry", "none"):
            raise ValueError(
                f"No program for symmetry is called {self.symmetry}; there are auto, cosym, symmetry "
                "and none."
            )
        if self.symmetry == "none" and self.space_group:
            raise ValueError(
                f"The space group {self.space_group} was given with symmetry.program=none, which "
                "leaves it as it is; leave one of them out."
            )
        if self.cc_half is not None and not 0 < self.cc_half < 1:
            raise ValueError(f"cc_half is {self.cc_half}; it must be above 0 and below 1, or None.")
        if not 0 < self.free_fraction < 0.5:
            raise ValueError(
                f"The free set is to be a part of {self.free_fraction} of the reflections; it must be above "
                "0 and below 0.5."
            )
        if self.free_set is not None and not self.free_set.is_file():
            raise ValueError(f"There is no file {self.free_set} with a free set.")
        options = [
            *self.symmetry_options,
            *self.scaling_options,
            *self.merging_options,
            *(o for given in self.segmentation_options.values() for o in given),
            *(o for given in self.absorption_options.values() for o in given),
        ]
        for option in options:
            if re.match(r"output\.(?!html=|probabilities=)", option):
                raise ValueError(
                    f"The option {option} cannot be given: the pipeline names the files itself."
                )

    def chosen_strategies(self) -> list[Strategy]:
        """The strategies to run: those asked for, and the one to take."""
        names = dict.fromkeys((*self.strategies, *([self.strategy] if self.strategy else [])))
        return [strategy_called(name) for name in names]


def options_of(crystal: str, given: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The options for all crystals and then those for this one.

    The names of files in them become absolute, since a step runs in a folder of its own.
    """
    return tuple(_absolute(option) for option in (*given.get("", ()), *given.get(crystal, ())))


def _absolute(option: str) -> str:
    name, equals, value = option.partition("=")
    there = bool(value) and not _is_number(value) and bool(files_of(Path(os.path.abspath(value))))
    return f"{name}{equals}{os.path.abspath(value)}" if there else option


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def files_named_in(options: Sequence[str]) -> tuple[Path, ...]:
    """The files that options of :func:`options_of` name, whose content decides the result."""
    values = (option.partition("=")[2] for option in options)
    return tuple(f for v in values if os.path.isabs(v) for f in files_of(Path(v)))


def refuse_unknown_crystals(crystals: Sequence[Crystal], settings: PipelineSettings) -> None:
    """Raises ValueError where options were given for a crystal that there is not."""
    names = [crystal.name for crystal in crystals]
    for scope, given in (
        ("segmentation", settings.segmentation_options),
        ("absorption", settings.absorption_options),
    ):
        for name in given:
            if name and name not in names:
                raise ValueError(
                    f"{scope}.{name} was given, but the crystals of the data are {', '.join(names)}."
                )
