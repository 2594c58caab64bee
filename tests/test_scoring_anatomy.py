"""Finding the parts of a model, and refusing what is no vision-language model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastrm_monitor.errors import ModelError
from fastrm_monitor.scoring.anatomy import anatomy_of
from tests.tiny import tiny_model


def test_final_norm() -> None:
    """What the found norm puts out are transformers' last hidden states."""
    model = tiny_model(width=96)
    anatomy = anatomy_of(model)
    kept = []
    anatomy.norm.register_forward_hook(lambda _module, _args, out: kept.append(out))
    with torch.no_grad():
        output = model(input_ids=torch.tensor([[1, 5, 6, 7]]), output_hidden_states=True)
    assert torch.equal(kept[0], output.hidden_states[-1])
    assert anatomy.hidden_size == kept[0].shape[-1] == 96


@pytest.mark.parametrize(
    ("path", "name"),
    [("org/llava", "org/llava"), ("/models/mine/", "mine"), ("./mine", "mine"), ("", "LlavaForConditionalGeneration")],
)
def test_name(path: str, name: str) -> None:
    """A hub id is kept whole, of a folder only its own name goes into records and telemetry."""
    model = tiny_model()
    model.config._name_or_path = path
    assert anatomy_of(model).name == name


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Linear(2, 2), "Linear has no config.image_token_id"),
        (
            SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: None, image_token_id=3)),
            "SimpleNamespace has no final norm at model.language_model.norm",
        ),
    ],
)
def test_no_vision_language_model(model: object, said: str) -> None:
    """Anything else is refused in one sentence that says what can be monitored."""
    with pytest.raises(ModelError, match=said + ": only vision-language models of transformers"):
        anatomy_of(model)
