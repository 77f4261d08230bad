"""Fields of OpenAI's and vLLM's requests that no body has as its own: taken, or refused.

A field is honoured, taken because it cannot change the answer, or refused with its name. Nothing
is ignored that might have meant something.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.wire.refusal import refused

TAKEN = frozenset(
    {
        # OpenAI's: labels, hints to a cache, guesses that only make an answer faster.
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
        "parallel_tool_calls",  # without tools there are none
        # vLLM's
        "cache_salt",  # where nothing is generated
        "session_id",
        "spaces_between_special_tokens",  # there are none, as with every fast tokenizer
        "mm_payload",
        "return_mm_kwargs",
    }
)
"""Fields that cannot change an answer, whatever their value."""

ASK_NOTHING: Mapping[str, tuple[Any, ...]] = {
    # OpenAI's
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning": ({},),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "ec_transfer_params": ({},),
    "echo": (False,),
    "guided_decoding_backend": ("auto",),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_embeds": ([],),
    "repetition_detection": (),
    "return_prompt_text": (False,),
    "return_token_offsets": (False,),
    "routed_experts_prompt_start": (0,),
    "stream_interval": (1,),
    "thinking_token_budget": (-1,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}
"""Fields that cannot be honoured, with the values that ask for nothing (null always does)."""

_MAX_NAME = 100


def check_others(fields: Mapping[str, Any]) -> None:
    """Refuses the first field that would have to be honoured, or that nobody knows."""
    for name, value in fields.items():
        if name in TAKEN or value is None:
            continue
        if name not in ASK_NOTHING:
            raise refused(name[:_MAX_NAME], "this server does not know this field; leave it out")
        if value not in ASK_NOTHING[name]:
            raise refused(name, "this server does not support it; leave it out")
