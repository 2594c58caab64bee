"""Asking an LVLM: loading it, writing prompts, batching, and reading how sure it was of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastrm_monitor.errors import MissingExtraError, ModelError
from fastrm_monitor.scoring.scorer import answer_features

if TYPE_CHECKING:
    from PIL.Image import Image

EMBEDDED = "embedded"
"""Name that stands for the small model inside the package."""
EMBEDDED_FOLDER = Path(__file__).parent.parent / "demo" / "model"
_PLAIN_PROMPT = "USER: {images}{question} ASSISTANT:"


def load_lvlm(name: str, device: str | None = None) -> tuple[Any, Any]:
    """Model and processor from a folder, a hub id, or "embedded".

    Raises:
        ModelError: it cannot be loaded.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils import logging
    except ModuleNotFoundError:
        raise MissingExtraError("Loading a model", "hf") from None
    source = str(EMBEDDED_FOLDER) if name == EMBEDDED else name
    if source.startswith(("/", ".", "~")):
        source = str(Path(source).expanduser())
        if not Path(source).is_dir():
            raise ModelError(f"There is no model folder at {name}: pass a folder, a hub id or 'embedded'.")
    logging.disable_progress_bar()
    try:
        model = AutoModelForImageTextToText.from_pretrained(source, dtype="auto")
        processor = AutoProcessor.from_pretrained(source)
        processor.tokenizer.padding_side = "left"
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"No vision-language model could be loaded from '{name}' (folder, hub id or 'embedded'): {reason}"
        ) from None
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor


@dataclass(frozen=True)
class Said:
    """An answer with how sure the model was: `numbers` has `token_probability` and `token_entropy`."""

    text: str
    numbers: dict[str, float]


class Asker:
    """Asks one model questions about pictures, greedily.

    Args:
        model: the LVLM.
        processor: its processor.
        instruction: put behind every question, e.g. "Answer with a single word or phrase."
        max_new_tokens: longest answer.
    """

    def __init__(self, model: Any, processor: Any, instruction: str = "", max_new_tokens: int = 16) -> None:
        self.model, self.processor = model, processor
        self._instruction, self.max_new_tokens = instruction.strip(), max_new_tokens

    def ask(self, pictures: Sequence[Image], question: str) -> str:
        """The answer to one question about one or several pictures."""
        inputs = self.processor(
            images=list(pictures), text=self.prompt(question, len(pictures)), return_tensors="pt"
        ).to(self.model.device)
        return self.answer(inputs)[0].text

    def prompt(self, question: str, pictures: int = 1) -> str:
        """The prompt of one question: the model's chat template, or LLaVA-1.5's form."""
        # A placeholder in the question would be taken for one more picture.
        question = question.replace(str(getattr(self.processor, "image_token", None) or "<image>"), "")
        text = f"{question}\n{self._instruction}" if self._instruction else question
        if not getattr(self.processor, "chat_template", None):
            return _PLAIN_PROMPT.format(images="<image>\n" * pictures, question=text)
        content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]
        filled: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return filled

    def inputs(self, pictures: Sequence[Image], questions: Sequence[str]) -> Any:
        """The processor's output for a batch, left-padded, on the model's device."""
        made = self.processor(
            images=list(pictures),
            text=[self.prompt(question) for question in questions],
            padding=True,
            return_tensors="pt",
        )
        return made.to(self.model.device)

    @torch.inference_mode()
    def answer(self, inputs: Any) -> list[Said]:
        """Generate the batch's answers."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :]  # (B, S)
        logs = torch.log_softmax(torch.stack(output.logits, 1).float(), -1)  # (B, S, V)
        chosen = logs.gather(-1, tokens[..., None])[..., 0].cpu()
        entropy = -(logs.exp() * logs.clamp_min(-1e4)).sum(-1).cpu()
        end = self.model.generation_config.eos_token_id  # one, several or none
        ends = torch.tensor([] if end is None else end).reshape(-1)
        said = []
        for row, own in enumerate(tokens.cpu()):
            stops = torch.isin(own, ends).nonzero()
            length = int(stops[0]) if len(stops) else len(own)
            numbers = answer_features(chosen[row, : max(length, 1)].tolist(), entropy[row, : max(length, 1)].tolist())
            said.append(Said(self.processor.tokenizer.decode(own[:length], skip_special_tokens=True).strip(), numbers))
        return said
