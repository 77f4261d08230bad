"""What every engine checks of a request before it is queued."""

from __future__ import annotations

from remix_runtime.contracts import GenerationRequest, ModelInfo, SamplingParams
from remix_runtime.errors import InvalidRequestError


def validate_request(request: GenerationRequest, model: ModelInfo) -> None:
    """Raises `InvalidRequestError` with the API's name of the field."""
    prompt, params = request.prompt_token_ids, request.params
    if not prompt:
        raise InvalidRequestError("the prompt is empty, expected a token or more", param="prompt")
    model.require_known(prompt, param="prompt")
    model.require_known(params.stop_token_ids, param="stop_token_ids")
    model.require_known(tuple(params.logit_bias), param="logit_bias")
    model.require_known(params.allowed_token_ids, param="allowed_token_ids")
    if "" in params.stop:
        raise InvalidRequestError("stop: found an empty string, expected text", param="stop")
    if params.max_tokens < 0:
        raise InvalidRequestError(
            f"max_tokens: found {params.max_tokens}, expected at least 0", param="max_tokens"
        )
    if not 0 <= params.min_tokens <= params.max_tokens:
        raise InvalidRequestError(
            f"min_tokens: found {params.min_tokens}, expected 0 to max_tokens "
            f"({params.max_tokens})",
            param="min_tokens",
        )
    if params.grammar is not None:
        _check_alone(params)
    model.require_room(len(prompt), params.max_tokens)


def _check_alone(params: SamplingParams) -> None:
    """A grammar says alone which tokens may come: other limits could leave none."""
    for name in ("min_tokens", "allowed_token_ids", "bad_words"):
        if getattr(params, name):
            raise InvalidRequestError(
                f"{name}: cannot be used together with structured output", param=name
            )
