"""What an engine looks at once for the sequences of one request."""

from __future__ import annotations

import pytest

from remix_runtime.contracts import GenerationRequest, ModelInfo, SamplingParams
from remix_runtime.engines.validate import Validation
from remix_runtime.errors import InvalidRequestError

MODEL = ModelInfo(name="base", max_model_len=100, vocab_size=50, eos_token_ids=(0,), max_requests=1)
GOOD, BAD = (1, 49), (1, 50)
FIELDS = ("prompt", "stop_token_ids", "logit_bias", "allowed_token_ids")


def with_ids(field: str, token_ids: tuple[int, ...]) -> GenerationRequest:
    prompt = token_ids if field == "prompt" else GOOD
    given = dict.fromkeys(token_ids, 1.0) if field == "logit_bias" else token_ids
    params = SamplingParams(max_tokens=1, **({} if field == "prompt" else {field: given}))
    return GenerationRequest(request_id="x", prompt_token_ids=prompt, params=params)


@pytest.mark.parametrize("field", FIELDS)
def test_unknown_tokens_are_refused_each_time(field: str) -> None:
    validation = Validation()
    bad = with_ids(field, BAD)
    for request in (with_ids(field, GOOD), bad, bad, with_ids(field, GOOD), bad):
        if request is bad:
            with pytest.raises(InvalidRequestError, match="found token id 50") as caught:
                validation.require_valid(request, MODEL)
            assert caught.value.param == field
        else:
            validation.require_valid(request, MODEL)


@pytest.mark.parametrize("field", FIELDS)
def test_shared_tokens_are_looked_at_once(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    require_known = ModelInfo.require_known

    def counted(model: ModelInfo, token_ids: tuple[int, ...], *, param: str) -> None:
        looked.append(param)
        require_known(model, token_ids, param=param)

    monkeypatch.setattr(ModelInfo, "require_known", counted)
    validation, request = Validation(), with_ids(field, GOOD)
    for _ in range(3):
        validation.require_valid(request, MODEL)
    assert looked.count(field) == 1
