"""How long dials.anacor_edit takes to open a large volume, to show a slice and to save a stroke.

    tools/dials-env python benchmarks/editing.py [tomo.h5 | 1024]

A number: a volume of so many voxels along each edge is made (1024; a drop with a crystal, with probabilities of
the labels). The server answers over HTTP as it does a browser, compressed; drawing by the browser is not in
the times. A stroke is 400 voxels in a slice. The file that is given is copied first.
"""

from __future__ import annotations

import gzip
import json
import resource
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from anacor_dials.jobs.editing import LabelEditor
from anacor_dials.jobs.label_preview import LabelPreview
from anacor_dials.report.edit_server import EditServer
from anacor_dials.sample.tomogram_files import read_preview, write_sample_file
from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Tomogram

SLICES = 12  # across each axis, spread over the volume


def write_sample(path: Path, n: int) -> None:
    """A drop with a crystal in n^3 voxels of 0.3 um, with noise, labels and probabilities."""
    rng = np.random.default_rng(0)
    place = (np.arange(n) - (n - 1) / 2) / n
    labels = np.zeros((n, n, n), dtype=np.uint8)
    values = np.empty((n, n, n), dtype=np.float32)
    probabilities = np.zeros((4, n, n, n), dtype=np.uint8)
    noise = rng.normal(0, 0.001, (n, n)).astype(np.float32)
    across = place[:, None] ** 2 + place[None] ** 2
    for i, x in enumerate(place):
        labels[i][across + x * x < 0.16] = 1
        labels[i][(np.abs(place[:, None] - 0.05) < 0.1) & (np.abs(place[None]) < 0.12)] = (
            3 if abs(x) < 0.15 else labels[i, 0, 0]
        )
        values[i] = 0.012 * (labels[i] > 0) + np.roll(noise, i, axis=0)
        for label in (0, 1, 3):
            probabilities[label, i] = 240 * (labels[i] == label) + 7
    size = np.full(3, 0.3)
    write_sample_file(
        path,
        tomogram=Tomogram(values, size),
        labels=LabelVolume(labels, size, names=DEFAULT_NAMES),
        mu_per_um=np.array([0, 0.012, 0.012, 0.012]),
        probabilities=probabilities,
    )


class Page:
    """Asks the server as the page does."""

    def __init__(self, server: EditServer) -> None:
        self.server = server

    def get(self, asked: str) -> bytes:
        request = urllib.request.Request(
            self.server.address + asked, headers={"Accept-Encoding": "gzip"}
        )
        with urllib.request.urlopen(request) as answer:
            content: bytes = answer.read()
            packed = answer.headers.get("Content-Encoding") == "gzip"
        return gzip.decompress(content) if packed else content

    def post(self, action: str, **content: object) -> None:
        request = urllib.request.Request(
            self.server.address + action,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).read()


def time_slices(page: Page, shape: tuple[int, ...]) -> None:
    """Prints how long slices across each axis take, median and worst."""
    size = " x ".join(map(str, shape))
    for axis, name in enumerate("XYZ"):
        for kinds in (("values",), ("values", "labels", "doubt", "by_hand")):
            times = []
            for index in np.linspace(0.1, 0.9, SLICES) * shape[axis]:
                start = time.perf_counter()
                for kind in kinds:
                    page.get(f"slice?kind={kind}&axis={axis}&index={int(index)}")
                times.append(time.perf_counter() - start)
            print(
                f"| {size}: a slice across {name}, {' + '.join(kinds)} | {np.median(times):.3f} "
                f"(worst {max(times):.3f}) |",
                flush=True,
            )


def main() -> None:
    given = sys.argv[1] if len(sys.argv) > 1 else "1024"
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "tomo.h5"
        if given.isdigit():
            write_sample(path, int(given))
        else:
            shutil.copyfile(given, path)
        print("| step | s |\n|---|---|")
        start = time.perf_counter()
        preview = read_preview(path)
        first = LabelEditor(path) if preview is None else LabelPreview(preview)
        server = EditServer(first)
        threading.Thread(target=server.run, daemon=True).start()
        page = Page(server)
        page.get("state")
        print(f"| opening | {time.perf_counter() - start:.2f} |", flush=True)
        if preview is not None:
            time_slices(page, first.shape)
            start = time.perf_counter()
            server.open(lambda: LabelEditor(path))
            while json.loads(page.get("state"))["reading"]:
                time.sleep(0.05)
            print(f"| reading the whole | {time.perf_counter() - start:.1f} |", flush=True)
        editor = server.editor
        time_slices(page, editor.shape)
        start = time.perf_counter()
        page.get("places")
        print(f"| doubtful places | {time.perf_counter() - start:.2f} |")
        times = []
        for k in range(4):
            start = time.perf_counter()
            ny, nz = editor.shape[1:]
            runs = [[nz * (ny // 2 + k + j) + nz // 3, 20] for j in range(20)]
            page.post("paint", axis=0, index=editor.shape[0] // 2 + k, label=2, runs=runs)
            times.append(time.perf_counter() - start)
        print(f"| a stroke, with its saving | {np.median(times):.3f} (worst {max(times):.3f}) |")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"\npeak memory {peak:.1f} GB")
        server.stop()


if __name__ == "__main__":
    main()
