"""Installs anacor_dials; its commands and PHIL files lie beside it and become sub-packages."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

COMMANDS = {
    "dials.anacor_absorption": "anacor_absorption",
    "dials.anacor_reconstruct": "anacor_reconstruct",
    "dials.anacor_compare": "anacor_compare",
    "dials.anacor_segment": "anacor_segment",
    "dials.anacor_train": "anacor_train",
    "dials.anacor_simulate": "anacor_simulate",
    "xia2.anacor": "xia2_anacor",
}

# DIALS itself is on no package registry: it comes from conda-forge, Debian or a beamline's module.
setup(
    name="anacor_dials",
    version="0.1.0",
    description="Analytical absorption correction by X-ray tomography, inside DIALS",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.10",
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
        "anacor_dials": ["py.typed", "templates/*", "segmentation/weights/*"],
        "anacor_dials.phil": ["*.phil"],
    },
    install_requires=[
        "h5py",
        "jinja2",
        "numba",
        "numpy>=1.26",
        "procrunner",
        "scikit-image",
        "scipy",
        "threadpoolctl",
        "tifffile",
        "tqdm",
        "trimesh",
        "xraylib",
    ],
    extras_require={
        "tomo": ["algotom>=1.6", "hdf5plugin"],
        "volumes": ["mrcfile", "nibabel", "pynrrd"],
        "gpu": ["cupy-cuda12x"],
        "segment": ["safetensors", "torch", "torchvision"],
        "sam2": ["sam2==1.1.0"],
        "dask": ["distributed"],
        "docs": ["furo", "myst-parser", "sphinx"],
        "dev": ["mypy", "pre-commit", "pytest", "pytest-xdist", "ruff~=0.17.6", "towncrier"],
    },
    entry_points={
        "console_scripts": [
            f"{command} = anacor_dials.command_line.{module}:run"
            for command, module in COMMANDS.items()
        ],
    },
)
