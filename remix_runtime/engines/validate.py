"""What every engine checks of a request before it is queued."""

from __future__ import annotations

from collections.abc import Collection

from remix_runtime.contracts import GenerationRequest, ModelInfo, SamplingParams
from remix_runtime.errors import InvalidRequestError


class Validation:
    """Looks at token ids once where requests share them: the n sequences of one prompt come in one
    turn of the event loop."""

    def __init__(self) -> None:
        self._known: dict[str, Collection[int]] = {}
        """The ids of each field that were last found known. Held, so that none gets their place in
        memory."""

    def require_valid(self, request: GenerationRequest, model: ModelInfo) -> None:
        """Raises `InvalidRequestError` with the API's name of the field."""
        params = request.params
        if not request.prompt_token_ids:
            raise InvalidRequestError(
                "the prompt is empty, expected a token or more", param="prompt"
            )
        for param, token_ids in (
            ("prompt", request.prompt_token_ids),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias),
            ("allowed_token_ids", params.allowed_token_ids),
        ):
            if token_ids and token_ids is not self._known.get(param):
                model.require_known(token_ids, param=param)
                self._known[param] = token_ids
        _check_params(params)
        model.require_room(len(request.prompt_token_ids), params.max_tokens)


def _check_params(params: SamplingParams) -> None:
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


def _check_alone(params: SamplingParams) -> None:
    """A grammar says alone which tokens may come: other limits could leave none."""
    for name in ("min_tokens", "allowed_token_ids", "bad_words"):
        if getattr(params, name):
            raise InvalidRequestError(
                f"{name}: cannot be used together with structured output", param=name
            )
