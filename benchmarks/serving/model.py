"""The random-weight LLaVA and its proxy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Shape:
    """Sizes of the random-weight LLaVA; heads of 64, four query heads to a KV head."""

    width: int
    layers: int
    side: int  # pixels
    vocabulary: int = 32_000
    patch: int = 8
    key_size: int = 256


def make_model(folder: Path, shape: Shape) -> tuple[Path, Path]:
    """A LLaVA with random weights and a random proxy of its width; returns their folders."""
    from safetensors.torch import load_file, save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from fastrm_monitor.lab.datasets.scenes import vocabulary
    from fastrm_monitor.lab.embed import CHAT_TEMPLATE
    from fastrm_monitor.scoring.checkpoint import norm_facts, save_proxy
    from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    words = [*special, "user", "assistant", ":", *vocabulary()]
    words += [f"w{number}" for number in range(shape.vocabulary - len(words))]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
    )
    side = shape.side
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_convert_rgb=True
        ),
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(0)
    heads = shape.width // 64
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=side,
            patch_size=shape.patch,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.width * 11 // 4 // 64 * 64,
            num_hidden_layers=shape.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            head_dim=64,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=False,
        ),
        image_token_index=4,
        image_seq_length=(side // shape.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    where, proxy_folder = folder / "model", folder / "proxy"
    model.save_pretrained(where)
    processor.save_pretrained(where)
    # Engines and hub checkpoints know the tower's weights by their older name.
    weights = load_file(where / "model.safetensors")
    old, new = "vision_tower.", "vision_tower.vision_model."
    renamed = {name if new in name else name.replace(old, new): tensor.contiguous() for name, tensor in weights.items()}
    save_file(renamed, where / "model.safetensors", metadata={"format": "pt"})
    norm = model.model.language_model.norm
    save_proxy(
        proxy_folder,
        build_proxy(
            ProxyConfig(
                hidden_size=shape.width,
                key_size=shape.key_size,
                projection_size=shape.key_size,
                grounding=True,
                evidence=True,
            )
        ),
        norm.weight,
        model_id="random weights",
        model_type="llava",
        norm=norm_facts(norm),
        image_token_id=4,
    )
    return where, proxy_folder
