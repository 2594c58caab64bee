"""A LLaVA and data that share nothing with the package's: other sizes, other tower, other words, photograph-like files.

The model is random, so what it says means nothing; the written references are its own answers on half of the
questions, which makes it right there and leaves something to learn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from fastrm_monitor.lab.ask import Asker, load_lvlm

FRUITS = ("papaya", "quince", "durian", "lychee", "pomelo")
TINTS = {"teal": (0, 128, 128), "maroon": (128, 0, 0), "ochre": (204, 119, 34), "lilac": (200, 162, 200)}
SIZES = ((150, 100), (90, 140), (120, 120))
_SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]


@dataclass(frozen=True)
class Shape:
    """Of a LLaVA: width and layers of the language model, its tower, patch and picture in pixels."""

    width: int
    layers: int
    heads: int
    tower: str
    patch: int
    side: int
    dtype: torch.dtype = torch.float32


def make_model(folder: Path, shape: Shape) -> Path:
    """A random-weight LLaVA in a hub checkpoint's layout, with a byte-level BPE tokenizer and no chat template."""
    tokenizer = _tokenizer()
    clip = shape.tower == "clip"
    vision: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": shape.side,
        "patch_size": shape.patch,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, projection_dim=48) if clip else SiglipVisionConfig(**vision),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=3 * shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
            tie_word_embeddings=False,
        ),
        image_token_index=4,
        image_seq_length=(shape.side // shape.patch) ** 2,
        vision_feature_layer=-2 if clip else -1,
        vision_feature_select_strategy="default" if clip else "full",
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for name, value in model.named_parameters():
        if name.endswith("weight") and value.ndim == 2:  # wider than transformers draws them: answers then differ
            torch.nn.init.normal_(value, std=0.15)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(config.text_config, name))
    side = {"height": shape.side, "width": shape.side}
    pictures = (
        CLIPImageProcessorPil(size={"shortest_edge": shape.side}, crop_size=side, do_convert_rgb=True)
        if clip
        else SiglipImageProcessorPil(size=side, do_convert_rgb=True)
    )
    model.to(shape.dtype).save_pretrained(folder)
    LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1 if clip else 0,
    ).save_pretrained(folder)
    return folder


def make_next(folder: Path) -> Path:
    """A LLaVA-NeXT, which cuts a picture into tiles; as small and as random."""
    plain = LlavaForConditionalGeneration.config_class.from_pretrained(
        make_model(folder.with_name("plain"), Shape(48, 2, 3, "clip", 14, 84))
    )
    tiles = [[84, 168], [168, 84]]
    config = LlavaNextConfig(
        vision_config=plain.vision_config,
        text_config=plain.text_config,
        image_token_index=4,
        image_grid_pinpoints=tiles,
        image_seq_length=36,
        tie_word_embeddings=False,
    )
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 84},
            crop_size={"height": 84, "width": 84},
            image_grid_pinpoints=tiles,
        ),
        tokenizer=_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([f"What tint has the {fruit}? {tint}" for fruit in FRUITS for tint in TINTS], trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=256,
    )


class Data:
    """Files of the official forms about drawn fruit, as many pictures as asked for.

    Args:
        folder: for the files.
        model: folder of the model whose answers are the references of every second question.
        pictures: of each form.
    """

    def __init__(self, folder: Path, model: Path, pictures: int) -> None:
        self.folder, self.pictures = folder, pictures
        self._asker = Asker(*load_lvlm(str(model), device="cpu"))
        self._asker.model.set_attn_implementation("eager")  # as the teacher has it, which matters in 16 bits

    def vqav2(self) -> list[str]:
        """Options of four questions a picture, ten annotators each."""
        rows, known = [], []
        images = self.folder / "val2014"
        for number, pixels, question, answer in self._asked(seed=1, each=4):
            image = 300 + number // 4
            _save(pixels, images / f"COCO_val2014_{image:012d}.jpg")
            rows.append({"image_id": image, "question": question, "question_id": 1000 + number})
            known.append(
                {
                    "question_id": 1000 + number,
                    "image_id": image,
                    "answer_type": ("other", "number", "yes/no")[number % 3],
                    "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
                }
            )
        questions = _write(self.folder / "v2_questions.json", {"questions": rows})
        annotations = _write(self.folder / "v2_annotations.json", {"annotations": known})
        return ["--dataset", "vqav2", "--questions", questions, "--annotations", annotations, "--images", str(images)]

    def gqa(self) -> list[str]:
        """Options of two questions a picture, with scene graphs."""
        images = self.folder / "gqa"
        rows: dict[str, Any] = {}
        graphs: dict[str, Any] = {}
        for number, pixels, question, answer in self._asked(seed=2, each=2):
            image = f"n{number // 2}"
            _save(pixels, images / f"{image}.jpg")
            height, width = pixels.shape[:2]
            thing = {"name": "fruit", "x": width // 4, "y": height // 4, "w": width // 2, "h": height // 2}
            graphs[image] = {"width": width, "height": height, "objects": {f"o{image}": thing}}
            rows[f"q{number}"] = {
                "imageId": image,
                "question": question,
                "answer": answer,
                "types": {"structural": ("query", "verify")[number % 2]},
                "annotations": {"question": {"4": f"o{image}"}, "answer": {}},
            }
        questions = _write(self.folder / "val_balanced_questions.json", rows)
        scenes = _write(self.folder / "val_sceneGraphs.json", graphs)
        return ["--dataset", "gqa", "--questions", questions, "--scene-graphs", scenes, "--images", str(images)]

    def pope(self) -> list[str]:
        """Options of two questions a picture, yes and no in turn."""
        images = self.folder / "pope"
        lines = []
        for number, pixels, question, _ in self._asked(seed=3, each=2):
            image = f"COCO_val2014_{number // 2 + 1:012d}.jpg"
            _save(pixels, images / image)
            label = ("yes", "no")[number % 2]
            lines.append(json.dumps({"question_id": number, "image": image, "text": question, "label": label}))
        questions = self.folder / "coco_pope_popular.json"
        questions.write_text("\n".join(lines))
        return ["--dataset", "pope", "--questions", str(questions), "--images", str(images)]

    def _asked(self, seed: int, each: int) -> list[tuple[int, np.ndarray, str, str]]:
        """(number, picture, question, reference) of `each` questions a picture; the model is right on half of them."""
        rng = np.random.default_rng(seed)
        made = []
        for picture in range(self.pictures):
            pixels = _drawn(rng)
            made += [(pixels, f"What tint has the {FRUITS[(picture + n) % len(FRUITS)]}?") for n in range(each)]
        said: list[str] = []
        for start in range(0, len(made), 16):
            # As they will be asked: compressed, and in the same batches, on which the rounding of 16 bits depends.
            chunk = made[start : start + 16]
            inputs = self._asker.inputs([_compressed(pixels) for pixels, _ in chunk], [text for _, text in chunk])
            said += [one.text for one in self._asker.answer(inputs)]
        own = rng.permutation(len(made)) % 2 == 0
        return [
            (number, pixels, question, (answer.strip() or "lilac") if ours else "maroon")
            for number, ((pixels, question), answer, ours) in enumerate(zip(made, said, own, strict=True))
        ]


def _drawn(rng: np.random.Generator) -> np.ndarray:
    size = SIZES[rng.integers(len(SIZES))]
    picture = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(size)
    left, top = rng.integers(0, 40, 2).tolist()
    tint = list(TINTS.values())[rng.integers(len(TINTS))]
    ImageDraw.Draw(picture).ellipse([left, top, left + 45, top + 40], fill=tint)
    return np.asarray(picture)


def _compressed(pixels: np.ndarray) -> Image.Image:
    from io import BytesIO

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return Image.open(buffer).convert("RGB")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, "JPEG")


def _write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)
