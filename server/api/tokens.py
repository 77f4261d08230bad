"""`/tokenize`, `/detokenize`, `/tokenizer_info` and `/version`, as vLLM has them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

from fastapi import APIRouter, Request

from remix_runtime.contracts import Tokenizer
from server.api.calls import CountedRoute, defaults_of, resolve
from server.api.conversation import prompt_of
from server.api.documentation import error_responses
from server.api.token_texts import TokenTexts
from server.api.tokenizing import count_tokens, run_tokenizer
from server.api.wire.tokens import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
    Version,
)
from server.http.request import state_of
from server.live.sets import Target
from server.services import services_of

router = APIRouter(route_class=CountedRoute)


@router.post("/tokenize", responses=error_responses())
async def tokenize(body: TokenizeRequest, http: Request) -> Tokenized:
    """Shows the tokens of a prompt, or of a chat with the base's template."""
    services = services_of(http)
    engine = services.engine
    target = _target(http, body.model)
    if body.prompt is None:
        template = None if target is None else (await defaults_of(services, target)).chat_template
        ids = await prompt_of(services, state_of(http.scope), body, template)
    else:
        encode = partial(
            engine.tokenizer.encode,
            body.prompt,
            add_special_tokens=body.add_special_tokens is not False,
        )
        ids = await count_tokens(
            services,
            state_of(http.scope),
            len(body.prompt),
            lambda at_most: encode(at_most=at_most),
            "prompt",
        )
    texts = None
    if body.return_token_strs:
        tenant = state_of(http.scope).tenant
        texts = await run_tokenizer(services, tenant, _texts, engine.tokenizer, ids)
    return Tokenized(
        count=len(ids),
        max_model_len=engine.model.max_model_len,
        tokens=ids,
        token_strs=texts,
    )


def _texts(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    texts = TokenTexts(tokenizer)
    return list(map(texts.of, token_ids))


@router.post("/detokenize", responses=error_responses())
async def detokenize(body: DetokenizeRequest, http: Request) -> Detokenized:
    """Shows the text of tokens, special ones too."""
    services, state = services_of(http), state_of(http.scope)
    engine = services.engine
    _target(http, body.model)
    engine.model.require_known(body.tokens, param="tokens")
    assert state.admission is not None
    await state.admission.obtain_tokenizing(len(body.tokens))
    text = await run_tokenizer(
        services, state.tenant, engine.tokenizer.decode, body.tokens, skip_special_tokens=False
    )
    return Detokenized(prompt=text)


def _target(http: Request, model: str | None) -> Target | None:
    """What the tenant has under that name, if one is given."""
    return None if model is None else resolve(http, model)


@router.get("/tokenizer_info")
async def tokenizer_info(http: Request) -> TokenizerInfo:
    """What a client must know to build prompts as the server does."""
    services = services_of(http)
    engine = services.engine
    tokenizer = engine.tokenizer
    begin = await run_tokenizer(
        services, state_of(http.scope).tenant, tokenizer.encode, "", add_special_tokens=True
    )
    return TokenizerInfo(
        tokenizer_class=type(tokenizer).__name__,
        bos_token=tokenizer.token_text(begin[0]) if begin else None,
        eos_token=next(map(tokenizer.token_text, engine.model.eos_token_ids), None),
        chat_template=tokenizer.chat_template,
        max_model_len=engine.model.max_model_len,
    )


@router.get("/version")
async def show_version() -> Version:
    """The server's version."""
    return Version(version=version("remix-serve"))
