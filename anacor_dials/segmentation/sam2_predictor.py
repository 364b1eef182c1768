"""SAM-2 of the sam2 package follows objects through a film of slices.

Only this module and :mod:`.small_sam2` import sam2. The film is read from memory when it is needed;
no pictures are written. Checkpoints of Meta see grey slices of any shape, scaled to a square. The
small SAM-2 (:mod:`.small_sam2`) sees the three views of the tomogram (:mod:`.fringes`), and
slices that are made square by repeating their last rows or columns.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anacor_dials.sample.devices import chosen_device
from anacor_dials.segmentation.fringes import views
from anacor_dials.segmentation.sam2_refinement import (
    HOW_TO_GET,
    MODELS,
    SHIPPED,
    Frames,
    Sam2Settings,
)

logger = logging.getLogger("dials.anacor_dials.segmentation.sam2_predictor")

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as sam2 wants
GREY_WINDOW = (-0.1, 1.6)  # normalised values shown black and white: air is 0, the sample 1


class _Images:
    """The film as sam2 needs it: len() and [i] -> float tensor (3, size, size), one at a time."""

    def __init__(self, frames: Frames, size: int) -> None:
        self.frames, self.size = frames, size

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> Any:
        import torch
        import torch.nn.functional as F

        low, high = GREY_WINDOW
        grey = np.clip((np.asarray(self.frames[i], dtype=np.float32) - low) / (high - low), 0, 1)
        image = F.interpolate(
            torch.from_numpy(grey)[None, None],
            size=(self.size, self.size),
            mode="bilinear",
            align_corners=False,
        )[0]
        mean = torch.tensor(IMAGE_MEAN)[:, None, None]
        std = torch.tensor(IMAGE_STD)[:, None, None]
        return (image.expand(3, -1, -1) - mean) / std


class _ViewImages:
    """The film as the small SAM-2 needs it: [i] -> the views of a slice, tensor (3, size, size)."""

    def __init__(self, frames: Frames, size: int) -> None:
        values = np.stack([np.asarray(frames[x], dtype=np.float32) for x in range(len(frames))])
        self.views, self.size = views(values, np.float16), size
        self.edge = max(values.shape[1:])

    def __len__(self) -> int:
        return int(self.views.shape[1])

    def __getitem__(self, i: int) -> Any:
        import torch
        import torch.nn.functional as F

        from anacor_dials.segmentation.small_sam2 import colours

        seen = self.views[:, i].astype(np.float32)
        h, w = seen.shape[1:]
        seen = np.pad(seen, ((0, 0), (0, self.edge - h), (0, self.edge - w)), mode="edge")
        image = colours(torch.from_numpy(seen)[None])
        return F.interpolate(image, size=(self.size, self.size), mode="bilinear")[0]


class Sam2Predictor:
    """A :class:`SlicePredictor` by the sam2 package.

    Every slice is followed from the key frames on both sides of it, but encoded only once: sam2
    keeps the features of its last frame; here those of the last `frames_kept` frames are kept (30
    MB each at 1024 pixels).

    Parameters
    ----------
    model : SAM2VideoPredictor
    frames_kept : int
    """

    def __init__(self, model: Any, frames_kept: int = 48) -> None:
        self.model = model
        self.sees_views = hasattr(model, "carry")  # the small SAM-2
        self._state: Any = None
        self._frames: Frames | None = None
        self._features: OrderedDict[int, Any] = OrderedDict()
        encode = model._get_image_feature

        def kept(inference_state: Any, frame_idx: int, batch_size: int) -> Any:
            if frame_idx in self._features:
                self._features.move_to_end(frame_idx)
                inference_state["cached_features"] = {frame_idx: self._features[frame_idx]}
            features = encode(inference_state, frame_idx, batch_size)
            self._features[frame_idx] = inference_state["cached_features"][frame_idx]
            if len(self._features) > frames_kept:
                self._features.popitem(last=False)
            return features

        model._get_image_feature = kept

        def in_float32(_module: Any, arguments: Any, given: dict[str, Any]) -> Any:
            return arguments, given | {"memory": given["memory"].float()}

        # sam2 keeps memories in bfloat16, which its attention takes only where autocast is on
        model.memory_attention.register_forward_pre_hook(in_float32, with_kwargs=True)

    @classmethod
    def from_settings(cls, settings: Sam2Settings, device: str = "auto") -> Sam2Predictor:
        """The predictor with the weights that the settings name.

        Parameters
        ----------
        settings : Sam2Settings
            If there is no checkpoint, the weights are random (for timings).
        device : str
            auto, cpu or cuda.

        Raises
        ------
        ValueError
            If sam2 is not installed or the checkpoint cannot be had.
        """
        device, name = chosen_device(device), settings.checkpoint
        try:
            import sam2  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"SAM-2 was asked for and cannot be imported ({error}): {HOW_TO_GET}."
            ) from None
        if name is not None and (name == SHIPPED or name.endswith(".safetensors")):
            from anacor_dials.segmentation.small_sam2 import SHIPPED_SAM2, load_small_sam2

            model = load_small_sam2(SHIPPED_SAM2 if name == SHIPPED else name).to(device)
        else:
            model = cls._model_of_meta(settings, device)
        model.fill_hole_area = 0  # needs sam2's own CUDA code
        return cls(model, 2 * settings.key_frames)

    @staticmethod
    def _model_of_meta(settings: Sam2Settings, device: str) -> Any:
        """A model of Meta; with random weights if there is no checkpoint."""
        from sam2.build_sam import build_sam2_video_predictor, build_sam2_video_predictor_hf

        overrides = [f"++model.image_size={settings.image_size}"]
        name = settings.checkpoint
        try:
            if name is None or Path(name).is_file():
                return build_sam2_video_predictor(
                    MODELS[settings.model], name, device=device, hydra_overrides_extra=overrides
                )
            return build_sam2_video_predictor_hf(
                name, device=device, hydra_overrides_extra=overrides
            )
        except Exception as error:
            raise ValueError(
                f"SAM-2 could not be made from {name!r} ({(str(error) or repr(error)).splitlines()[0]}): "
                f"{HOW_TO_GET}; sam2.model={settings.model} must be the checkpoint's."
            ) from None

    def _state_of(self, frames: Frames) -> Any:
        """sam2's state of a film; it is kept as long as the film is the same."""
        if self._state is None or self._frames is not frames:
            images: _Images | _ViewImages
            height, width = np.asarray(frames[0]).shape
            if self.sees_views:
                images = _ViewImages(frames, int(self.model.image_size))
                height = width = images.edge
            else:
                images = _Images(frames, int(self.model.image_size))
            self._features.clear()
            with _frames_instead_of_files(images, height, width):
                self._state = self.model.init_state("")
            self._frames = frames
        return self._state

    def follow(
        self, frames: Frames, key: int, masks: NDArray[np.bool_], n_frames: int, reverse: bool
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See :meth:`SlicePredictor.follow`."""
        import torch

        from anacor_dials.segmentation.network import has_fast_bfloat16

        state = self._state_of(frames)
        self.model.reset_state(state)
        device = torch.device(self.model.device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device)),
            _without_its_bars(),
        ):
            present = [k for k in range(len(masks)) if masks[k].any()]
            if not present:
                return
            h, w = masks.shape[1:]
            more = ((0, state["video_height"] - h), (0, state["video_width"] - w))
            for k in present:
                whole = np.pad(masks[k], more)
                self.model.add_new_mask(state, key, k, torch.from_numpy(whole))
            film = self.model.propagate_in_video(
                state, start_frame_idx=key, max_frame_num_to_track=n_frames, reverse=reverse
            )
            for x, ids, found in film:
                logits = np.full(masks.shape, -20.0, dtype=np.float32)
                for row, k in enumerate(ids):
                    logits[k] = found[row, 0, :h, :w].float().cpu().numpy()
                yield int(x), logits


def following_predictor(settings: Sam2Settings, device: str = "auto") -> Sam2Predictor | None:
    """The predictor of the checkpoint that is named, or of the shipped one if none is named.

    None if none is named and sam2 is not installed.

    Parameters
    ----------
    settings : Sam2Settings
    device : str

    Raises
    ------
    ValueError
        If a checkpoint is named and cannot be used.
    """
    if settings.checkpoint is None:
        if find_spec("sam2") is None:
            logger.info("SAM-2 takes no part, since sam2 is not installed (pip install sam2).")
            return None
        settings = replace(settings, checkpoint=SHIPPED)
    return Sam2Predictor.from_settings(settings, device)


@contextmanager
def _without_its_bars() -> Iterator[None]:
    """Within the block, sam2 shows no progress bar of its own for every key frame."""
    import sam2.sam2_video_predictor as module

    original = module.tqdm
    module.tqdm = lambda frames, **_: frames
    try:
        yield
    finally:
        module.tqdm = original


@contextmanager
def _frames_instead_of_files(
    images: _Images | _ViewImages, height: int, width: int
) -> Iterator[None]:
    """Within the block, sam2 reads its film from memory, not from a folder of JPEGs."""
    import sam2.sam2_video_predictor as module

    original = module.load_video_frames
    module.load_video_frames = lambda *_, **__: (images, height, width)
    try:
        yield
    finally:
        module.load_video_frames = original
