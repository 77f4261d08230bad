"""What every engine checks of a request before it is queued."""

from __future__ import annotations

from remix_runtime.contracts import GenerationRequest, ModelInfo
from remix_runtime.errors import InvalidRequestError


def validate_request(request: GenerationRequest, model: ModelInfo) -> None:
    """Raises `InvalidRequestError` with the API's name of the field."""
    prompt, params = request.prompt_token_ids, request.params
    if not prompt:
        raise InvalidRequestError("the prompt is empty, expected a token or more", param="prompt")
    _check_ids(prompt, model.vocab_size, "prompt")
    _check_ids(params.stop_token_ids, model.vocab_size, "stop_token_ids")
    _check_ids(tuple(params.logit_bias), model.vocab_size, "logit_bias")
    if params.max_tokens < 1:
        raise InvalidRequestError(
            f"max_tokens: found {params.max_tokens}, expected at least 1", param="max_tokens"
        )
    model.require_room(len(prompt), params.max_tokens)


def _check_ids(ids: tuple[int, ...], vocab_size: int, param: str) -> None:
    bad = next((i for i in ids if not 0 <= i < vocab_size), None)
    if bad is not None:
        raise InvalidRequestError(
            f"{param}: found token id {bad}, expected 0 to {vocab_size - 1}", param=param
        )
