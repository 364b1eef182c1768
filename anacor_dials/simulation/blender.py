"""Samples made by Blender, with rounder drops, bevelled crystals and knotted fibres.

Blender runs without a window in a process of its own, with the script ``blender_scene.py``. It
reads the parameters as JSON and writes meshes as STL. The parameters are those of the built-in
maker.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from anacor_dials.sample.frames import rotation_about
from anacor_dials.sample.materials import Composition
from anacor_dials.simulation.meshes import Mesh, read_stl
from anacor_dials.simulation.sample_parameters import SampleParameters
from anacor_dials.simulation.samples import Sample, build_sample, sample_from_meshes

SCENE = Path(__file__).with_name("blender_scene.py")
TIMEOUT_S = 300


def blender_executable(blender: str | os.PathLike[str] | None = None) -> str:
    """The path of Blender. Raises ValueError, with the ways out, if it is not found."""
    asked = os.fspath(blender) if blender else "blender"
    found = shutil.which(asked)
    if found is None:
        raise ValueError(
            f"Blender was asked for and there is no program {asked!r}; install it (Debian: apt-get "
            "install blender), name it by sample.blender=, or take sample.maker=built_in."
        )
    return found


def blender_sample(
    p: SampleParameters,
    materials: Mapping[str, Composition] | None = None,
    blender: str | os.PathLike[str] | None = None,
) -> Sample:
    """The sample that the parameters describe, modelled by Blender, as closed meshes.

    The place and the size of the crystal are those of :func:`build_sample`, so that it does not
    touch the loop.

    Parameters
    ----------
    p : SampleParameters
    materials : mapping, optional
        Compositions; the usual ones if not given.
    blender : str, optional
        The program.

    Raises
    ------
    ValueError
        If Blender is absent or fails, or makes meshes that are open or overlap.
    """
    import procrunner

    program = blender_executable(blender)
    plan = build_sample(p, materials)
    turn_back = rotation_about((1.0, 0.0, 0.0), -p.loop_turn)
    crystals = [mesh.moved(turn_back) for mesh in plan.of("crystal")]
    with tempfile.TemporaryDirectory(prefix="anacor_blender_") as folder:
        recipe = Path(folder) / "recipe.json"
        content = {**asdict(p), "crystals_um": [m.vertices.tolist() for m in crystals]}
        recipe.write_text(json.dumps(content), encoding="ascii")
        command = [
            program, "--background", "--factory-startup", "--python-exit-code", "1",
            "--python", os.fspath(SCENE), "--", os.fspath(recipe), folder,
        ]  # fmt: skip
        try:
            result = procrunner.run(
                command,
                timeout=TIMEOUT_S,
                raise_timeout_exception=True,
                print_stdout=False,
                print_stderr=False,
                working_directory=folder,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"Blender did not end within {TIMEOUT_S} s; take sample.maker=built_in."
            ) from None
        if result.returncode != 0 or not (Path(folder) / "crystal.stl").is_file():
            output = (result.stderr + result.stdout).decode(errors="replace")
            lines = [line for line in output.splitlines() if line.strip()]
            raise ValueError(
                f"Blender did not make the sample (exit status {result.returncode}): "
                f"{lines[-1] if lines else 'it printed nothing'}"
            )
        made: dict[str, list[Mesh]] = {}
        for file in sorted(Path(folder).glob("*.stl")):
            made.setdefault(file.stem.partition("_")[0], []).append(read_stl(file))
    turn = rotation_about((1.0, 0.0, 0.0), p.loop_turn)
    meshes = {name: [m.moved(turn) for m in group] for name, group in made.items()}
    sample = sample_from_meshes(meshes, materials, {**plan.parameters, "maker": "blender"})
    return replace(sample, lattice=plan.lattice)
