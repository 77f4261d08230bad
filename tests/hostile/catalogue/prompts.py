"""What becomes tokens: prompts, chats, and the tokenizer's worst cases."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.acts import (
    CHAT,
    COMPLETIONS,
    COUNT,
    DETOKENIZE,
    LEFT,
    MESSAGES,
    MINE,
    RESPONSES,
    TOKENIZE,
    Entry,
    as_json,
    chat,
    completion,
    leave,
    post,
)

TOO_LONG = "400 context_length_exceeded"
MIB4 = (4 << 20) - 1000
WORDS = "the quick brown fox jumps over a lazy dog and then "
LONG = WORDS * 170
"""About 1,900 tokens, of the 2,048 that fit."""
USER = {"role": "user", "content": "x"}
WORST = {
    "one letter": "a",
    "spaces": " ",
    "line breaks": "\n",
    "digits": "7",
    "emoji that are joined": "\U0001f469\u200d",
    "accents on nothing": "\u0301",
    "letters of four bytes": "\U0001f9ff",
    "a letter that decomposes": "\ufdfa",
    "marks": "?!",
    "control characters": "\x01\x02\x7f",
}


def entries() -> Iterator[Entry]:
    yield from runs()
    yield from too_long()
    yield from token_ids()
    yield from many_messages()
    yield from costly()


def runs() -> Iterator[Entry]:
    for name, text in WORST.items():
        long = text * (300_000 // len(text.encode()))
        yield Entry(
            f"300 kB of {name}", post(COMPLETIONS, completion(long)), f"{TOO_LONG} at prompt"
        )
        counted = as_json(prompt=text * (4000 // len(text.encode())))
        yield Entry(f"4 kB of {name} to be counted", post(TOKENIZE, counted), "200")


def too_long() -> Iterator[Entry]:
    text = WORDS * (MIB4 // len(WORDS))
    message = [{"role": "user", "content": text}]
    for path, body, end in (
        (COMPLETIONS, completion(text), f"{TOO_LONG} at prompt"),
        (CHAT, chat(text), f"{TOO_LONG} at messages"),
        (RESPONSES, as_json(model=MINE, input=text), f"{TOO_LONG} at input"),
        (
            MESSAGES,
            as_json(model=MINE, messages=message, max_tokens=1),
            "400 invalid_request_error",
        ),
        (COUNT, as_json(model=MINE, messages=message), "400 invalid_request_error"),
        (TOKENIZE, as_json(prompt=text), f"{TOO_LONG} at prompt"),
    ):
        yield Entry(f"a text of 4 MiB to {path}", post(path, body), end)
    half = [WORDS * 300] * 4
    yield Entry(
        "four prompts, none fits", post(COMPLETIONS, completion(half)), f"{TOO_LONG} at prompt"
    )
    yield Entry(
        "4 MiB of which the last 100 tokens are wanted",
        post(COMPLETIONS, completion(text, truncate_prompt_tokens=100)),
        "200",
    )


def token_ids() -> Iterator[Entry]:
    yield Entry(
        "200,000 token ids", post(COMPLETIONS, completion([5] * 200_000)), f"{TOO_LONG} at prompt"
    )
    no_ids = completion([1 << 40, -1])
    yield Entry(
        "numbers that are no token ids", post(COMPLETIONS, no_ids), "400 invalid_value at prompt"
    )
    unknown = completion([5, 60_000])
    yield Entry("token ids that there are not", post(COMPLETIONS, unknown), "400 at prompt")
    yield Entry("131,072 tokens to be text", post(DETOKENIZE, as_json(tokens=[5] * 131_072)), "200")
    yield Entry(
        "129 prompts", post(COMPLETIONS, completion(["x"] * 129)), "400 invalid_value at prompt"
    )
    yield Entry(
        "128 prompts, of which four may run",
        post(COMPLETIONS, completion(["x"] * 128)),
        "400 at n",
    )


def many_messages() -> Iterator[Entry]:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant")] * 2048
    yield Entry("4,096 messages", post(CHAT, chat(messages=turns)), f"{TOO_LONG} at messages")
    yield Entry(
        "4,097 messages", post(CHAT, chat(messages=[USER] * 4097)), "400 too_long at messages"
    )
    wrong = [{"role": 1, "content": 2, "name": 3}] * 4096
    yield Entry(
        "4,096 wrong messages",
        post(CHAT, chat(messages=wrong)),
        "400 string_type at messages[0].role",
    )
    parts = [{"type": "text", "text": "x"}] * 4096
    yield Entry(
        "4,096 parts of a message",
        post(CHAT, chat(messages=[{**USER, "content": parts}])),
        f"{TOO_LONG} at messages",
    )
    yield Entry(
        "a role that is a template's text",
        post(CHAT, chat(messages=[{"role": "{{ 7*7 }}", "content": "x"}])),
        "400 string_pattern_mismatch at messages[0].role",
    )
    names = {f"k{number}": "x" * 400 for number in range(33)}
    yield Entry(
        "33 variables of a template",
        post(CHAT, chat(chat_template_kwargs=names)),
        "400 invalid_value at chat_template_kwargs",
    )
    items = [{"role": "user", "content": "x"}] * 4096
    yield Entry(
        "4,096 items", post(RESPONSES, as_json(model=MINE, input=items)), f"{TOO_LONG} at input"
    )
    blocks = [{"type": "text", "text": "x" * 8}] * 64
    several = [{"role": "user", "content": blocks}] * 64
    yield Entry(
        "4,096 blocks",
        post(MESSAGES, as_json(model=MINE, messages=several, max_tokens=1)),
        "400 invalid_request_error",
    )
    yield Entry(
        "responses to be remembered, 30 kB each",
        post(
            RESPONSES,
            as_json(
                model=MINE,
                input="x",
                metadata={"k": "x" * 500},
                instructions="y " * 800,
                max_output_tokens=1,
            ),
        ),
        "200",
    )
    yield Entry(
        "a response of another",
        post(RESPONSES, as_json(model=MINE, input="x", previous_response_id="resp_" + "0" * 32)),
        "404 previous_response_not_found at previous_response_id",
    )


def costly() -> Iterator[Entry]:
    yield Entry("1,900 tokens for one", post(COMPLETIONS, completion(LONG)), "200")
    yield Entry(
        "1,900 tokens, and away before the first",
        leave(COMPLETIONS, completion(LONG), seconds=0.5),
        LEFT,
    )
    yield Entry("1,900 tokens, and away at once", leave(CHAT, chat(LONG, stream=True)), LEFT)
    yield Entry(
        "four copies of 1,900 tokens", post(COMPLETIONS, completion(LONG, n=4)), "200", clients=1
    )
    told = completion(LONG, prompt_logprobs=20)
    yield Entry("log-probabilities of 1,900 tokens", post(COMPLETIONS, told), "200")
    echoed = completion(LONG, echo=True, logprobs=20, stream=True)
    yield Entry("1,900 tokens echoed with theirs", post(COMPLETIONS, echoed), "200")
    yield Entry(
        "1,900 tokens to be counted",
        post(TOKENIZE, as_json(prompt=LONG, return_token_strs=True)),
        "200",
    )
