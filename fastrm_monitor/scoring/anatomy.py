"""Where a transformers LVLM keeps what monitoring reads: its final norm, its width, its image token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastrm_monitor.errors import ModelError
from fastrm_monitor.scoring.checkpoint import ProxyFolder, check_model


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The parts of one model.

    Attributes:
        norm: the language model's final norm; its output are the final hidden states H (B, T, d).
        hidden_size: d.
        image_token_id: the token that stands for a patch.
        model_type: the family.
        name: the model's hub id or the last part of its path.
    """

    norm: nn.Module
    hidden_size: int
    image_token_id: int
    model_type: str
    name: str

    def check(self, folder: ProxyFolder) -> None:
        """Refuse a proxy of another model.

        Raises:
            ProxyError: the sentence says what differs.
        """
        check_model(folder, hidden_size=self.hidden_size, image_token_id=self.image_token_id, norm=self.norm)


def anatomy_of(model: Any) -> Anatomy:
    """Find the parts of a transformers LVLM.

    Raises:
        ModelError: the model is not laid out as LVLMs in transformers are.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    image_token = getattr(config, "image_token_id", None)
    core = getattr(model, "model", None)
    decoder = getattr(core, "language_model", None) or getattr(model, "language_model", None)
    decoder = getattr(decoder, "model", decoder)  # some families nest a whole causal model
    norm = getattr(decoder, "norm", None)
    if text is None or image_token is None or not isinstance(norm, nn.Module):
        missing = "final norm at model.language_model.norm" if image_token is not None else "config.image_token_id"
        raise ModelError(
            f"{type(model).__name__} has no {missing}: only vision-language models of transformers, "
            "such as LlavaForConditionalGeneration, can be monitored."
        )
    path = str(getattr(config, "_name_or_path", "") or type(model).__name__)
    name = path.rstrip("/").rsplit("/", 1)[-1] if path.startswith((".", "/", "~")) else path
    return Anatomy(norm, text.hidden_size, image_token, str(config.model_type), name)
