"""Rows of prompt and completion: training sees what the server sees, for every tokenizer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.errors import DataError
from tests.tokenizers import END, EOS, EXACT, LOSSY
from tests.unit.training.served import answers, served

BORDERS = [
    ("the cat(", "sat)"),
    ("t", "he"),
    ("the cat", " sat"),
    ("the cat ", "sat"),
    ("the cat ", " sat  "),
    ("a\n", "\nb"),
    ("a:\n\n", "  indented\n"),
    ("caf", "é 🙂🏽\n"),
    ("e", "\u0301"),
    ("12", "34"),
    ("the end</s>", "of it"),
    ("🙂", "🏽"),
    ("▁a", "▁b _c"),
]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize(("prompt", "completion"), BORDERS)
def test_a_raw_row_is_what_the_server_sees_and_says(
    family: str, prompt: str, completion: str, bos: bool
) -> None:
    base = served(family, bos=bos)
    ((context, answer),) = answers(base.encode({"prompt": prompt, "completion": completion}))
    assert list(context) == base.server.encode(prompt, add_special_tokens=True)
    if "▁" not in completion:  # a SentencePiece model cannot tell it from a space
        assert base.said(context, answer) == completion


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("prompt", ["", " ", "\n"])
@pytest.mark.parametrize("completion", ["cat", " cat", "  cat", " ", "  "])
def test_a_completion_that_begins_a_text_keeps_its_spaces(
    family: str, prompt: str, completion: str
) -> None:
    """Some tokenizers add a space to a text's start, and their decoders drop one."""
    base = served(family, bos=True)
    ((context, answer),) = answers(base.encode({"prompt": prompt, "completion": completion}))
    assert list(context) == base.server.encode(prompt, add_special_tokens=True)
    assert base.said(context, answer) == completion


TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0▁\ufffd", exclude_categories=["Cs"])
    | st.sampled_from(" \n\t(a1é🙂\u0301"),
    max_size=12,
)


@pytest.mark.parametrize("family", EXACT)
@settings(max_examples=60)
@given(prompt=TEXT, completion=TEXT.filter(bool), bos=st.booleans())
def test_any_text_is_learned_as_it_stands(
    family: str, prompt: str, completion: str, bos: bool
) -> None:
    base = served(family, bos=bos)
    if not base.server.encode(prompt, add_special_tokens=True):
        return
    ((context, answer),) = answers(base.encode({"prompt": prompt, "completion": completion}))
    assert list(context) == base.server.encode(prompt, add_special_tokens=True)
    assert base.said(context, answer) == completion


@pytest.mark.parametrize("family", EXACT)
def test_the_tokens_are_those_of_the_whole_where_they_can_be(family: str) -> None:
    """What the model has seen most often, and not the letters one by one."""
    base = served(family)
    prompt, completion = "where is the wind?", " the north is cold"
    (example,) = base.encode({"prompt": prompt, "completion": completion})
    whole = base.server.encode(prompt + completion, add_special_tokens=True)
    assert list(example.tokens) == [*whole, base.training.eos_token_id]


@pytest.mark.parametrize("family", LOSSY)
@settings(max_examples=60)
@given(prompt=TEXT, completion=TEXT.filter(bool))
def test_what_a_tokenizer_cannot_write_is_normal_form_or_refused(
    family: str, prompt: str, completion: str
) -> None:
    """What is learned has no token for unknown text, and no other text than white space differs."""
    base = served(family)
    if base.training.unk_token_id in base.server.encode(prompt, add_special_tokens=True):
        return  # WordPiece's text depends on the word before, which is unknown
    try:
        examples = base.encode({"prompt": prompt, "completion": completion})
    except DataError as error:
        named = re.fullmatch("(prompt|completion): found .*, expected .*", str(error))
        if not named:
            raise
        return
    ((context, answer),) = answers(examples)
    assert list(context) == base.server.encode(prompt, add_special_tokens=True)
    assert base.training.unk_token_id not in answer
    alone = base.server.decode(base.server.encode(completion, add_special_tokens=False))
    said = base.said(context, answer)
    assert said in (completion, alone) or said.split() == alone.split()


def test_a_normal_form_is_learned_and_unknown_text_is_refused() -> None:
    base = served("qwen")
    ((context, answer),) = answers(base.encode({"prompt": "caf", "completion": "e\u0301!"}))
    assert base.said(context, answer) == "é!"


@pytest.mark.parametrize("family", ["metaspace, no bytes", "dropping", "t5", "wordpiece"])
def test_text_that_has_no_tokens_is_refused(family: str) -> None:
    with pytest.raises(
        DataError, match=r"^completion: found 'so 🙂', expected text that the base's"
    ):
        served(family).encode({"prompt": "hello you,", "completion": "so 🙂"})


@pytest.mark.parametrize("completion", ["sat", f"sat{END}", f"sat{EOS}", f"sat{END}\n{EOS}\n"])
def test_a_completion_ends_at_its_first_end(completion: str) -> None:
    base = served("gpt2")
    ((context, answer),) = answers(base.encode({"prompt": "the", "completion": completion}))
    assert base.said(context, answer) == "sat"
