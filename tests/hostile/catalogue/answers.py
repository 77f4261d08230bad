"""Fields that make an answer costly: each of its tokens, or its choices."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.acts import (
    CHAT,
    COMPLETIONS,
    LEFT,
    MESSAGES,
    MINE,
    RESPONSES,
    Entry,
    as_json,
    chat,
    completion,
    leave,
    post,
)

STOP = ["x" * 990 + str(number) for number in range(16)]
BIAS = {str(number): 1.0 for number in range(100, 1124)}
WHOLE_VOCABULARY = {str(number): 1.0 for number in range(49_152)}
LONG = {"max_tokens": 60, "ignore_eos": True}
TOLD = {"logprobs": True, "top_logprobs": 20}
QUOTA = "429 rate_limit_exceeded"


def entries() -> Iterator[Entry]:
    yield from choices()
    yield from costly_tokens()
    yield from out_of_range()
    yield from cut_answers()


def choices() -> Iterator[Entry]:
    yield Entry("n of 64", post(CHAT, chat(n=64)), QUOTA)
    yield Entry("n of 65", post(CHAT, chat(n=65)), "400 at n")
    yield Entry("n of 10^18", post(CHAT, chat(n=10**18)), "400 less_than_equal at n")
    yield Entry("four choices of 60 tokens", post(CHAT, chat(n=4, **LONG)), "200", clients=2)
    yield Entry(
        "four prompts of 60 tokens",
        post(COMPLETIONS, completion(["x"] * 4, **LONG)),
        "200",
        clients=2,
    )
    yield Entry(
        "best of 20", post(COMPLETIONS, completion(best_of=20)), "400 invalid_value at best_of"
    )
    yield Entry(
        "a beam",
        post(COMPLETIONS, completion(use_beam_search=True, n=4)),
        "400 invalid_value at use_beam_search",
    )


def costly_tokens() -> Iterator[Entry]:
    for how in (True, False):
        shown = "streamed" if how else "whole"
        yield Entry(
            f"20 log-probabilities a token, {shown}",
            post(CHAT, chat(**TOLD, **LONG, n=4, stream=how)),
            "200",
            clients=1,
        )
    for name, fields in {
        "16 stop strings of 1,000 characters": {"stop": STOP},
        "1,024 biases": {"logit_bias": BIAS},
        "49,000 tokens that are allowed": {"allowed_token_ids": [*range(49_000)]},
        "60 words that are not": {"bad_words": [f"word {n}" for n in range(60)]},
        "all penalties": {
            "presence_penalty": 1.5,
            "frequency_penalty": 1.5,
            "repetition_penalty": 1.5,
        },
        "all ways to draw": {"top_p": 0.9, "top_k": 1000, "min_p": 0.001, "seed": 7},
        "128 stop tokens and as many tokens at least": {
            "stop_token_ids": [*range(2000, 2128)],
            "min_tokens": 60,
        },
        "JSON of any kind": {"response_format": {"type": "json_object"}},
    }.items():
        asked = {**LONG, **fields}
        if name.startswith("JSON"):
            del asked["ignore_eos"]
        yield Entry(name, post(CHAT, chat(**asked, stream=True)), "200")
    four = chat(**LONG, stop=STOP, logit_bias=BIAS, frequency_penalty=1.0, n=4, **TOLD, stream=True)
    yield Entry("all of it, four times", post(CHAT, four), "200", clients=1)
    said = {"model": MINE, "max_tokens": 60, "stop_sequences": STOP, "stream": True}
    messages = as_json(messages=[{"role": "user", "content": "x"}], **said)
    yield Entry(f"16 stop strings to {MESSAGES}", post(MESSAGES, messages), "200")
    told = {"include": ["message.output_text.logprobs"], "top_logprobs": 20}
    response = as_json(model=MINE, input="x", max_output_tokens=60, stream=True, **told)
    yield Entry(f"20 log-probabilities to {RESPONSES}", post(RESPONSES, response), "200")


def out_of_range() -> Iterator[Entry]:
    for name, fields, end in (
        ("17 stop strings", {"stop": ["x"] * 17}, "400 too_long at stop"),
        ("a stop string of 4 MiB", {"stop": "x" * 4_000_000}, "400 too_long at stop[0]"),
        ("a stop string of nothing", {"stop": [""]}, "400 too_short at stop[0]"),
        ("a bias for all tokens", {"logit_bias": WHOLE_VOCABULARY}, "400 body_too_complex"),
        ("1,025 biases", {"logit_bias": {**BIAS, "1": 1}}, "400 invalid_value at logit_bias"),
        (
            "a bias for a token that there is not",
            {"logit_bias": {"999999": 1}},
            "400 at logit_bias",
        ),
        (
            "21 log-probabilities",
            {"logprobs": True, "top_logprobs": 21},
            "400 less_than_equal at top_logprobs",
        ),
        ("10^12 tokens", {"max_tokens": 10**12}, "400 less_than at max_tokens"),
        ("2,049 tokens", {"max_tokens": 2049}, "400 context_length_exceeded at messages"),
        ("a temperature of -1", {"temperature": -1}, "400 greater_than_equal at temperature"),
        ("129 bad words", {"bad_words": ["x"] * 129}, "400 too_long at bad_words"),
        ("a field that nobody knows", {"__class__": "x"}, "400 invalid_value at __class__"),
    ):
        yield Entry(name, post(CHAT, chat(**fields)), end)


def cut_answers() -> Iterator[Entry]:
    stream = chat(max_tokens=400, ignore_eos=True, stream=True)
    whole = chat(max_tokens=400, ignore_eos=True)
    yield Entry("a stream that is left after the first byte", leave(CHAT, stream, after=1), LEFT)
    yield Entry("a stream that is left a byte later each time", leave(CHAT, stream, after=-1), LEFT)
    yield Entry("a whole answer that nobody waits for", leave(CHAT, whole, seconds=0.3), LEFT)
    yield Entry("a request whose client is gone at once", leave(CHAT, whole), LEFT, clients=16)
    four = chat(max_tokens=400, ignore_eos=True, stream=True, n=4)
    yield Entry("four streams in one that are left", leave(CHAT, four, after=2000), LEFT, clients=2)
