"""The small SAM-2 follows objects through a batch of films, with gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from anacor_dials.segmentation.films import Film, clicks_in
from anacor_dials.segmentation.small_sam2 import SmallSam2, colours


@dataclass(frozen=True, eq=False)
class FilmBatch:
    """Films of the same length, and what is drawn in their first slices.

    Attributes
    ----------
    frames : tensor (n_films, n, 3, edge, edge)
        Views.
    objects : tensor (n_films n_objects, n, edge, edge)
        True masks, 0 and 1.
    masks : tensor (n_films n_objects, 1, edge, edge), optional
        Prompts; if there are none, clicks are drawn.
    points : tensor (n_films n_objects, n_clicks, 2), optional
        Column and row of clicks.
    kinds : tensor (n_films n_objects, n_clicks), optional
        1 on the object, 0 beside it.
    """

    frames: torch.Tensor
    objects: torch.Tensor
    masks: torch.Tensor | None
    points: torch.Tensor | None
    kinds: torch.Tensor | None

    @classmethod
    def of(
        cls, films: Sequence[Film], rng: np.random.Generator | None, n_clicks: int = 0
    ) -> FilmBatch:
        """A batch of films with masks as prompts, or with so many clicks.

        Parameters
        ----------
        films : sequence of Film
        rng : Generator, optional
            Of the clicks.
        n_clicks : int
        """
        objects = np.concatenate([film.objects for film in films])
        masks = points = kinds = None
        if n_clicks and rng is not None:
            drawn = [clicks_in(rng, o[0], n_clicks) for o in objects]
            points = torch.from_numpy(np.stack([d[0] for d in drawn]))
            kinds = torch.from_numpy(np.stack([d[1] for d in drawn]))
        else:
            prompts = np.concatenate([film.prompts for film in films])
            masks = torch.from_numpy(prompts.astype(np.float32))[:, None]
        return cls(
            torch.from_numpy(np.stack([film.frames for film in films])),
            torch.from_numpy(objects.astype(np.float32)),
            masks,
            points,
            kinds,
        )

    def to(self, device: torch.device) -> FilmBatch:
        """The batch on a device."""
        return FilmBatch(
            *(
                None if t is None else t.to(device)
                for t in (self.frames, self.objects, self.masks, self.points, self.kinds)
            )
        )


class _FilmFeatures:
    """Features of all slices of a batch, from which those of a slice are taken for every object."""

    def __init__(self, network: SmallSam2, frames: torch.Tensor, per_film: int) -> None:
        n_films, self.n = frames.shape[:2]
        images = F.interpolate(
            colours(frames.flatten(0, 1)),
            size=(network.image_size,) * 2,
            mode="bilinear",
            align_corners=False,
        )
        _, self.levels, self.positions, self.sizes = network._prepare_backbone_features(
            network.forward_image(images)
        )
        films = torch.arange(n_films, device=frames.device)
        self.film_of_object = films.repeat_interleave(per_film)

    def at(self, t: int) -> dict[str, Any]:
        """What sam2's track_step wants of the slice t."""
        rows = self.film_of_object * self.n + t
        return {
            "current_vision_feats": [level[:, rows] for level in self.levels],
            "current_vision_pos_embeds": [place[:, rows] for place in self.positions],
            "feat_sizes": self.sizes,
        }


def correction_clicks(
    logits: torch.Tensor, target: torch.Tensor, image_size: int
) -> dict[str, torch.Tensor]:
    """One click for each object, where its mask is wrong, as sam2 wants it.

    It lies in the middle of the largest error, approximately: at the largest value of the smoothed
    error. Where nothing is wrong the click lies on the object or beside it, and says so.

    Parameters
    ----------
    logits : tensor (n, 1, h, w)
    target : tensor (n, edge, edge)
    image_size : int
    """
    edge = target.shape[-1]
    found = F.interpolate(logits.float(), size=(edge, edge), mode="bilinear", align_corners=False)
    wrong = ((found[:, 0] > 0) != (target > 0.5)).float()
    smooth = F.avg_pool2d(wrong[:, None], 7, 1, 3, count_include_pad=False)[:, 0]
    place = smooth.flatten(1).argmax(dim=1)
    kind = target.flatten(1).gather(1, place[:, None]) > 0.5
    scale = image_size / edge
    points = torch.stack([place % edge, place // edge], dim=-1).float()
    return {
        "point_coords": (points[:, None] + 0.5) * scale - 0.5,
        "point_labels": kind.to(torch.int32),
    }


def track(network: SmallSam2, batch: FilmBatch, corrected: int | None = None) -> torch.Tensor:
    """Logits (n_objects, n, h, w) of every slice, at a quarter of the network's image size.

    The order of the slices is that of the film; a film that runs backward has been turned before.

    Parameters
    ----------
    network : SmallSam2
    batch : FilmBatch
    corrected : int, optional
        In this slice an error is corrected by a click.
    """
    n_objects, n = batch.objects.shape[:2]
    features = _FilmFeatures(network, batch.frames, n_objects // len(batch.frames))
    outputs: dict[str, Any] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    size = int(network.image_size)
    scale = size / batch.objects.shape[-1]
    logits = []
    for t in range(n):
        first = t == 0
        prompt: dict[str, Any] = {"point_inputs": None, "mask_inputs": None}
        if first and batch.masks is not None:
            mask = F.interpolate(batch.masks, size=(size, size), mode="bilinear")
            prompt["mask_inputs"] = (mask > 0.5).float()
        elif first:
            assert batch.points is not None
            points = {
                "point_coords": (batch.points + 0.5) * scale - 0.5,
                "point_labels": batch.kinds,
            }
            prompt["point_inputs"] = points
        given = features.at(t) | {
            "frame_idx": t, "output_dict": outputs, "num_frames": n, "is_init_cond_frame": first,
        }  # fmt: skip
        click = t == corrected and not first
        step = network.track_step(**given, **prompt, run_mem_encoder=not click)
        if click:
            prompt["point_inputs"] = correction_clicks(
                step["pred_masks"], batch.objects[:, t], size
            )
            before = step["pred_masks"].detach().clamp(-32, 32)
            step = network.track_step(**given, **prompt, prev_sam_mask_logits=before)
        outputs["cond_frame_outputs" if first else "non_cond_frame_outputs"][t] = step
        logits.append(step["pred_masks"][:, 0].float())
    return torch.stack(logits, dim=1)


def film_loss(logits: torch.Tensor, objects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross-entropy, 1 - Dice), means over objects and slices.

    Parameters
    ----------
    logits : tensor (n_objects, n, h, w)
    objects : tensor (n_objects, n, edge, edge)
        True masks.
    """
    edge = objects.shape[-1]
    found = F.interpolate(logits, size=(edge, edge), mode="bilinear", align_corners=False)
    entropy = F.binary_cross_entropy_with_logits(found, objects)
    p = found.sigmoid().flatten(2)
    t = objects.flatten(2)
    dice = 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
    return entropy, dice.mean()


@contextmanager
def attention_in_float32() -> Iterator[None]:
    """Within the block, sam2 computes attention in float32, though the rest be in bfloat16.

    On CPUs, the gradient of torch's attention is several times slower in bfloat16.
    """
    original = F.scaled_dot_product_attention

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **choices: Any) -> Any:
        with torch.autocast(q.device.type, enabled=False):
            return original(q.float(), k.float(), v.float(), **choices)

    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


@torch.no_grad()  # type: ignore[misc, unused-ignore]
def dice_of_slices(
    network: SmallSam2, films: Sequence[Film], device: torch.device
) -> NDArray[np.float64]:
    """Dice (n_films, n_objects, n) of the masks that are followed from exact masks.

    NaN where the object is neither there nor found.

    Parameters
    ----------
    network : SmallSam2
    films : sequence of Film
    device : torch.device
    """
    out = []
    for film in films:
        batch = FilmBatch.of([film], None).to(device)
        logits = track(network, batch)
        edge = batch.objects.shape[-1]
        found = F.interpolate(logits, size=(edge, edge), mode="bilinear", align_corners=False) > 0
        true = batch.objects > 0.5
        both = (found & true).flatten(2).sum(-1).double()
        total = found.flatten(2).sum(-1) + true.flatten(2).sum(-1)
        out.append((2 * both / total).cpu().numpy())
    return np.stack(out)
