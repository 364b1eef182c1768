"""The size of the small SAM-2, and how it is trained; without sam2 itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from anacor_dials.segmentation.films import FilmSettings
from anacor_dials.segmentation.training_settings import TrainingSettings


@dataclass(frozen=True)
class SmallSam2Settings:
    """The size of the network.

    Parameters
    ----------
    image_size : int
        Slices are scaled to so many pixels, a multiple of 64.
    width : int
        Channels of the first stage of the image encoder.
    blocks : tuple of 4 int
        Of the stages of the image encoder.
    d_model : int
        Channels of the features, a multiple of 8.
    memory : int
        Channels of the memory.
    memory_layers : int
        Of the attention to the memory.
    """

    image_size: int = 256
    width: int = 32
    blocks: tuple[int, int, int, int] = (1, 1, 2, 2)
    d_model: int = 96
    memory: int = 32
    memory_layers: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.image_size < 64 or self.image_size % 64:
            raise ValueError(f"The image size is {self.image_size}; it is a multiple of 64.")
        if len(self.blocks) != 4 or min(self.blocks) < 1:
            raise ValueError(f"The blocks are {self.blocks}; four numbers from 1 on are needed.")
        if self.d_model % 8 or self.width % 8 or self.memory % 4:
            raise ValueError(
                f"d_model {self.d_model} and width {self.width} are multiples of 8, memory "
                f"{self.memory} of 4."
            )


@dataclass(frozen=True)
class Sam2TrainingSettings:
    """How a small SAM-2 is trained.

    Parameters
    ----------
    network : SmallSam2Settings
    course : TrainingSettings
        Steps, learning rate, time, device and so on; of these `batch` is the number of films in a
        step, and `crop` their edge in pixels. What belongs to AnACorNet alone is not used.
    films : FilmSettings
        Its edge is that of `course`.
    lengths : tuple of int
        Slices of the films in equal parts of the training.
    """

    network: SmallSam2Settings = field(default_factory=SmallSam2Settings)
    course: TrainingSettings = field(default_factory=TrainingSettings)
    films: FilmSettings = field(default_factory=FilmSettings)
    lengths: tuple[int, ...] = (3, 4, 4, 6, 8)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 2:
            raise ValueError(f"Films have {self.lengths} slices; at least 2 are needed.")
        if self.films.edge != self.course.crop:
            raise ValueError(
                f"Films of {self.films.edge} pixels and crops of {self.course.crop} pixels differ."
            )

    def length_at(self, step: int, seconds: float) -> int:
        """Slices of the films of a step.

        Parameters
        ----------
        step : int
        seconds : float
            Since the beginning of the training.
        """
        done = step / self.course.steps
        if self.course.within_minutes is not None:
            done = max(done, seconds / (60 * self.course.within_minutes))
        return self.lengths[min(int(done * len(self.lengths)), len(self.lengths) - 1)]
