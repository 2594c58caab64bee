"""The shapes with random weights, their prompts, and a random proxy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from fastrm_monitor.scoring.checkpoint import norm_facts, save_proxy
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy

SAMPLE_RATE = 0.2
"""Share of the answers that are stored with their picture: about what the embedded model's proxy flags."""
WORDS_BEFORE, WORDS_BEHIND = 4, 19
"""Tokens of the prompt on both sides of the picture's, the first one apart."""


def shape_7b() -> LlavaConfig:
    """LLaVA-1.5-7B: Vicuna-7B, CLIP ViT-L/14 at 336 pixels, 576 image tokens."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
            vocab_size=32000,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=32001,
            tie_word_embeddings=False,
        ),
        image_token_index=32000,
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def shape_small() -> LlavaConfig:
    """The same family in small, for a CPU: 64 image tokens."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=112,
            patch_size=14,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2001,
            tie_word_embeddings=False,
        ),
        image_token_index=2000,
        image_seq_length=64,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def shape_middle() -> LlavaConfig:
    """Between the two, for a CPU: the 576 image tokens of LLaVA-1.5, a quarter of its width and half of its layers."""
    config = shape_7b()
    tower, text = config.vision_config, config.text_config
    tower.hidden_size, tower.intermediate_size, tower.num_hidden_layers, tower.num_attention_heads = 512, 2048, 8, 8
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 1024, 2752, 16
    text.num_attention_heads = text.num_key_value_heads = 8
    return config


def build(config: LlavaConfig, device: torch.device, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A model with random weights, made where it stays and in its own precision: no larger copy exists at any time."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    found = {(one.dtype, one.device.type) for one in model.parameters()}
    if found != {(dtype, device.type)}:
        raise SystemExit(f"The weights should be {dtype} on {device.type} and are {found}.")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(config.text_config, name))
    return model


class Words:
    """Stands in for the tokenizer: a word for each token."""

    def decode(self, tokens: Sequence[int] | Tensor, skip_special_tokens: bool = False) -> str:
        """The words of the tokens, those of the special tokens left out on request."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return " ".join(f"w{number}" for number in numbers if not skip_special_tokens or number > 2)


def stand_in(config: LlavaConfig) -> SimpleNamespace:
    """What `instrument` reads of a processor; the numbers are those of LLaVA-1.5's."""
    side = config.vision_config.image_size
    return SimpleNamespace(
        tokenizer=Words(),
        image_processor=SimpleNamespace(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            do_center_crop=True,
            do_normalize=True,
            image_mean=[0.48145466, 0.4578275, 0.40821073],
            image_std=[0.26862954, 0.26130258, 0.27577711],
        ),
        num_additional_image_tokens=1,
    )


def save_random_proxy(folder: Path, model: LlavaForConditionalGeneration) -> None:
    """A query-row proxy with d_k = 256, a calibrated confidence and a P(IK) probe, all random."""
    text = model.config.text_config
    norm = model.model.language_model.norm
    names = ("map_entropy", "token_probability", "token_entropy", "p_ik")
    probe = torch.randn(text.hidden_size, generator=torch.Generator().manual_seed(1)) / text.hidden_size**0.5
    save_proxy(
        folder,
        build_proxy(ProxyConfig(text.hidden_size, key_size=256, projection_size=256, grounding=True, evidence=True)),
        norm.weight,
        LogisticConfidence(
            features=names,
            mean=(0.0,) * len(names),
            scale=(1.0,) * len(names),
            weights=(-0.5, 0.5, -0.5, 0.5),
            intercept=0.0,
            threshold=0.0,  # the sample alone decides what is stored
            probe=tuple(probe.tolist()),
        ),
        model_id="random weights",
        model_type=model.config.model_type,
        norm=norm_facts(norm),
        image_token_id=model.config.image_token_index,
    )


def prompts(model: LlavaForConditionalGeneration, batch: int) -> dict[str, Tensor]:
    """One picture and one question a row, as the processor would give them."""
    config = model.config
    dice = torch.Generator().manual_seed(batch)
    words = torch.randint(3, config.image_token_index, (batch, WORDS_BEFORE + WORDS_BEHIND), generator=dice)
    begin = torch.full((batch, 1), config.text_config.bos_token_id)
    picture = torch.full((batch, config.image_seq_length), config.image_token_index)
    ids = torch.cat([begin, words[:, :WORDS_BEFORE], picture, words[:, WORDS_BEFORE:]], dim=1).to(model.device)
    side = config.vision_config.image_size
    pixels = torch.randn(batch, 3, side, side, generator=dice).to(model.device, model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
