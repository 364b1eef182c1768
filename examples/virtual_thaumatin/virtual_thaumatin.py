"""The proof on virtual data: absorption ruins them, labels mend them, and the truth is known.

A virtual sample, its tomography scan and its diffraction data at 4 A; then what a user does, with the true
labels, with AnACorNet's and, where a checkpoint is given, with those that SAM-2 refined; and then
what a user cannot do: the merged data held against the structure that diffracted.

    tools/dials-env python examples/virtual_thaumatin/virtual_thaumatin.py [FOLDER]
    tools/dials-env python examples/virtual_thaumatin/virtual_thaumatin.py --setting images [FOLDER]
    tools/dials-env python examples/virtual_thaumatin/virtual_thaumatin.py --setting images --xia2 [FOLDER]

The setting "images" begins with rotation images, which DIALS indexes and integrates; the others begin with
integrated reflections. With --xia2 one command does all that follows: xia2.anacor, from half of the images and
the scan.

Every step is one command, shown as it is run; its output is kept in FOLDER/logs. A step is not repeated
while its command is the same and its results are there and newer than what it reads.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path

from dials.util.version import dials_version
from results import BEGIN, END, TRUTH, Judged, folder_name, results_of_pipeline, write_results

from anacor_dials.segmentation.inference import SHIPPED_WEIGHTS
from anacor_dials.segmentation.training_record import commit_of_program
from anacor_dials.segmentation.weights_files import model_card_path

NETWORK, SAM2 = "AnACorNet", "AnACorNet + SAM-2"
STRATEGIES = "none+sh_low+sh_high+analytical+analytical_sh"
STRATEGIES_OF_IMAGES = "none+sh_high+analytical"
SIMULATION = (
    "seed=5",
    "sample.film=False",
    "scan.energy=3.1",  # keV; 4.0 A, for both experiments
    "detector.photons=16000",
    "detector.gain=1",
    "diffraction.simulate=True",
    "diffraction.mean_counts=50000",  # before absorption
)
BIPYRAMID = "sample.shape=thaumatin"  # of lattice planes {1 0 1}
IMAGES_D_MIN = 4.5  # A; the resolution in the corners of the flat detector
IMAGES_OF_XIA2 = (
    "1:180"  # 90 degrees: all that is seen at the edges of the detector, 95 % to its corners
)
SPACE_GROUP = "P 41 21 2"  # images cannot tell it from its enantiomorph; the structure's is known
SETTINGS = {
    # minutes on two cores
    "small": (
        BIPYRAMID,
        "sample.crystal_size=46,52",
        "sample.stem_length=20",
        "scan.pixel_size=1.4",
        "scan.image_size=230,160",
        "scan.n_projections=200",
        "diffraction.d_min=3.5",
    ),
    # I23's own scan, and a second sweep at another kappa; for a cluster or a machine with a GPU
    "large": (
        BIPYRAMID,
        "sample.crystal_size=50,56",
        "sample.stem_length=60",
        "scan.pixel_size=0.3",
        "scan.image_size=1300,800",
        "scan.n_projections=900",
        "diffraction.d_min=2.7",
        "diffraction.sweep=0,360,0.1,0,0",
        "diffraction.sweep=0,360,0.1,-40,0",
    ),
    # from rotation images; half an hour of processor time at most
    "images": (
        "sample.shape=polyhedron",
        "sample.crystal_size=72,80",
        "sample.stem_length=20",
        "scan.pixel_size=1.4",
        "scan.image_size=230,160",
        "scan.n_projections=200",
        "diffraction.images=True",
        "diffraction.detector=flat_1m",
        "diffraction.detector_distance=80",
        f"diffraction.d_min={IMAGES_D_MIN}",
        "diffraction.sweep=0,180,0.5,0,0",
        "diffraction.background=1",
    ),
}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# ---- steps ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A command run in a folder, the files it reads, and the files it makes (all below the run's folder)."""

    name: str
    command: tuple[str, ...]
    folder: Path
    reads: tuple[Path, ...]
    makes: tuple[Path, ...]


def is_done(step: Step, log: Path) -> bool:
    """True where the log is of the same command and all results are there and not older than what it reads."""
    if not all(path.is_file() for path in (log, *step.makes)):
        return False
    with log.open(encoding="utf-8", errors="replace") as file:
        same = file.readline().rstrip("\n") == f"$ {shlex.join(step.command)}"
    newest = max((p.stat().st_mtime for p in step.reads if p.is_file()), default=0.0)
    return same and newest <= min(path.stat().st_mtime for path in step.makes)


def run_step(step: Step, logs: Path) -> float:
    """Runs a step unless it is done; the seconds it took, 0 where it was done. Exits where it fails."""
    log, failed = logs / f"{step.name}.log", logs / f"{step.name}.failed.log"
    running = logs / f"{step.name}.running.log"
    command = shlex.join(step.command)
    say(f"\n$ cd {shlex.quote(str(step.folder))} && {command}")
    if is_done(step, log):
        say("  done before")
        return 0.0
    step.folder.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    start = time.perf_counter()
    with running.open("w", encoding="utf-8") as file:
        file.write(f"$ {command}\n")
        file.flush()
        status = subprocess.run(
            step.command, cwd=step.folder, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    seconds = time.perf_counter() - start
    missing = [str(path) for path in step.makes if not path.is_file()]
    if status or missing:
        running.replace(failed)
        last = failed.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        reason = f"exit status {status}" if status else f"{', '.join(missing)} not made"
        sys.exit("\n".join([*last, f"{step.command[0]}: {reason}. Its output: {failed}"]))
    running.replace(log)
    failed.unlink(missing_ok=True)
    say(f"  {seconds:.0f} s")
    return seconds


def integration_steps(images: Path, folder: Path, nproc: int) -> list[Step]:
    """From images to integrated reflections in a folder, as a user of DIALS makes them."""
    place = folder / "images"

    def step(command: str, *options: str, reads: Sequence[str], makes: Sequence[str]) -> Step:
        return Step(
            command.removeprefix("dials."),
            (command, *reads, *options),
            place,
            tuple(place / name for name in reads),
            tuple(place / name for name in makes),
        )

    cores = f"nproc={nproc}"
    return [
        step("dials.import", reads=[str(images)], makes=["imported.expt"]),
        step("dials.find_spots", cores, reads=["imported.expt"], makes=["strong.refl"]),
        step("dials.index", reads=["imported.expt", "strong.refl"],
             makes=["indexed.expt", "indexed.refl"]),
        step("dials.refine", reads=["indexed.expt", "indexed.refl"],
             makes=["refined.expt", "refined.refl"]),
        step("dials.integrate", cores, f"prediction.d_min={IMAGES_D_MIN}",
             reads=["refined.expt", "refined.refl"], makes=["integrated.expt", "integrated.refl"]),
        step("dials.symmetry", reads=["integrated.expt", "integrated.refl"],
             makes=["symmetrized.expt", "symmetrized.refl"]),
        step("dials.reindex", f"space_group={SPACE_GROUP}",
             reads=["symmetrized.expt", "symmetrized.refl"],
             makes=["reindexed.expt", "reindexed.refl"]),
    ]  # fmt: skip


def pipeline_step(images: Path, scan: Path, folder: Path, nproc: int) -> Step:
    """xia2.anacor, from images and scan to merged data."""
    command = (
        "xia2.anacor",
        f"image={images}:{IMAGES_OF_XIA2}",
        f"tomography={scan}",
        f"scaling.strategies={STRATEGIES_OF_IMAGES}",
        "scaling.anomalous=True",
        "scaling.full_matrix=False",
        f"nproc={nproc}",
    )
    makes = (folder / "anacor" / "anacor.json", folder / "anacor" / "anacor.html")
    return Step("xia2.anacor", command, folder, (images, scan), makes)


def steps_of(given: argparse.Namespace, folder: Path) -> list[Step]:
    """All steps of a run in a folder, in order."""
    stem = folder / "virtual_0001"
    scan, labels_true = stem.with_suffix(".nxs"), folder / "virtual_0001_truth.h5"
    simulated = tuple(stem.with_suffix(suffix) for suffix in (".expt", ".refl"))
    images = [folder / "virtual_0001_sweep1.nxs"] if given.setting == "images" else []
    integration = [one for path in images for one in integration_steps(path, folder, given.nproc)]
    data = integration[-1].makes if integration else simulated
    weights = given.weights or Path(str(files("anacor_dials") / "segmentation" / "weights"))
    reads = tuple(sorted(weights.glob("*.safetensors"))) if weights.is_dir() else (weights,)
    chosen = (f"segmentation.weights={given.weights}",) if given.weights else ()
    steps = [
        Step(
            "simulate",
            ("dials.anacor_simulate", "output.prefix=virtual", *SIMULATION, *SETTINGS[given.setting]),
            folder,
            (),
            (scan, labels_true, *simulated, *images, stem.with_suffix(".pdb")),
        ),
        *integration,
    ]  # fmt: skip
    if given.xia2:
        return [steps[0], pipeline_step(images[0], scan, folder, given.nproc)]
    labels = {TRUTH: labels_true}
    for label, options in segmentations(given).items():
        place = folder / folder_name(label)
        labels[label] = place / "tomo.h5"
        steps.append(
            Step(
                f"segment_{folder_name(label)}",
                ("dials.anacor_segment", str(scan), f"truth={labels_true}", *chosen, *options),
                place,
                (scan, labels_true, *reads),
                (labels[label], place / "anacor_segment.json"),
            )
        )
    corrected = []
    for label, tomogram in labels.items():
        place = folder / folder_name(label)
        made = (place / "corrected.expt", place / "corrected.refl")
        corrected += made
        steps.append(
            Step(
                f"absorption_{folder_name(label)}",
                ("dials.anacor_absorption", *map(str, data), str(tomogram)),
                place,
                (*data, tomogram),
                (*made, place / "anacor_absorption.json"),
            )
        )
    compare = (
        "dials.anacor_compare",
        *map(str, corrected),
        f"labels={','.join(labels)}",
        f"strategies={STRATEGIES_OF_IMAGES if images else STRATEGIES}",
        "scaling.anomalous=True",
        "scaling.full_matrix=False",
        f"nproc={given.nproc}",
    )
    made = (folder / "anacor_compare.json", folder / "anacor_compare.html")
    return [*steps, Step("compare", compare, folder, tuple(corrected), made)]


def segmentations(given: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """{label: further options of dials.anacor_segment}."""
    made: dict[str, tuple[str, ...]] = {} if given.only_truth else {NETWORK: ()}
    if given.sam2:
        made[SAM2] = (f"sam2.checkpoint={given.sam2}", f"sam2.model={given.sam2_model}")
    return made


def origin(given: argparse.Namespace) -> str:
    """One sentence: when and by what the figures were made."""
    weights = given.weights or Path(
        str(files("anacor_dials") / "segmentation" / "weights" / SHIPPED_WEIGHTS)
    )
    card = model_card_path(weights)
    trained = ""
    if card.is_file():
        content = json.loads(card.read_text(encoding="utf-8"))
        trained = f" (trained at commit {content['commit']})"
    by = f" weights `{weights.name}`{trained}," if segmentations(given) else ""
    options = ", ".join(f"`{option}`" for option in (*SIMULATION, *SETTINGS[given.setting]))
    return (
        f"Made on {date.today()} by anacor_dials (commit {commit_of_program()}) and {dials_version()},"
        f"{by} setting `{given.setting}`: {options}."
    )


def arguments(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("virtual_thaumatin"))
    parser.add_argument("--setting", choices=SETTINGS, default="small",
                        help="small: minutes on two cores; images: from rotation images, a "
                        "quarter of an hour; large: I23's own scan, for clusters")  # fmt: skip
    parser.add_argument("--weights", type=lambda name: Path(name).resolve(),
                        help="weights of AnACorNet other than those that ship")  # fmt: skip
    parser.add_argument("--only-truth", action="store_true",
                        help="the true labels alone: nothing is segmented")  # fmt: skip
    parser.add_argument("--xia2", action="store_true",
                        help="with --setting images: by xia2.anacor, which needs xia2 on PATH")  # fmt: skip
    parser.add_argument("--sam2", metavar="CHECKPOINT", help="refine by SAM-2, too")
    parser.add_argument("--sam2-model", default="tiny", help="the checkpoint's model (tiny)")
    parser.add_argument(
        "--nproc",
        type=int,
        default=2,
        help="processes of a step of DIALS, and runs of dials.scale at a time (2)",
    )
    parser.add_argument("--docs", type=Path, help="a Markdown document whose figures are replaced")
    given = parser.parse_args(args)
    if given.xia2 and given.setting != "images":
        parser.error("--xia2 begins with images; give --setting images, too")
    if given.xia2 and given.docs:
        parser.error("--docs is for a run without --xia2, which leaves its table in from_xia2.md")
    if given.docs and END not in given.docs.read_text(encoding="utf-8"):
        parser.error(f"{given.docs} lacks the marks {BEGIN} and {END} between which figures go")
    if given.sam2 and Path(given.sam2).exists():
        given.sam2 = str(Path(given.sam2).resolve())
    return given


def main(args: Sequence[str] | None = None) -> list[Judged]:
    given = arguments(args)
    start = time.perf_counter()
    folder = given.folder.resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    steps = steps_of(given, folder)
    for step in steps:
        run_step(step, folder / "logs")
    if given.xia2:
        report = folder / "anacor" / "anacor.html"
        judged, text = results_of_pipeline(folder, origin(given), IMAGES_D_MIN)
    else:
        report = folder / "virtual_thaumatin.html"
        judged, text = write_results(
            folder,
            list(segmentations(given)),
            origin(given),
            [shlex.join(step.command) for step in steps],
            given.docs,
        )
    say(f"\n{text}\n\nReport: {report}\nTook {time.perf_counter() - start:.0f} s")
    return judged


if __name__ == "__main__":
    main()
