"""Rows to tokens and targets, batches, their order, and every way a file can be wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from remix_runtime.errors import DataError
from tests.models import EOS_ID, tiny_tokenizer
from tests.unit.training.conftest import write_rows
from training.data import BatchOrder, collate, read_examples
from training.encoding import Example
from training.losses import IGNORED

Tokenizer = PreTrainedTokenizerFast


def targets(example: Example, tokenizer: Tokenizer) -> str:
    ids = [t for t, yes in zip(example.tokens, example.is_target, strict=True) if yes]
    return tokenizer.decode(ids)


def read(path: Path, tokenizer: Tokenizer, **settings: object) -> list[Example]:
    return read_examples(path, tokenizer, **{"max_length": 200, **settings})[0]


def test_a_completion_and_its_end_token_are_the_targets(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    row = {"prompt": "the north", "completion": " is cold", "source": "other keys may stand here"}
    (example,) = read(write_rows(tmp_path / "a.jsonl", [row]), tokenizer)
    assert tokenizer.decode(example.tokens) == "the north is cold<|im_end|>"
    assert targets(example, tokenizer) == " is cold<|im_end|>"
    assert tokenizer.decode(example.tokens[: example.prompt_length]) == "the north"


def test_the_prompt_is_tokenised_as_a_server_would_see_it(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    # "t" + "he" would merge to "the" if both were tokenised as one text.
    rows = [{"prompt": "t", "completion": "he"}]
    (example,) = read(write_rows(tmp_path / "a.jsonl", rows), tokenizer)
    assert list(example.tokens[: example.prompt_length]) == tokenizer.encode("t")


def test_chat_targets_are_the_assistant_turns_up_to_their_end_token(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "so long"},
        {"role": "user", "content": "never seen"},
    ]
    (example,) = read(write_rows(tmp_path / "a.jsonl", [{"messages": messages}]), tokenizer)
    assert targets(example, tokenizer) == "hello<|im_end|>so long<|im_end|>"
    whole = tokenizer.apply_chat_template(messages[:5], tokenize=False)
    assert tokenizer.decode(example.tokens) + "\n" == whole
    prompt = tokenizer.apply_chat_template(messages[:4], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(example.tokens[: example.prompt_length]) == prompt
    assert example.tokens[-1] == EOS_ID


def test_a_chat_is_learned_to_the_first_token_that_ends_it_when_served(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """A base whose own end token is another than the one that its template ends turns with."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello you"}]
    path = write_rows(tmp_path / "a.jsonl", [{"messages": messages}])
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|im_start|>"
    (example,) = read(path, other, end_ids=frozenset({turn_end}))
    assert targets(example, other) == "hello you<|im_end|>"


def test_an_end_token_that_a_completion_has_is_not_doubled(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    row = {"prompt": "the north", "completion": " is cold<|im_end|>"}
    (example,) = read(write_rows(tmp_path / "a.jsonl", [row]), tokenizer)
    assert targets(example, tokenizer) == " is cold<|im_end|>"


def test_a_number_of_endless_digits_is_named_by_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "n": ' + "9" * 5000 + "}\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: "):
        read(path, tokenizer)


def test_labels_are_the_next_tokens_and_padding_counts_nowhere() -> None:
    short = Example(tokens=(5, 6, 7), is_target=(False, False, True), prompt_length=2)
    long = Example(
        tokens=(1, 2, 3, 4, 8),
        is_target=(False, True, False, False, True),
        prompt_length=4,
    )
    batch = collate([short, long])
    assert batch.inputs_BT.tolist() == [[5, 6, 0, 0], [1, 2, 3, 4]]
    assert batch.labels_BT.tolist() == [[IGNORED, 7, IGNORED, IGNORED], [2, IGNORED, IGNORED, 8]]
    assert batch.mask_BT.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.repeat(2).inputs_BT.tolist() == [[5, 6, 0, 0]] * 2 + [[1, 2, 3, 4]] * 2


def test_every_epoch_is_a_new_permutation_in_batches_of_similar_length() -> None:
    lengths = torch.randint(1, 300, (256,)).tolist()
    order = BatchOrder(len(lengths), lengths.__getitem__, batch_size=4, seed=1)
    epochs = [[order[e * 64 + i] for i in range(64)] for e in range(2)]
    for batches in epochs:
        assert sorted(i for batch in batches for i in batch) == list(range(256))
        spread = sum(max(b) - min(b) for b in ([lengths[i] for i in b] for b in batches)) / 64
        assert spread < 30  # about 180 without buckets
    assert epochs[0] != epochs[1]
    # Not from short to long: the means of the first and second half are alike.
    means = [sum(lengths[i] for i in batch) / 4 for batch in epochs[0]]
    assert means != sorted(means)


def test_the_order_depends_on_seed_and_index_alone() -> None:
    lengths = list(range(10, 60))
    forward = BatchOrder(len(lengths), lengths.__getitem__, batch_size=8, seed=3)
    expected = [forward[i] for i in range(20)]
    fresh = BatchOrder(len(lengths), lengths.__getitem__, batch_size=8, seed=3)
    assert [fresh[i] for i in (17, 3, 11)] == [expected[i] for i in (17, 3, 11)]
    other = BatchOrder(len(lengths), lengths.__getitem__, batch_size=8, seed=4)
    assert [other[i] for i in range(20)] != expected


def test_fewer_rows_than_a_batch_make_a_smaller_batch() -> None:
    order = BatchOrder(2, [3, 4].__getitem__, batch_size=8, seed=0)
    assert sorted(order[5]) == [0, 1]


def test_a_row_too_long_is_refused_or_cut_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"prompt": "x", "completion": "y"}, {"prompt": "qqqq", "completion": "z" * 30}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a\.jsonl:2: found 35 tokens, expected at most .* 20"):
        read(path, tokenizer, max_length=20)
    examples, cut = read_examples(path, tokenizer, max_length=20, too_long="truncate")
    assert cut == 1
    assert [len(e.tokens) for e in examples] == [3, 20]
    with pytest.raises(DataError, match=r"a\.jsonl:2: found no completion within the first 4"):
        read_examples(path, tokenizer, max_length=4, too_long="truncate")


GOOD = '{"prompt": "a", "completion": "b"}'
USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "expected one JSON object, found"),
        ("[1]", "expected a JSON object, found a list"),
        ("null", "expected a JSON object, found null"),
        ('{"prompt": "a"}', "completion: found nothing, expected a string"),
        ('{"completion": "a"}', "prompt: found nothing, expected a string"),
        ('{"prompt": 3, "completion": "b"}', "prompt: found a number, expected a string"),
        ('{"prompt": "a", "completion": null}', "completion: found null, expected a string"),
        ('{"prompt": "", "completion": "b"}', "prompt: found no tokens"),
        ('{"prompt": "a", "completion": ""}', "completion: found no tokens"),
        (r'{"prompt": "\ud800", "completion": "b"}', "prompt: found a lone surrogate"),
        (json.dumps({"messages": [USER, BOT], "prompt": "a"}), "found both"),
        ('{"messages": []}', "messages: found a list, expected a list of turns"),
        ('{"messages": "hi"}', "messages: found a string, expected a list of turns"),
        ('{"messages": [7]}', r"messages\[0\]: found a number, expected an object"),
        (json.dumps({"messages": [USER]}), "messages: found no assistant turn"),
        (
            json.dumps({"messages": [USER, {"role": "robot", "content": "x"}]}),
            r"messages\[1\]\.role: found 'robot', expected system, user, assistant",
        ),
        (
            json.dumps({"messages": [{"role": "user"}, BOT]}),
            r"messages\[0\]\.content: found nothing, expected a string",
        ),
        (
            json.dumps({"messages": [USER, {"role": "assistant", "content": ""}]}),
            r"messages\[1\]\.content: found an empty string",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(
    tmp_path: Path, tokenizer: Tokenizer, line: str, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl:3: .*{message}") as caught:
        read(path, tokenizer)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read: No such file"):
        read(tmp_path / "none.jsonl", tokenizer)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.jsonl: found no rows"):
        read(empty, tokenizer)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"prompt": "\xe9", "completion": "b"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:1: found bytes that are not UTF-8"):
        read(latin, tokenizer)


def test_a_template_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"messages": [USER, BOT, USER, BOT]}])
    rewriting = tiny_tokenizer()
    rewriting.chat_template = (
        "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(DataError, match="rewrites earlier turns"):
        read(path, rewriting)
    refusing = tiny_tokenizer()
    refusing.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refuses them: roles must alternate"):
        read(path, refusing)
    without = tiny_tokenizer()
    without.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        read(path, without)
