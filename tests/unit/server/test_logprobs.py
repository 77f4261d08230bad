"""Log-probabilities rebuild the text, of answers and of prompts, whatever the tokens are."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from remix_runtime.engines.fake_model import EOS_ID, HashModel
from tests.unit.server.harness import Server, sse_events
from tests.unit.server.test_bad_input import check_error

Script = Callable[[Sequence[int]], None]
EMOJI = "Emoji 🌍:"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Makes every answer consist of these tokens."""

    def set_tokens(token_ids: Sequence[int]) -> None:
        def choose(self: Any, *_: Any) -> int:
            self.at = getattr(self, "at", -1) + 1
            return token_ids[self.at]

        monkeypatch.setattr(HashModel, "_choose", choose)

    return set_tokens


def token_bytes(token: str) -> bytes:
    """Reads a token's text as clients read it."""
    if token.startswith("bytes:"):
        parsed: bytes = ast.literal_eval(f"b'{token.removeprefix('bytes:')}'")
        return parsed
    return token.encode()


def check_places(logprobs: dict[str, Any], text: str) -> None:
    """The tokens rebuild the text, and each stands at its place in it."""
    assert b"".join(map(token_bytes, logprobs["tokens"])) == text.encode()
    offsets = logprobs["text_offset"]
    assert offsets[0] == 0
    assert all(0 <= offset < len(text) for offset in offsets)
    for token, (here, there) in zip(
        logprobs["tokens"], pairwise([*offsets, len(text)]), strict=True
    ):
        if not token.startswith("bytes:"):
            assert text[here:there] == token
        else:
            assert there - here in (0, 1)


async def whole_and_streamed(call: Any, **body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A choice of completions both ways, its parts joined."""
    whole = (await call(**body)).json()["choices"][0]
    streamed: dict[str, Any] = {"text": ""}
    for event in sse_events((await call(**body, stream=True)).text):
        choice = event["choices"][0]
        streamed["text"] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            streamed.setdefault("logprobs", {}).setdefault(name, []).extend(values)
    return whole, streamed


@pytest.mark.parametrize("top", [0, 2, 5])
async def test_completion_in_parts_of_characters(server: Server, script: Script, top: int) -> None:
    tokens = f"a{EMOJI}é".encode()
    script(tokens)
    body = {"logprobs": top, "max_tokens": len(tokens)}
    whole, streamed = await whole_and_streamed(server.complete, **body)
    assert whole["text"] == streamed["text"] == f"a{EMOJI}é"
    assert whole["logprobs"] == streamed["logprobs"]
    check_places(whole["logprobs"], whole["text"])
    for token, entries in zip(
        whole["logprobs"]["tokens"], whole["logprobs"]["top_logprobs"], strict=True
    ):
        assert token in entries
        assert len(entries) - (top or 1) in (0, 1)


async def test_every_entry_has_its_own_tokens_number(server: Server, script: Script) -> None:
    """Parts of characters among the likeliest tokens do not collapse into one entry."""
    body = {"prompt": EMOJI, "echo": True, "max_tokens": 3, "temperature": 0, "logprobs": 20}
    bias = {str(byte): 50 for byte in range(0x80, 0x90)}
    named = (await server.complete(**body, logit_bias=bias)).json()["choices"][0]["logprobs"]
    by_id = await server.complete(**body, logit_bias=bias, return_tokens_as_token_ids=True)
    numbered = by_id.json()["choices"][0]["logprobs"]
    assert numbered["tokens"][:2] == [f"token_id:{ord('E')}", f"token_id:{ord('m')}"]
    for ours, theirs in zip(named["top_logprobs"][1:], numbered["top_logprobs"][1:], strict=True):
        assert len(ours) == len(theirs) >= 20
        ids = [int(name.removeprefix("token_id:")) for name in theirs]
        texts = ["<eos>" if i == EOS_ID else bytes([i]) for i in ids]
        read = [t if t == "<eos>" else token_bytes(t) for t in ours]
        assert read == texts
        assert list(ours.values()) == list(theirs.values())


@pytest.mark.parametrize("cut", [0, 1, 2])
async def test_chat_in_parts_of_characters(server: Server, script: Script, cut: int) -> None:
    tokens = f"{EMOJI}🌍".encode()
    script(tokens)
    body = {"logprobs": True, "top_logprobs": 3, "max_tokens": len(tokens) - cut}
    answer = (await server.chat(**body)).json()
    choice = ChatCompletion.model_validate(answer, strict=True).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    joined = b"".join(bytes(entry.bytes or b"") for entry in choice.logprobs.content)
    assert joined == tokens[: len(tokens) - cut]
    assert choice.message.content == joined.decode(errors="replace")
    for entry in choice.logprobs.content:
        assert all(token_bytes(e.token) == bytes(e.bytes or b"") for e in entry.top_logprobs[:1])
        assert token_bytes(entry.token) == bytes(entry.bytes or b"")
    events = sse_events((await server.chat(**body, stream=True)).text)
    parts = [e["choices"][0]["logprobs"] for e in events]
    streamed = [entry for part in parts if part for entry in part["content"]]
    assert streamed == answer["choices"][0]["logprobs"]["content"]


async def test_the_end_of_text_is_a_token_of_completions_alone(
    server: Server, script: Script
) -> None:
    script([*b"hi", EOS_ID])
    choice = (await server.complete(logprobs=1)).json()["choices"][0]
    assert choice["text"] == "hi"
    assert choice["logprobs"]["tokens"] == ["h", "i", "<eos>"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    chat = (await server.chat(logprobs=True)).json()["choices"][0]
    assert [entry["token"] for entry in chat["logprobs"]["content"]] == ["h", "i"]
    script([EOS_ID])
    empty = (await server.chat(logprobs=True)).json()["choices"][0]
    assert (empty["message"]["content"], empty["logprobs"]["content"]) == ("", [])


async def test_special_tokens_inside_take_no_room(server: Server, script: Script) -> None:
    script([*b"a", EOS_ID, *b"b"])
    body = {"logprobs": 0, "max_tokens": 3, "ignore_eos": True}
    whole, streamed = await whole_and_streamed(server.complete, **body)
    assert whole["text"] == "ab"
    assert whole["logprobs"]["text_offset"] == [0, 1, 1]
    assert whole["logprobs"] == streamed["logprobs"]
    chat = (await server.chat(**{**body, "logprobs": True})).json()["choices"][0]
    assert [entry["token"] for entry in chat["logprobs"]["content"]] == ["a", "b"]


@pytest.mark.parametrize("stop", ["cd", "bcd", "c", "cdé", "abc"])
async def test_a_stop_string_leaves_no_place_beyond_the_text(
    server: Server, script: Script, stop: str
) -> None:
    script("xabcdéfg".encode())
    body = {"logprobs": 1, "max_tokens": 9, "stop": stop}
    whole, streamed = await whole_and_streamed(server.complete, **body)
    text, logprobs = whole["text"], whole["logprobs"]
    assert text == "xabcdéfg".split(stop)[0]
    assert logprobs == streamed["logprobs"]
    size = len(text)
    assert logprobs["text_offset"] == [min(i, size) for i in range(len(logprobs["tokens"]))]
    assert "".join(logprobs["tokens"][:size]) == text
    chat = (await server.chat(**{**body, "logprobs": True})).json()["choices"][0]
    assert "".join(entry["token"] for entry in chat["logprobs"]["content"]) == text


async def test_held_back_tokens_come_with_their_text(server: Server, script: Script) -> None:
    """What might be a stop string is held back, tokens and all, and comes when it is none."""
    script(b"abcabd")
    response = await server.complete(logprobs=0, max_tokens=6, stop="abd!", stream=True)
    text = ""
    for event in sse_events(response.text):
        choice = event["choices"][0]
        text += choice["text"]
        for offset in (choice["logprobs"] or {"text_offset": []})["text_offset"]:
            assert offset < len(text)
    assert text == "abcabd"


@pytest.mark.parametrize("prompt", [EMOJI, list(EMOJI.encode())])
@pytest.mark.parametrize("max_tokens", [0, 1, 4])
@pytest.mark.parametrize("top", [0, 1, 3])
async def test_echo(server: Server, prompt: Any, max_tokens: int, top: int) -> None:
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "echo": True}
    body |= {"logprobs": top, "ignore_eos": True}
    whole, streamed = await whole_and_streamed(server.complete, **body)
    size = len(EMOJI.encode())
    logprobs = whole["logprobs"]
    assert whole["text"] == streamed["text"]
    assert logprobs == streamed["logprobs"]
    assert whole["finish_reason"] == "length"
    check_places(logprobs, whole["text"])
    assert len(logprobs["tokens"]) == size + max_tokens
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    for token, logprob, entries in list(
        zip(*(logprobs[n] for n in ("tokens", "token_logprobs", "top_logprobs")), strict=True)
    )[1:]:
        assert entries[token] == logprob < 0
        assert max(top, 1) <= len(entries) <= top + 1
    usage = (await server.complete(**body)).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (size, max_tokens)


async def test_harness_of_evaluations(server: Server) -> None:
    """As lm-eval asks: several prompts of ids, one token more; it sums a slice of the numbers."""
    prompts = [list(b"The cat sat"), list(b"A dog")]
    body = {"echo": True, "logprobs": 1, "temperature": 0, "seed": 1234, "prompt": prompts}
    for extra in (0, 1):
        choices = (await server.complete(**body, max_tokens=extra)).json()["choices"]
        for prompt, choice in zip(prompts, choices, strict=True):
            given = choice["logprobs"]["token_logprobs"][1 : len(prompt)]
            assert len(choice["logprobs"]["token_logprobs"]) == len(prompt) + extra
            forced = []
            for at in range(1, len(prompt)):
                bias = {str(prompt[at]): 100}
                one = await server.complete(
                    prompt=prompt[:at], logit_bias=bias, max_tokens=1, logprobs=0, temperature=0
                )
                forced += one.json()["choices"][0]["logprobs"]["token_logprobs"]
            assert given == forced
            tops = choice["logprobs"]["top_logprobs"][1 : len(prompt)]
            assert all(value <= max(top.values()) for value, top in zip(given, tops, strict=True))


@pytest.mark.parametrize("top", [0, 2])
async def test_prompt_logprobs(server: Server, top: int) -> None:
    body = {"prompt_logprobs": top, "max_tokens": 1}
    echoed = {"echo": True, "logprobs": top, "max_tokens": 0, "return_tokens_as_token_ids": True}
    expected = (await server.complete(**echoed)).json()["choices"][0]["logprobs"]["top_logprobs"]
    answers = [
        (await server.complete(**body)).json()["choices"][0],
        (await server.complete(**{**body, "max_tokens": 0})).json()["choices"][0],
        (await server.complete(**body, echo=True, logprobs=5)).json()["choices"][0],
    ]
    for answer in answers:
        first, *others = answer["prompt_logprobs"]
        assert first is expected[0] is None
        for byte, entries, numbers in zip(b"ello", others, expected[1:], strict=True):
            assert next(iter(entries)) == str(byte)
            assert entries[str(byte)]["decoded_token"] == chr(byte)
            assert {f"token_id:{i}": e["logprob"] for i, e in entries.items()} == numbers
            ranked = [e["rank"] for i, e in entries.items() if i != str(byte)]
            assert ranked == sorted(ranked)
    chat = (await server.chat(**body)).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    # Null where it is not asked for: vLLM's clients read it always.
    assert (await server.chat(max_tokens=1)).json()["prompt_logprobs"] is None
    choice = (await server.complete(echo=True, logprobs=1)).json()["choices"][0]
    assert choice["prompt_logprobs"] is None
    for response in (
        await server.chat(**body, stream=True),
        await server.complete(**body, stream=True),
    ):
        assert check_error(response, 400)["param"] == "prompt_logprobs"


async def test_nothing_but_the_prompt_needs_a_reason(server: Server) -> None:
    error = check_error(await server.complete(max_tokens=0), 400)
    assert error["param"] == "max_tokens"
    assert (await server.complete(max_tokens=0, echo=True)).json()["choices"][0]["text"] == "Hello"
    answer = (await server.complete(max_tokens=0, prompt_logprobs=1)).json()
    Completion.model_validate(answer, strict=True)
    assert answer["choices"][0]["text"] == ""
