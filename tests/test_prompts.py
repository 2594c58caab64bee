"""The question that reviewers read, out of a prompt's tokens."""

from __future__ import annotations

import pytest

from fastrm_monitor.integrations.prompts import question_of
from tests.tiny import tiny_processor

IMAGE = 4


class Words:
    """A tokenizer whose tokens are the places of the text's letters; <...> are special."""

    def __init__(self, text):
        self._text = text

    def tokens(self):
        return [1000 + place for place in range(len(self._text))]

    def decode(self, tokens, skip_special_tokens=False):
        assert skip_special_tokens
        return "".join(self._text[token - 1000] for token in tokens)


def asked(text, pictures=0):
    words = Words(text)
    tokens = words.tokens()
    return question_of(words, tokens[:2] + [IMAGE] * pictures + tokens[2:], IMAGE)


@pytest.mark.parametrize(
    "text",
    [
        "USER: \nWhat colour is it? ASSISTANT:",  # LLaVA-1.5
        "USER: What colour is it?\nASSISTANT:",
        "user\n\nWhat colour is it?\nassistant\n",  # Qwen2-VL, without its special tokens
        "user : what colour is it? assistant :",  # a tokenizer of words
        "What colour is it?",
        "  What colour is it?  ",
    ],
)
def test_roles_are_no_part_of_the_question(text):
    """The words that a chat template puts around a question are not shown."""
    assert asked(text, pictures=3).lower() == "what colour is it?"


@pytest.mark.parametrize(
    "question",
    [
        "What is shown to the user",
        "Is she an assistant",
        "Is it a superuser",
        "Which user: left or right?",
        "Users are where?",
        "Assistants help whom?",
    ],
)
@pytest.mark.parametrize("template", ["USER: \n{} ASSISTANT:", "user\n{}\nassistant\n", "{}"])
def test_a_question_about_users_and_assistants(question, template):
    """A question that has the words of a role at an end keeps them."""
    assert asked(template.format(question)) == question


def test_image_tokens_are_left_out():
    """Neither the patches of a picture nor special tokens are in the question, with the embedded model's tokenizer."""
    processor = tiny_processor()
    tokens = processor(text=["USER: <image>\nWhat color is the circle? ASSISTANT:"], images=None)["input_ids"][0]
    place = tokens.index(processor.image_token_id)
    tokens[place:place] = [processor.image_token_id] * 63
    question = question_of(processor.tokenizer, tokens, processor.image_token_id)
    assert question == "what color is the circle?"


def test_prompts_without_words():
    """A prompt of pictures alone, or of nothing, has an empty question."""
    assert asked("", pictures=2) == ""
    assert asked("USER: \n ASSISTANT:", pictures=2) == ""
