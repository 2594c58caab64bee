"""Train the embedded LVLM: a real LLaVA of under a million parameters that answers questions about scenes.

    python -m fastrm_monitor.lab.embed --output DIR

In stages, all seeded: the vision tower learns what lies in each patch; then question answering on prior-free scenes,
easy ones first; then natural scenes, whose language priors the model picks up as an LVLM in production does.
Several questions of a picture share one sequence; the attention mask and the positions make each turn exactly the
prompt that it would be alone, so nothing differs when the model is served.

The folder has the layout of a hub checkpoint; transformers and vLLM load it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fastrm_monitor.lab.datasets.scenes import (
    COLORS,
    FAMILIES,
    KINDS,
    SHAPES,
    SIZE,
    TEACHING_FAMILIES,
    Scene,
    make_scene,
    vocabulary,
)

PATCH = 8
GRID = SIZE // PATCH
PROMPT = "USER: <image>\n{question} ASSISTANT:"
"""The prompt of LLaVA-1.5, which the embedded model is trained on."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]


def build_processor() -> LlavaProcessor:
    """The processor of the embedded model: word-level tokens, 64 x 64 pixels, 64 image tokens a picture."""
    words = [*_SPECIAL, "user", "assistant", ":", *vocabulary()]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("colour", "color")])
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # words joined by blanks, none before "?"
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
    )
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_convert_rgb=True
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    processor: LlavaProcessor, width: int = 128, layers: int = 4, tower: int = 2
) -> LlavaForConditionalGeneration:
    """A freshly initialised LLaVA; every head count is even and every `head_dim` 32, so that vLLM can split it."""
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=tower,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=PATCH,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model


# --- batches -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Pictures with several questions each, packed: B pictures, L tokens, A answers, P patches."""

    pixels: torch.Tensor  # (B, 3, SIZE, SIZE)
    ids: torch.Tensor  # (B, L)
    positions: torch.Tensor  # (B, L)
    mask: torch.Tensor  # (B, 1, L, L) bool: may attend
    where: tuple[torch.Tensor, torch.Tensor]  # (A,) row and column of the states that predict an answer or its end
    targets: torch.Tensor  # (A,)
    family: list[str]  # of the answers alone, every second one of the A
    shape: torch.Tensor  # (B, P) 0 for nothing, 1.. for a shape
    color: torch.Tensor  # (B, P)


class _Packer:
    """Turns scenes into packed batches for one processor."""

    def __init__(self, processor: LlavaProcessor) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        head, self._tail = PROMPT.split("{question}")
        self._prefix = self._encode("<s>" + head.replace("<image>", "<image>" * GRID * GRID))
        mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self._cache: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _turn(self, question: str) -> list[int]:
        if question not in self._cache:
            self._cache[question] = self._encode(question + self._tail)
        return self._cache[question]

    def pixels(self, scenes: list[Scene]) -> torch.Tensor:
        """What the processor makes of the pictures, (B, 3, SIZE, SIZE); they have the right size already."""
        raw = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2).float() / 255
        return (raw - self._mean) / self._std

    def __call__(self, scenes: list[Scene]) -> _Batch:
        eos = self.tokenizer.eos_token_id
        start = len(self._prefix)
        rows = []
        for scene in scenes:
            ids, owner = list(self._prefix), [0] * start
            positions, answers = list(range(start)), []
            for turn, question in enumerate(scene.questions, start=1):
                answer = self._encode(question.answer)[0]
                tokens = [*self._turn(question.text), answer]
                column = len(ids) + len(tokens) - 2
                answers += [(column, answer), (column + 1, eos)]
                positions += range(start, start + len(tokens))
                owner += [turn] * len(tokens)
                ids += tokens
            rows.append((ids, owner, positions, answers))
        length = max(len(row[0]) for row in rows)
        all_ids = np.full((len(rows), length), self.tokenizer.pad_token_id)
        owners = np.full((len(rows), length), -1)
        places = np.zeros((len(rows), length), int)
        where, targets = [], []
        for number, (row_ids, row_owner, row_positions, answers) in enumerate(rows):
            all_ids[number, : len(row_ids)] = row_ids
            owners[number, : len(row_ids)] = row_owner
            places[number, : len(row_ids)] = row_positions
            where += [(number, column) for column, _ in answers]
            targets += [target for _, target in answers]
        turns = torch.from_numpy(owners)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        same = (turns[:, :, None] == turns[:, None, :]) | (turns[:, None, :] == 0)
        found = torch.tensor(where)
        shape, color = _patch_labels(scenes)
        return _Batch(
            self.pixels(scenes),
            torch.from_numpy(all_ids),
            torch.from_numpy(places),
            (same & causal)[:, None],
            (found[:, 0], found[:, 1]),
            torch.tensor(targets),
            [question.family for scene in scenes for question in scene.questions],
            shape,
            color,
        )


def _patch_labels(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """The shape and the colour that fill most of each patch's drawn pixels, 0 below a fifth of the patch; (B, P)."""
    shapes, colors = list(SHAPES), list(COLORS)
    labels = np.zeros((2, len(scenes), GRID * GRID), np.int64)
    for row, scene in enumerate(scenes):
        tiles = scene.owner.reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(GRID * GRID, -1)
        area = np.stack([(tiles == number).sum(1) for number in range(len(scene.objects))])  # (objects, P)
        best = area.argmax(0)
        seen = area.max(0) >= PATCH * PATCH / 5
        names = [(shapes.index(thing.shape) + 1, colors.index(thing.color) + 1) for thing in scene.objects]
        labels[:, row] = np.where(seen, np.array(names)[best].T, 0)
    return torch.from_numpy(labels[0]), torch.from_numpy(labels[1])


class _PatchHeads(nn.Module):
    """What lies in a patch, read from the projector's output; teaches the tower and is thrown away."""

    grid: torch.Tensor  # (P, 2) places of the patches, in -1..1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = nn.Linear(width, len(SHAPES) + 1)
        self.color = nn.Linear(width, len(COLORS) + 1)
        steps = torch.linspace(-1, 1, GRID)
        self.register_buffer("grid", torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(-1, 2))

    def loss(self, features: torch.Tensor, batch: _Batch) -> torch.Tensor:
        entropy = nn.functional.cross_entropy
        # The first two channels must hold the patch's place at the scale of all others. A learnt readout is content
        # with a trace of it, and then columns stay invisible to the language model (rows it has from the token order).
        place = (nn.functional.rms_norm(features, features.shape[-1:])[..., :2] - self.grid).pow(2).mean()
        return (
            entropy(self.shape(features).flatten(0, 1), batch.shape.flatten())
            + entropy(self.color(features).flatten(0, 1), batch.color.flatten())
            + place
        )


# --- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A stretch of training: `kinds` gives the share of each kind of scene, `families` the questions asked."""

    name: str
    steps: int
    rate: float
    kinds: dict[str, float]
    answers: bool = True
    patch_weight: float = 0.3
    families: tuple[str, ...] = FAMILIES


STAGES = (
    Stage("patches", 500, 2e-3, {"easy": 0.5, "prior_free": 0.5}, answers=False, patch_weight=1.0),
    Stage("questions", 2400, 2e-3, {"easy": 0.7, "prior_free": 0.3}, families=(*TEACHING_FAMILIES, "relation")),
    Stage("harder", 600, 1e-3, {"easy": 0.2, "prior_free": 0.8}),
    Stage("habits", 700, 1e-3, {"habitual": 1.0}, patch_weight=0.1),
    Stage("settling", 400, 7e-4, {"natural": 1.0}, patch_weight=0.0),
)


class Trainer:
    """Trains one model through the stages.

    Args:
        model: freshly initialised.
        processor: its processor.
        seed: of the scenes; picture `drawn` of the endless sequence comes next.
        pictures: pictures a step.
        questions: questions a picture.
        log: gets a line every 100 steps.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        *,
        seed: int,
        pictures: int,
        questions: int,
        log: Callable[[str], None],
    ) -> None:
        self.model, self.pack, self.log = model, _Packer(processor), log
        self.heads = _PatchHeads(model.config.get_text_config().hidden_size)
        self.seed, self.pictures, self.questions = seed, pictures, questions
        self.drawn = 0

    def _draw(self, stage: Stage, rng: np.random.Generator) -> _Batch:
        names = rng.choice(list(stage.kinds), self.pictures, p=list(stage.kinds.values()))
        made = []
        for name in names:
            kind = replace(KINDS[str(name)], families=stage.families)
            scene = make_scene(kind, self.seed, self.drawn, self.questions)
            self.drawn += 1
            if scene.questions:
                made.append(scene)
        return self.pack(made)

    def _losses(self, batch: _Batch, answers: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patch loss, answer loss, and whether each answer is right (A / 2,)."""
        core = self.model.model
        found = core.get_image_features(batch.pixels, vision_feature_layer=-1, vision_feature_select_strategy="default")
        features = torch.stack(list(found.pooler_output))  # (B, P, d)
        patch = self.heads.loss(features, batch)
        if not answers:
            return patch, torch.zeros(()), torch.zeros(0)
        embeds = core.get_input_embeddings()(batch.ids)
        embeds = embeds.masked_scatter((batch.ids == self.model.config.image_token_id)[..., None], features)
        states = core.language_model(
            inputs_embeds=embeds, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(states[batch.where])  # (A, V)
        loss = nn.functional.cross_entropy(logits, batch.targets)
        return patch, loss, (logits.argmax(-1) == batch.targets)[::2]

    def run(self, stage: Stage) -> None:
        """Train through one stage, with a learning rate that rises and falls once."""
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, stage.rate, total_steps=stage.steps + 1, pct_start=0.05, final_div_factor=20, div_factor=20
        )
        rng = np.random.default_rng([self.seed, self.drawn])
        right: dict[str, list[bool]] = {}
        began = time.perf_counter()
        self.model.train()
        for step in range(1, stage.steps + 1):
            batch = self._draw(stage, rng)
            patch, answer, hits = self._losses(batch, stage.answers)
            loss = stage.patch_weight * patch + answer
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if stage.answers:
                for family, hit in zip(batch.family, hits.tolist(), strict=True):
                    right.setdefault(family, []).append(hit)
            if step % 100 == 0 or step == stage.steps:
                table = " ".join(f"{name} {np.mean(right[name]):.2f}" for name in sorted(right))
                pace = (time.perf_counter() - began) / step
                losses = f"patch {patch.item():.3f} answer {answer.item():.3f}"
                self.log(f"{stage.name} {step}/{stage.steps} {losses} {pace:.2f} s/step {table}")
                right = {}


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write model and processor in the layout of a hub checkpoint, which transformers and vLLM both load."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    # transformers 5 drops a level of the CLIP tower's names when it saves; hub checkpoints and vLLM have it.
    old, new = "vision_tower.", "vision_tower.vision_model."
    named = {key if new in key else key.replace(old, new): value for key, value in weights.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def main(
    output: Annotated[Path, typer.Option(help="Folder to write the model into.")],
    seed: Annotated[int, typer.Option(help="Of weights and scenes.")] = 1,
    pictures: Annotated[int, typer.Option(help="Pictures a step.")] = 48,
    questions: Annotated[int, typer.Option(help="Questions a picture.")] = 8,
    scale: Annotated[float, typer.Option(help="Share of each stage's steps; small values for a dry run.")] = 1.0,
) -> None:
    """Train the embedded LVLM; half an hour on two CPU cores."""
    torch.manual_seed(seed)
    processor = build_processor()
    model = build_model(processor)
    typer.echo(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    trainer = Trainer(model, processor, seed=seed, pictures=pictures, questions=questions, log=typer.echo)
    for stage in STAGES:
        trainer.run(replace(stage, steps=max(1, round(stage.steps * scale))))
    save(model.eval(), processor, output)


if __name__ == "__main__":
    typer.run(main)
