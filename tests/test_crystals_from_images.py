"""Two virtual crystals from their images on: xia2.anacor for each, xia2.multiplex for both, against the structure."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("dials", reason="DIALS is not installed (no dials to import)")

from anacor_dials.diffraction.scaling import corrections

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "crystals_from_images.py"

pytestmark = pytest.mark.slow


def loaded() -> ModuleType:
    """The script whose table stands in the manual."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder of a run, the script, and {plate or both: {strategy: Agreement}}."""
    for program in ("xia2", "xia2.integrate", "xia2.multiplex", "xia2.anacor"):
        if shutil.which(program) is None:
            pytest.skip(f"There is no program {program} on PATH.")
    script, folder = loaded(), tmp_path_factory.mktemp("plates")
    return SimpleNamespace(script=script, folder=folder, of=script.measured(folder))


def test_both_are_nearer_the_truth(made: SimpleNamespace):
    """Than each alone, and by the factors nearer than by spherical harmonics, let alone without a correction."""
    of: Mapping = made.of
    both = of[made.script.TOGETHER]
    for name in made.script.PLATES:
        alone = of[name]
        assert alone["analytical"].r_intensities < 0.9 * alone["sh_high"].r_intensities
        assert alone["analytical"].r_intensities < 0.4 * alone["none"].r_intensities
        assert alone["analytical"].r_intensities < 0.012
        assert both["analytical"].r_intensities < 0.9 * alone["analytical"].r_intensities
        assert both["analytical"].cc_anomalous > alone["analytical"].cc_anomalous
        assert both["analytical"].n_reflections > alone["analytical"].n_reflections
    assert both["analytical"].r_intensities < 0.93 * both["sh_high"].r_intensities
    assert both["analytical"].r_intensities < 0.4 * both["none"].r_intensities
    assert both["analytical"].cc_anomalous > both["none"].cc_anomalous + 0.01


def test_multiplex_has_the_models_of_both(made: SimpleNamespace):
    """With the analytical term and without harmonics, of two sweeps that xia2 integrated."""
    models, _ = made.script.multiplex(made.folder, "analytical")
    terms = corrections(models)
    assert len(terms) == len(made.script.PLATES)
    assert all("analytical" in one and "absorption" not in one for one in terms)
    for name in made.script.PLATES:
        content = json.loads((made.folder / name / "anacor.json").read_text())
        assert [one["name"] for one in content["crystals"]] == [name]
        assert [row["taken"] for row in content["overview"]] == [made.script.TAKEN]
        assert content["steps"][0]["name"] == "xia2"
        assert content["program"]["xia2"]
