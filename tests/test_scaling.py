from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials")

from dials.array_family import flex
from dials.command_line.scale import phil_scope as scale_phil_scope
from libtbx import phil

from anacor_dials.diffraction import scaling
from anacor_dials.diffraction.merging import compare_merging_statistics
from anacor_dials.diffraction.scaling import (
    MODELS,
    STRATEGIES,
    FailedScaling,
    ScaledData,
    ScalingError,
    ScalingJob,
    Strategy,
    corrections,
    scale,
    scale_all,
)

# one sweep, and nothing in scaling that costs time and is not under test
FAST = (
    "full_matrix=False",
    "error_model=None",
    "intensity_choice=profile",
    "outlier_rejection=simple",
    "physical.decay_correction=False",
    "cut_data.d_min=0.75",
    "output.html=None",
)


def attenuated(l_cysteine: Path, sweep: int) -> flex.reflection_table:
    """A real sweep, its intensities multiplied by a smooth made-up transmission of 0.03 to 0.8."""
    table = flex.reflection_table.from_file(str(l_cysteine / f"sweep_{sweep}.refl"))
    s1 = table["s1"].as_numpy_array().reshape(-1, 3)
    x, y, _ = (s1 / np.maximum(np.linalg.norm(s1, axis=1), 1e-9)[:, None]).T
    phi = table["xyzcal.mm"].parts()[2].as_numpy_array()
    transmission = flex.double(
        np.exp(-1.2 * (1 + 0.6 * np.cos(phi - 0.3)) * (1 + 0.5 * x + 0.4 * y * np.sin(phi)))
    )
    table["analytical_correction"] = transmission
    for kind in ("prf", "sum"):
        table[f"intensity.{kind}.value"] *= transmission
        table[f"intensity.{kind}.variance"] *= transmission * transmission
    return table


@pytest.fixture(scope="module")
def l_cysteine(shared_data):
    return shared_data / "l_cysteine"


@pytest.fixture(scope="module")
def sweep(l_cysteine, tmp_path_factory):
    """Paths of one attenuated sweep: (experiments, reflections)."""
    path = tmp_path_factory.mktemp("attenuated") / "corrected.refl"
    attenuated(l_cysteine, 25).as_file(str(path))
    return l_cysteine / "sweep_25.expt", path


@pytest.fixture(scope="module")
def scaled(sweep, l_cysteine, tmp_path_factory):
    """The sweep scaled with and without its factors, and the same sweep before it was attenuated."""
    folder = tmp_path_factory.mktemp("scaled")
    expt, refl = sweep
    untouched = l_cysteine / "sweep_25.refl"
    jobs = [
        ScalingJob(label, STRATEGIES[name], (expt,), (path,), folder / label, options=FAST)
        for label, name, path in (
            ("none", "none", refl),
            ("analytical", "analytical", refl),
            ("untouched", "none", untouched),
        )
    ]
    return dict(zip(("none", "analytical", "untouched"), scale_all(jobs, nproc=2), strict=True))


# ---- strategies ----


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_dials_scale_understands_the_options_of_every_strategy(name, model):
    strategy = STRATEGIES[name]
    if strategy.spherical_harmonics and model in ("array", "KB"):
        with pytest.raises(ValueError, match=f"{model} has none; use model=auto"):
            strategy.options(model)
        return
    interpreter = scale_phil_scope.command_line_argument_interpreter()
    working = scale_phil_scope.fetch(
        sources=[interpreter.process(option) for option in strategy.options(model)]
    )
    params = working.extract()
    assert params.overwrite_existing_models is True
    for scope in ("physical", "KB") if model == "auto" else (model,):
        chosen = getattr(params, scope)
        assert chosen.analytical_correction is strategy.analytical
    if model in ("auto", "physical"):
        assert params.physical.absorption_level == strategy.spherical_harmonics
        if not strategy.spherical_harmonics:
            assert params.physical.absorption_correction is False
    elif model == "dose_decay":
        assert params.dose_decay.absorption_correction is bool(strategy.spherical_harmonics)
    elif model == "array":
        assert params.array.absorption_correction is False
    assert params.model == (None if model == "auto" else model)


def test_levels_are_those_of_dials():
    from dials.algorithms.scaling.model.model import determine_auto_absorption_params

    for level, numbers in scaling.SPHERICAL_HARMONICS.items():
        assert determine_auto_absorption_params(level) == numbers


def test_an_unknown_level_or_model_is_refused():
    with pytest.raises(ValueError, match="'huge'; DIALS has low, medium, high"):
        Strategy("sh_huge", "SH", "", "huge")
    with pytest.raises(ValueError, match="No scaling model is called kb; DIALS has auto"):
        STRATEGIES["none"].options("kb")
    with pytest.raises(ValueError, match="No scaling strategy is called sh; there are none"):
        scaling.strategy_called("sh")


# ---- running dials.scale ----


def test_every_model_holds_the_corrections_asked_for(scaled):
    assert corrections(scaled["none"].experiments) == [("scale",)]
    assert corrections(scaled["analytical"].experiments) == [("scale", "analytical")]


def test_the_column_restores_the_statistics(scaled):
    none, analytical, untouched = (
        one.table_1
        for one in compare_merging_statistics(
            {label: (one.experiments, one.reflections) for label, one in scaled.items()}
        )
    )
    r_meas = "Rmeas(I)"
    assert none[r_meas][0] > 1.5 * untouched[r_meas][0]
    assert analytical[r_meas][0] == pytest.approx(untouched[r_meas][0], rel=0.03)
    assert analytical["I/sigma"][0] == pytest.approx(untouched["I/sigma"][0], rel=0.02)
    assert analytical["CC half"][0] == pytest.approx(untouched["CC half"][0], abs=0.003)
    assert none["CC half"][0] < untouched["CC half"][0] - 0.01


def test_the_column_restores_the_scaled_intensities(scaled):
    intensities = {}
    for label in ("analytical", "untouched"):
        table = flex.reflection_table.from_file(str(scaled[label].reflections))
        table = table.select(~table.get_flags(table.flags.bad_for_scaling, all=False))
        value = table["intensity.scale.value"] / table["inverse_scale_factor"]
        intensities[label] = dict(
            zip(zip(table["miller_index"], table["entering"], strict=True), value, strict=True)
        )
    both = [key for key in intensities["untouched"] if key in intensities["analytical"]]
    assert len(both) > 1500
    a, b = (np.array([intensities[label][key] for key in both]) for label in intensities)
    assert np.corrcoef(a, b)[0, 1] > 0.9999


def test_the_command_repeats_the_run(scaled, sweep):
    command = scaled["analytical"].command
    assert command[0] == "dials.scale"
    assert command[1:3] == tuple(str(path) for path in sweep)
    assert "physical.analytical_correction=True" in command
    assert scaled["analytical"].log.read_text().count("analytical_correction = True") == 2


def test_an_existing_scaling_model_does_not_switch_the_correction_off(scaled, tmp_path):
    """dials.scale would ignore the option in silence, were overwrite_existing_models not given."""
    before = scaled["none"]
    after = scale([before.experiments], [before.reflections], "analytical", tmp_path, options=FAST)
    assert corrections(after.experiments) == [("scale", "analytical")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name", "terms"),
    [
        ("auto", "sh_high", {"scale", "absorption"}),
        ("physical", "analytical_sh", {"scale", "absorption", "analytical"}),
        ("dose_decay", "analytical_sh", {"absorption", "analytical"}),
        ("array", "analytical", {"decay", "analytical"}),
    ],
)
def test_every_scaling_model_of_dials_takes_the_strategies(sweep, tmp_path, model, name, terms):
    done = scale([sweep[0]], [sweep[1]], name, tmp_path, model=model, options=FAST)
    found = set(corrections(done.experiments)[0])
    assert terms <= found
    assert found.isdisjoint({"absorption", "analytical"} - terms)


def test_reason_and_log_of_a_failed_run(sweep, tmp_path):
    (tmp_path / "scaled.expt").write_text("of an earlier run")
    with pytest.raises(ScalingError, match="ended with status [12]: .*nonsense") as failure:
        scale([sweep[0]], [sweep[1]], "none", tmp_path, options=("nonsense=1",))
    assert failure.value.log == tmp_path / "dials.scale.failed.log"
    assert "nonsense=1" in failure.value.log.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dials.scale.failed.log",
        "scaled.expt",
    ]
    assert (tmp_path / "scaled.expt").read_text() == "of an earlier run"


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_one_bad_factor_is_refused_with_its_value(sweep, tmp_path, value):
    table = flex.reflection_table.from_file(str(sweep[1]))
    table["analytical_correction"][17] = value
    path = tmp_path / "bad.refl"
    table.as_file(str(path))
    with pytest.raises(ValueError, match=rf"1 of {len(table)} rows .*first is {value:g}\)"):
        scale([sweep[0]], [path], "analytical", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["none", "analytical"])
def test_intensities_that_were_divided_already_are_refused(sweep, tmp_path, name):
    table = flex.reflection_table.from_file(str(sweep[1]))
    table["analytical_correction_applied"] = table["analytical_correction"]
    path = tmp_path / "divided.refl"
    table.as_file(str(path))
    with pytest.raises(ValueError, match=r"divided.refl were divided .* output.mode=column"):
        scale([sweep[0]], [path], name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_refused_and_says_what_to_do(l_cysteine, tmp_path):
    with pytest.raises(ValueError, match="no column analytical_correction; run dials.anacor"):
        scale(
            [l_cysteine / "sweep_20.expt"],
            [l_cysteine / "sweep_20.refl"],
            "analytical_sh",
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


# ---- several runs at a time, with a process that only pretends ----


class PretendedScaling:
    """Stands for dials.scale: makes the models that its options ask for, or fails where told.

    The first ones wait for each other until `together` of them run.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.running = self.most = 0
        self.together = 1
        self.threads = set()

    def __call__(self, command, folder, threads):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.threads.add(threads)
            self.lock.notify_all()
            self.lock.wait_for(lambda: self.most >= self.together, timeout=60)
        time.sleep(0.05)  # one more than may run would begin meanwhile
        with self.lock:
            self.running -= 1
        if "fail=True" in command:
            return 1, "much text\nSorry: no data\nfound"
        if "diverge=True" in command:
            return 1, "RuntimeError: lbfgs error: Line search failed.\ntext\nSorry: No data found"
        terms = ["scale"]
        if any("absorption_level" in option for option in command):
            terms.append("absorption")
        if any("analytical" in option for option in command) and "forget=True" not in command:
            terms.append("analytical")
        quoted = ", ".join(f'"{term}"' for term in terms)
        Path(folder, "scaled.expt").write_text(
            f'{{"scaling_model": [{{"configuration_parameters": {{"corrections": [{quoted}]}}}}]}}'
        )
        for name in ("scaled.refl", "dials.scale.log"):
            Path(folder, name).write_text("")
        return 0, ""


@pytest.fixture
def pretended(monkeypatch):
    process = PretendedScaling()
    monkeypatch.setattr(scaling, "run_command", process)
    monkeypatch.setattr(scaling, "check_reflections", lambda path, analytical: None)
    return process


def pretended_jobs(folder, *options):
    return [
        ScalingJob(name, strategy, (Path("a.expt"),), (Path("a.refl"),), folder / name, "auto", opt)
        for (name, strategy), opt in zip(
            STRATEGIES.items(), [*options, *[()] * (len(STRATEGIES) - len(options))], strict=True
        )
    ]


@pytest.mark.parametrize(("nproc", "most", "threads"), [(1, 1, 1), (3, 3, 1), (13, 6, 2)])
def test_no_more_than_nproc_run_at_a_time(pretended, tmp_path, nproc, most, threads):
    jobs = pretended_jobs(tmp_path)
    seen, pretended.together = [], most
    outcomes = scale_all(jobs, nproc, seen.append)
    assert pretended.most == most
    assert pretended.threads == {threads}
    assert [outcome.label for outcome in outcomes] == list(STRATEGIES)
    assert all(isinstance(outcome, ScaledData) for outcome in outcomes)
    assert sorted(outcome.label for outcome in seen) == sorted(STRATEGIES)


def test_a_failed_strategy_leaves_the_others_standing(pretended, tmp_path):
    outcomes = scale_all(pretended_jobs(tmp_path, (), ("fail=True",)), nproc=2)
    failed = outcomes[1]
    assert isinstance(failed, FailedScaling)
    assert failed.reason == "dials.scale ended with status 1: no data found"
    assert failed.log.is_file()
    assert "fail=True" in failed.command_line
    assert sum(isinstance(outcome, ScaledData) for outcome in outcomes) == len(outcomes) - 1


def test_a_failed_minimisation_is_named_beside_what_it_led_to(pretended, tmp_path):
    with pytest.raises(
        ScalingError, match=r"No data found \(after lbfgs error: Line search failed"
    ):
        scaling.run_job(pretended_jobs(tmp_path, ("diverge=True",))[0])


def test_a_correction_that_was_ignored_in_silence_is_a_failure(pretended, tmp_path):
    job = ScalingJob(
        "analytical",
        STRATEGIES["analytical"],
        (Path("a.expt"),),
        (Path("a.refl"),),
        tmp_path,
        options=("forget=True",),
    )
    with pytest.raises(ScalingError, match="a model of scale, without the analytical term"):
        scaling.run_job(job)
    assert not (tmp_path / "scaled.expt").exists()


def test_a_later_success_removes_the_failed_log(pretended, tmp_path):
    good, bad = (
        ScalingJob(
            "none", STRATEGIES["none"], (Path("a"),), (Path("b"),), tmp_path, options=options
        )
        for options in ((), ("fail=True",))
    )
    with pytest.raises(ScalingError):
        scaling.run_job(bad)
    scaling.run_job(good)
    assert not (tmp_path / "dials.scale.failed.log").exists()


def test_two_jobs_in_one_folder_are_refused(pretended, tmp_path):
    job = pretended_jobs(tmp_path)[0]
    with pytest.raises(ValueError, match="same folder"):
        scale_all([job, job])


def test_phil_has_exactly_these_strategies_and_models():
    from importlib.resources import files

    text = files("anacor_dials.phil").joinpath("anacor_compare.phil").read_text()
    scope = phil.parse(text, process_includes=True)
    definitions = {d.path: d.object for d in scope.all_definitions()}
    words = [word.value.lstrip("*") for word in definitions["strategies"].words]
    assert words == list(STRATEGIES)
    models = [word.value.lstrip("*") for word in definitions["scaling.model"].words]
    assert models == list(MODELS)
