"""Fixtures shared by tests, and --require, which turns skips into failures."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from anacor_dials.sample.volumes import LabelVolume

# ---- --require ------------------------------------------------------------------------------------

# what a skip for lack of it says
REQUIREMENTS = {
    "gpu": r"CuPy|GPU|CUDA",
    "dials": r"\b(dials|dxtbx|cctbx|scitbx|iotbx|libtbx|xia2)\b",
    "sam2": r"\bsam2\b|SAM-2",
}
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        metavar="WHAT",
        help=f"fail where a test is skipped for lack of {', '.join(REQUIREMENTS)} "
        "(repeatable, or separated by commas)",
    )


def required(config: pytest.Config) -> list[str]:
    """What --require names; raises UsageError for what it does not know."""
    names = [name for text in config.getoption("--require") for name in text.split(",") if name]
    for name in names:
        if name not in REQUIREMENTS:
            raise pytest.UsageError(f"--require={name}: it is one of {', '.join(REQUIREMENTS)}")
    return names


def pytest_configure(config: pytest.Config) -> None:
    required(config)


def refuse_skip(report: Report, config: pytest.Config) -> Report:
    """The report, failed where it is a skip for lack of something that is required."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for name in required(config):
            if re.search(REQUIREMENTS[name], reason):
                report.outcome = "failed"
                report.longrepr = f"--require={name}: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    return refuse_skip((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, Any, pytest.CollectReport]:
    return refuse_skip((yield), collector.config)


# ---- virtual scans of ellipsoids, whose projections have a closed form ----------------------------


@dataclass(frozen=True)
class Ellipsoid:
    """centre, semi_axes: (3,) um along X, Y, Z of the tomo frame; mu: 1/um."""

    centre: tuple[float, float, float]
    semi_axes: tuple[float, float, float]
    mu: float


# nothing about them is symmetric: a flip, a swap or a half-voxel shift moves at least one
ELLIPSOIDS = (
    Ellipsoid((-3.0, 4.0, -11.0), (11.0, 8.0, 6.0), 0.020),
    Ellipsoid((6.0, -15.0, 5.0), (7.0, 6.0, 9.0), 0.012),
    Ellipsoid((9.5, 12.5, 12.0), (6.0, 6.0, 6.0), 0.030),
)


@dataclass(frozen=True)
class EllipsoidScan:
    """A scan of ellipsoids, as a camera sees it; everything is computed from vectors.

    shape: (rows, columns); pixel_um: edge of a pixel. fast_axis, slow_axis: tomo frame at angle zero.
    axis_pixel: column or row number of the rotation axis across it; beam_pixel: likewise along it (None:
    the middle). drift: of the beam's intensity from beginning to end. counts: of the flat (0: no noise).
    ring_gain: rms error of single pixels' gain that the flats do not show.
    """

    ellipsoids: tuple[Ellipsoid, ...] = ELLIPSOIDS
    shape: tuple[int, int] = (44, 64)
    pixel_um: float = 1.0
    fast_axis: tuple[int, int, int] = (0, 1, 0)
    slow_axis: tuple[int, int, int] = (1, 0, 0)
    angles_deg: tuple[float, ...] = tuple(np.arange(180) * 1.0)
    axis_pixel: float | None = None
    beam_pixel: float | None = None
    dark: float = 100.0
    flat: float = 30000.0
    drift: float = 0.0
    counts: float = 0.0
    ring_gain: float = 0.0
    seed: int = 1

    def at(self, **changes: object) -> EllipsoidScan:
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def horizontal(self) -> bool:
        return self.fast_axis[0] != 0

    def _origin(self) -> tuple[float, float]:
        """(row, column) of the origin."""
        rows, columns = self.shape
        across, along = (rows, columns) if self.horizontal else (columns, rows)
        axis = (across - 1) / 2 if self.axis_pixel is None else self.axis_pixel
        beam = (along - 1) / 2 if self.beam_pixel is None else self.beam_pixel
        return (axis, beam) if self.horizontal else (beam, axis)

    def transmission(self, oversample: int = 3) -> NDArray[np.float64]:
        """exp(-integral of mu) (n, rows, columns), averaged over the area of each pixel."""
        row0, column0 = self._origin()
        sub = (np.arange(oversample) - (oversample - 1) / 2) / oversample
        rows = (np.arange(self.shape[0])[:, None] + sub).ravel() - row0
        columns = (np.arange(self.shape[1])[:, None] + sub).ravel() - column0
        place = self.pixel_um * (
            rows[:, None, None] * np.array(self.slow_axis)
            + columns[None, :, None] * np.array(self.fast_axis)
        )
        x, u = place[..., 0], place[..., 1]
        images = []
        for angle in np.deg2rad(self.angles_deg):
            cos, sin = np.cos(angle), np.sin(angle)
            # in the sample the ray runs along (0, sin, cos), towards the source
            start = np.stack([x, u * cos, -u * sin], axis=-1)
            total = np.zeros(x.shape)
            for e in self.ellipsoids:
                o = (start - e.centre) / np.array(e.semi_axes)
                d = np.array([0.0, sin, cos]) / np.array(e.semi_axes)
                a, b, c = d @ d, o @ d, np.sum(o * o, axis=-1) - 1
                total += e.mu * 2 * np.sqrt(np.maximum(b * b - a * c, 0)) / a
            fine = np.exp(-total).reshape(self.shape[0], oversample, self.shape[1], oversample)
            images.append(fine.mean(axis=(1, 3)))
        return np.stack(images)

    def frames(
        self, flats: int = 6, darks: int = 4
    ) -> tuple[NDArray[np.uint16], NDArray[np.int32], NDArray[np.float64]]:
        """(images, image keys, angles) : flats, darks, projections, flats."""
        rng = np.random.default_rng(self.seed)
        transmission = self.transmission()
        n = len(transmission)
        keys = np.array([1] * flats + [2] * darks + [0] * n + [1] * flats)
        angles = np.concatenate(
            [np.zeros(flats + darks), self.angles_deg, np.full(flats, self.angles_deg[-1])]
        )
        rows, columns = np.mgrid[: self.shape[0], : self.shape[1]]
        profile = 1 + 0.1 * np.sin(rows / 9.0) + 0.15 * np.cos(columns / 13.0)
        beam = self.flat * profile * (1 + self.drift * np.arange(len(keys)) / len(keys))[
            :, None, None
        ]  # fmt: skip
        beam[keys == 2] = 0
        beam[keys == 0] *= transmission
        if self.counts:
            beam = rng.poisson(beam * (self.counts / self.flat)) * (self.flat / self.counts)
        if self.ring_gain:
            gain = 1 + self.ring_gain * rng.standard_normal(self.shape)
            beam[keys == 0] *= gain
        return np.rint(beam + self.dark).clip(0, 65535).astype(np.uint16), keys, angles

    def write_nxtomo(self, path: Path, **changes: object) -> Path:
        """The scan as Diamond's NXtomo files are; changes: of the data sets, None to leave one out."""
        images, keys, angles = self.frames()
        content: dict[str, object] = {
            "definition": "NXtomo",
            "instrument/detector/data": images,
            "instrument/detector/image_key": keys,
            "instrument/detector/x_pixel_size": self.pixel_um * 1e-6,
            "instrument/detector/y_pixel_size": self.pixel_um * 1e-6,
            "instrument/beam/incident_energy": 3.5,
            "data/rotation_angle": angles,
        }
        units = {
            "x_pixel_size": "m",
            "y_pixel_size": "m",
            "rotation_angle": "deg",
            "incident_energy": "keV",
        }
        content.update(changes)
        with h5py.File(path, "w") as file:
            entry = file.create_group("entry1/tomo_entry")
            entry.attrs["NX_class"] = "NXsubentry"
            file["entry1"].attrs["NX_class"] = "NXentry"
            for name, value in content.items():
                if value is not None:
                    entry[name] = value
                    unit = units.get(name.rsplit("/", 1)[-1])
                    if unit:
                        entry[name].attrs["units"] = unit
            if "instrument/detector/data" in entry:
                entry["data/data"] = h5py.SoftLink("/entry1/tomo_entry/instrument/detector/data")
        return path


@pytest.fixture
def ellipsoid_scan() -> EllipsoidScan:
    """Three ellipsoids, 180 projections of 44 x 64 pixels of 1 um, the axis in the middle column."""
    return EllipsoidScan()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"There is no folder of real data {folder}.")
    return folder


@pytest.fixture(scope="session")
def two_sweeps(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sweeps 25 and 30 of l_cysteine scaled together, quickly, without an absorption model."""
    pytest.importorskip("dials")
    from anacor_dials.diffraction.scaling import scale

    data = shared_data / "l_cysteine"
    return scale(
        [data / f"sweep_{n}.expt" for n in (25, 30)],
        [data / f"sweep_{n}.refl" for n in (25, 30)],
        "none",
        tmp_path_factory.mktemp("scaled"),
        options=(
            "full_matrix=False",
            "error_model=None",
            "intensity_choice=profile",
            "outlier_rejection=simple",
            "physical.decay_correction=False",
            "output.html=None",
        ),
    )


@pytest.fixture
def sample_labels() -> LabelVolume:
    """20 x 24 x 28 voxels of 2 x 1.5 x 1 um: a drop of liquor, a rod of loop in it, a crystal.

    Nothing is symmetric, and the origin is not the middle.
    """
    x, y, z = np.indices((20, 24, 28))
    labels = np.zeros(x.shape, dtype=np.uint8)
    labels[((x - 9) / 9) ** 2 + ((y - 12) / 10) ** 2 + ((z - 13) / 12) ** 2 <= 1] = 1
    labels[(abs(y - 6) <= 1) & (abs(z - 10) <= 1) & (x <= 12)] = 2
    labels[((x - 8) / 5) ** 2 + ((y - 13) / 4) ** 2 + ((z - 15) / 7) ** 2 <= 1] = 3
    return LabelVolume(labels, np.array([2.0, 1.5, 1.0]), np.array([9.0, 11.5, 14.25]))


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Where rays are traced: every test that asks for it runs on the CPU and, where there is one, a GPU."""
    name: str = request.param
    if name == "cuda":
        from anacor_dials.absorption import ray_tracing_cuda

        reason = ray_tracing_cuda.why_unavailable()
        if reason is not None:
            pytest.skip(f"No rays on a GPU: {reason}.")
    return name


# ---- a network ------------------------------------------------------------------------------------


@pytest.fixture
def network_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs' network is a stand-in: the class whose level is nearest to a voxel's value.

    Air is 0 and most of the sample 1; loop 0.6, crystal 1.5.
    """
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from anacor_dials.jobs import segment
    from anacor_dials.segmentation.network import NetworkSettings, SliceNetwork

    class ByValue(SliceNetwork):
        def __init__(self) -> None:
            super().__init__(NetworkSettings("unet", n_slices=1, context=False))

        def forward(self, slices: Any, context: Any = None) -> Any:
            levels = torch.tensor([0.0, 1.0, 0.6, 1.5])[:, None, None]
            return -100.0 * (slices[:, :1] - levels) ** 2

    monkeypatch.setattr(segment, "load_networks", lambda weights: [ByValue()])


# ---- a detector that only counts ------------------------------------------------------------------


@pytest.fixture
def perfect_detector() -> Callable[..., Any]:
    """Makes detectors without blur, read noise and drift, with equal pixels; choices override."""
    absent = (
        "read_noise",
        "psf_um",
        "source_blur_um",
        "response_spread",
        "ring_strength",
        "zinger_rate",
        "beam_drift",
        "flat_shift_px",
    )

    pytest.importorskip("torch", reason="the virtual detector needs torch")
    from anacor_dials.simulation.detector import DetectorModel

    def make(photons: float = 4000.0, **choices: float) -> DetectorModel:
        settings: dict[str, Any] = dict.fromkeys(absent, 0.0)
        return DetectorModel(photons=photons, **{**settings, **choices})

    return make
