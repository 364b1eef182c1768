"""A small SAM-2 that follows an object through the slices of a tomogram.

It is made of the classes of the sam2 package (Ravi et al., SAM 2, arXiv:2408.00714), with a small
image encoder, and is trained on tomograms (:mod:`.sam2_training`), not on films of daily life. Two
things are different from the models of Meta. The three colours are the three views of the
tomogram (:mod:`.fringes`). And the mask found in the last slice is, besides the memory, a prompt
in the next one: slices are one or two voxels apart, so that the two masks are nearly the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.sam2_video_predictor import SAM2VideoPredictor

from anacor_dials.segmentation.sam2_training_settings import SmallSam2Settings
from anacor_dials.segmentation.weights_files import check_tensors, read_tensors, write_tensors

WEIGHTS_FORMAT, WEIGHTS_VERSION = "anacor_dials small SAM-2", "1"
SHIPPED_SAM2 = Path(__file__).parent / "weights" / "sam2-small.safetensors"
STRIDE = 16  # pixels of the image in one place of the features
# Levels and half widths of what the three views show: the plain one from air to strong fringes; the
# views without fringes a range around the sample, where crystal and liquor differ by some per cent.
LEVELS, WIDTHS, LIMIT = (0.7, 1.0, 1.0), (0.4, 0.12, 0.12), 2.5
CARRY = 0.4  # the part at the beginning of the training, chosen by hand
LARGEST_LOGIT = 10.0  # of the last mask as a prompt; sam2 writes masks of the user as -10 and 10


class SmallSam2(SAM2VideoPredictor):  # type: ignore[misc]
    """sam2's predictor, in which the mask of the last slice is a prompt in the next one.

    A part of the logits of the last slice is also added to those of the next one, so that the
    network finds the change from slice to slice. The part, `carry`, is learned.
    """

    def __init__(self, **choices: Any) -> None:
        super().__init__(**choices)
        self.carry = torch.nn.Parameter(torch.tensor(CARRY))

    def _track_step(
        self,
        frame_idx: int,
        is_init_cond_frame: bool,
        current_vision_feats: list[torch.Tensor],
        current_vision_pos_embeds: list[torch.Tensor],
        feat_sizes: list[tuple[int, int]],
        point_inputs: dict[str, torch.Tensor] | None,
        mask_inputs: torch.Tensor | None,
        output_dict: dict[str, Any],
        num_frames: int,
        track_in_reverse: bool,
        prev_sam_mask_logits: torch.Tensor | None,
    ) -> Any:
        """As of sam2, but with a mask prompt where there is none."""
        if mask_inputs is not None or is_init_cond_frame:
            return super()._track_step(
                frame_idx, is_init_cond_frame, current_vision_feats, current_vision_pos_embeds,
                feat_sizes, point_inputs, mask_inputs, output_dict, num_frames, track_in_reverse,
                prev_sam_mask_logits,
            )  # fmt: skip
        features = self._prepare_memory_conditioned_features(
            frame_idx=frame_idx,
            is_init_cond_frame=False,
            current_vision_feats=current_vision_feats[-1:],
            current_vision_pos_embeds=current_vision_pos_embeds[-1:],
            feat_sizes=feat_sizes[-1:],
            output_dict=output_dict,
            num_frames=num_frames,
            track_in_reverse=track_in_reverse,
        )
        high_resolution = [
            level.permute(1, 2, 0).reshape(level.size(1), level.size(2), *size)
            for level, size in zip(current_vision_feats[:-1], feat_sizes[:-1], strict=True)
        ]
        last = prev_sam_mask_logits
        if last is None:
            last = self._mask_before(frame_idx, output_dict, track_in_reverse)
        if last is not None:
            last = last.float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        found = self._forward_sam_heads(
            backbone_features=features,
            point_inputs=point_inputs,
            mask_inputs=last,
            high_res_features=high_resolution,
            multimask_output=False,
        )
        if last is not None:
            low = found[0] + self.carry * last
            high = F.interpolate(low, size=found[1].shape[-2:], mode="bilinear")
            found = (low, high, found[2], low, high, *found[5:])
        return {"point_inputs": point_inputs, "mask_inputs": None}, found, high_resolution, features

    @staticmethod
    def _mask_before(frame: int, outputs: dict[str, Any], reverse: bool) -> torch.Tensor | None:
        """The logits (n, 1, h, w) of the slice before, None if it was not looked at."""
        before = frame + 1 if reverse else frame - 1
        for kind in ("cond_frame_outputs", "non_cond_frame_outputs"):
            if before in outputs[kind]:
                mask: torch.Tensor = outputs[kind][before]["pred_masks"]
                return mask
        return None


def build_small_sam2(settings: SmallSam2Settings | None = None) -> SmallSam2:
    """The network with random weights, on the CPU.

    Parameters
    ----------
    settings : SmallSam2Settings, optional
    """
    s = settings or SmallSam2Settings()
    places = s.image_size // STRIDE

    def position(channels: int) -> PositionEmbeddingSine:
        return PositionEmbeddingSine(
            num_pos_feats=channels,
            normalize=True,
            scale=None,
            temperature=10000,
            warmup_cache=False,
        )

    widths = [s.width * 2**k for k in range(4)]
    ends = [sum(s.blocks[: k + 1]) for k in range(4)]
    trunk = Hiera(
        embed_dim=s.width,
        num_heads=1,
        stages=s.blocks,
        # attention over the whole image in the last block of the third and of the fourth stage
        global_att_blocks=(ends[2] - 1, ends[3] - 1),
        window_pos_embed_bkg_spatial_size=(7, 7),
        window_spec=(8, 4, 8, 4),
    )
    neck = FpnNeck(
        position(s.d_model), s.d_model, widths[::-1], fpn_interp_model="nearest",
        fpn_top_down_levels=[2, 3],
    )  # fmt: skip
    sizes = {"rope_theta": 10000.0, "feat_sizes": (places, places), "num_heads": 1}
    attention = {"embedding_dim": s.d_model, "downsample_rate": 1, "dropout": 0.0} | sizes
    layer = MemoryAttentionLayer(
        activation="relu",
        cross_attention=RoPEAttention(rope_k_repeat=True, kv_in_dim=s.memory, **attention),
        d_model=s.d_model,
        dim_feedforward=4 * s.d_model,
        dropout=0.0,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=RoPEAttention(**attention),
    )
    memory_encoder = MemoryEncoder(
        s.memory,
        MaskDownSampler(s.d_model, kernel_size=3, stride=2, padding=1),
        Fuser(CXBlock(s.d_model, layer_scale_init_value=0.1), num_layers=2),
        position(s.memory),
        in_dim=s.d_model,
    )
    network = SmallSam2(
        image_encoder=ImageEncoder(trunk, neck, scalp=1),
        memory_attention=MemoryAttention(s.d_model, True, layer, s.memory_layers),
        memory_encoder=memory_encoder,
        num_maskmem=7,
        image_size=s.image_size,
        backbone_stride=STRIDE,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        iou_prediction_use_sigmoid=True,
    )
    network.settings = s
    return network


def colours(views: torch.Tensor) -> torch.Tensor:
    """The three views (..., 3, h, w) of slices as the network's colours.

    Parameters
    ----------
    views : tensor (..., 3, h, w)
        Normalised: air is 0 and the sample 1.
    """
    level = torch.tensor(LEVELS, device=views.device)[:, None, None]
    width = torch.tensor(WIDTHS, device=views.device)[:, None, None]
    return ((views - level) / width).clamp(-LIMIT, LIMIT)


def save_small_sam2(
    path: str | os.PathLike[str], network: SmallSam2, card: Mapping[str, Any]
) -> None:
    """Writes NAME.safetensors in half precision, and the model card NAME.json; both or neither.

    Parameters
    ----------
    path : path
        NAME.safetensors.
    network : SmallSam2
    card : mapping
        What is known of the training, plain values.

    Raises
    ------
    ValueError
        If a weight is not a number.
    """
    metadata = {
        "format": WEIGHTS_FORMAT,
        "version": WEIGHTS_VERSION,
        "settings": json.dumps(asdict(network.settings)),
    }
    write_tensors(path, network.state_dict(), metadata, card, half=True)


def load_small_sam2(path: str | os.PathLike[str]) -> SmallSam2:
    """The network of a weights file, in evaluation mode, on the CPU, float32.

    Raises
    ------
    ValueError
        If the file is absent, of another program or version, holds values that are not numbers, or
        tensors that do not belong to the network that it names.
    """
    state, metadata = read_tensors(path)
    if (metadata.get("format"), metadata.get("version")) != (WEIGHTS_FORMAT, WEIGHTS_VERSION):
        raise ValueError(
            f"{path} holds no weights of a small SAM-2 that this program reads; make them by "
            "dials.anacor_train network.architecture=sam2."
        )
    try:
        network = build_small_sam2(SmallSam2Settings(**json.loads(metadata["settings"])))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not say what network it belongs to ({error}).") from None
    network.load_state_dict(check_tensors(path, state, network.state_dict()))
    return network.eval()
