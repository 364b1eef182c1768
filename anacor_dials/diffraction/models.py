"""Experimental models of DIALS from files."""

from __future__ import annotations

import os

from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory


def read_models(path: str | os.PathLike[str]) -> ExperimentList:
    """The experiments of a file, without a look at their images.

    Parameters
    ----------
    path : path
    """
    return ExperimentListFactory.from_json_file(os.fspath(path), check_format=False)
