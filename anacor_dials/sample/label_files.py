"""Labels alone in the files of other programs: TIFF stacks, NumPy arrays, NRRD."""

from __future__ import annotations

import gzip
import os

import numpy as np

from anacor_dials.sample.volumes import LabelVolume


def write_tiff(path: str | os.PathLike[str], labels: LabelVolume) -> None:
    """Writes labels as a TIFF stack with pages along X (axes "x,y,z")."""
    import tifffile

    tifffile.imwrite(path, labels.values, compression="zlib")


def write_npy(path: str | os.PathLike[str], labels: LabelVolume) -> None:
    """Writes labels as a NumPy array (nx, ny, nz)."""
    with open(path, "wb") as file:
        np.save(file, labels.values)


def write_nrrd(path: str | os.PathLike[str], labels: LabelVolume) -> None:
    """Writes labels as NRRD 4, gzip, um; the first axis (X) runs fastest, the origin is that of the tomo frame."""
    size = labels.voxel_size_um
    origin = labels.position_um((0, 0, 0))
    directions = " ".join(
        "(" + ",".join(f"{size[i]:.9g}" if i == j else "0" for j in range(3)) + ")"
        for i in range(3)
    )
    header = (
        "NRRD0004\ntype: uint8\ndimension: 3\nspace dimension: 3\n"
        f"sizes: {' '.join(str(n) for n in labels.shape)}\n"
        f"space directions: {directions}\n"
        f"space origin: ({','.join(f'{v:.9g}' for v in origin)})\n"
        'space units: "um" "um" "um"\nencoding: gzip\n\n'
    )
    with open(path, "wb") as file:
        file.write(header.encode("ascii"))
        file.write(gzip.compress(labels.values.tobytes(order="F"), 4))
