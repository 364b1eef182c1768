"""Says where the packages lie: commands and PHIL files beside anacor_dials become its sub-packages.

Everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["anacor_dials", "anacor_dials.*"]),
        "anacor_dials.command_line",
        "anacor_dials.phil",
    ],
    package_dir={
        "anacor_dials": "anacor_dials",
        "anacor_dials.command_line": "command_line",
        "anacor_dials.phil": "phil",
    },
    package_data={
        "anacor_dials": ["napari.yaml", "py.typed", "templates/*", "segmentation/weights/*"],
        "anacor_dials.phil": ["*.phil"],
    },
)
