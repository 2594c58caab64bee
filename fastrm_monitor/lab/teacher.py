"""The teacher: gradient relevance of the image patches for the token that the model predicts.

A_l (heads, T, T) are the attention probabilities of layer l, g_l the gradient of the predicted token's raw logit with
respect to them: Abar_l = mean over heads of max(g_l * A_l, 0) (Chefer et al. 2021, as in LVLM-Interpret).

- `rollout`, as published: R <- I; R <- R + Abar_l R for l = 1..L; row t of R - I.
- `row`, the same row far cheaper: r <- e_t; r <- r + r Abar_l for l = L..1.

Works for any `LlavaForConditionalGeneration`; batched; weights stay frozen. Knows nothing of proxies or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastrm_monitor.errors import ModelError
from fastrm_monitor.scoring.anatomy import anatomy_of

Method = Literal["row", "rollout"]


@dataclass(frozen=True, eq=False)
class Explained:
    """What the teacher says of a batch of prompts.

    Attributes:
        relevance: float32 (B, T), min-max normalised over each prompt's image positions, 0 elsewhere.
        image: bool (B, T), the image positions.
        valid: bool (B, T), all positions but padding.
        states: (B, T, d) final hidden states after the final norm.
        predicted: int (B,), the token whose logit was explained.
        image_attention: float32 (B,), share of attention that position t pays to the image, mean over layers and heads.
    """

    relevance: Tensor
    image: Tensor
    valid: Tensor
    states: Tensor
    predicted: Tensor
    image_attention: Tensor


class Teacher:
    """Explains the first answer token of a LLaVA.

    Args:
        model: switched to eager attention, evaluation mode and frozen weights.

    Raises:
        ModelError: the model's attention probabilities cannot be had.
    """

    def __init__(self, model: Any) -> None:
        anatomy = anatomy_of(model)
        self._norm, self._image_token = anatomy.norm, anatomy.image_token_id
        self._model = model.eval().requires_grad_(False)
        try:
            model.set_attn_implementation("eager")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"The teacher needs eager attention, which this model refuses: {error}.") from None

    def explain(self, inputs: Mapping[str, Tensor], method: Method = "row") -> Explained:
        """Relevance of the image patches for the predicted first token.

        Args:
            inputs: the processor's output, left-padded: `input_ids`, `attention_mask`, `pixel_values`, ...
            method: "row" or "rollout"; the same result.

        Raises:
            ModelError: the gradient did not reach every layer's attention, or the batch is not left-padded.
        """
        ids = inputs["input_ids"]
        valid = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(ids).bool()
        if not valid[:, -1].all():
            raise ModelError("The teacher needs left padding: set processor.tokenizer.padding_side = 'left'.")
        kept: list[Tensor] = []
        hooks = [
            self._norm.register_forward_hook(lambda _m, _a, out: kept.append(out.detach())),
            self._model.get_input_embeddings().register_forward_hook(_track),
        ]
        try:
            with torch.enable_grad():
                output = self._model(**inputs, output_attentions=True, use_cache=False, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        logits = output.logits[:, -1]  # (B, V)
        predicted = logits.argmax(-1)
        attentions = list(output.attentions or ())
        gradients = _gradients(logits.gather(1, predicted[:, None]).sum(), attentions)
        with torch.inference_mode():
            # Abar_l, float32 (B, T, T) each; the products of half-precision models are too small for their own type.
            layers = [(g.float() * a.float()).clamp(min=0).mean(1) for g, a in zip(gradients, attentions, strict=True)]
            row = _by_row(layers) if method == "row" else _by_rollout(layers)
            image = ids == self._image_token
            relevance = _min_max(row, image)
            looked = torch.stack([(one[:, :, -1].float() * image[:, None]).sum(-1).mean(1) for one in attentions])
        return Explained(relevance, image, valid, kept[0], predicted, looked.mean(0))


def _track(_module: nn.Module, _args: Any, embeddings: Tensor) -> Tensor:
    return embeddings.detach().requires_grad_(True)


def _gradients(target: Tensor, attentions: list[Tensor]) -> list[Tensor]:
    # Prompts of a batch do not touch each other, so the gradient of the summed logits holds each one's own.
    missing = [layer for layer, one in enumerate(attentions) if one is None or not one.requires_grad]
    found: tuple[Tensor | None, ...] = ()
    if attentions and not missing:
        found = torch.autograd.grad(target, attentions, allow_unused=True)
        missing = [layer for layer, one in enumerate(found) if one is None]
    if missing or not attentions:
        raise ModelError(
            f"The teacher got no gradient of the attention probabilities of {_layers(missing, len(attentions))}: "
            "load the model with attn_implementation='eager' and without gradient checkpointing."
        )
    return [one for one in found if one is not None]


def _layers(missing: list[int], count: int) -> str:
    if len(missing) == count:
        return "any layer"
    return f"layer{'s' if len(missing) > 1 else ''} {', '.join(str(layer) for layer in missing)}"


def _by_row(layers: list[Tensor]) -> Tensor:
    """Row t of the rollout, (B, T)."""
    batch, length, _ = layers[0].shape
    row = layers[0].new_zeros(batch, length)
    row[:, -1] = 1
    for layer in reversed(layers):
        row = row + (row[:, None] @ layer)[:, 0]
    return row


def _by_rollout(layers: list[Tensor]) -> Tensor:
    """Row t of R - I after the whole rollout, each row divided by its sum, (B, T)."""
    identity = torch.eye(layers[0].shape[-1], dtype=layers[0].dtype, device=layers[0].device)
    rollout = identity.expand_as(layers[0])
    for layer in layers:
        rollout = rollout + layer @ rollout
    rollout = rollout - identity
    sums = rollout.sum(-1, keepdim=True)
    return (rollout / sums.where(sums != 0, 1))[:, -1]


def _min_max(row: Tensor, image: Tensor) -> Tensor:
    """Each row to 0..1 over its image positions; all 0 where they are equal."""
    low = row.masked_fill(~image, torch.inf).amin(1, keepdim=True)
    high = row.masked_fill(~image, -torch.inf).amax(1, keepdim=True)
    scaled = (row - low) / (high - low).clamp(min=torch.finfo(row.dtype).tiny)
    return scaled.masked_fill(~image | ((high - low) <= 0), 0.0)
