"""Prepares a chat: the prompt, what the answer is held to, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from remix_runtime.chats.families import Family, ToolParserName
from remix_runtime.chats.history import Message
from remix_runtime.chats.prompt import ChatForm
from remix_runtime.chats.reads import END_OF_THOUGHT, THINK, TemplateReads
from remix_runtime.contracts import Grammar, Tokenizer
from remix_runtime.errors import InvalidRequestError
from server.api.parts import AnswerParser, PlainParser
from server.api.tools.grammar import GrammarForm, Thought, require_usable
from server.api.tools.parser import CallParser
from server.api.tools.roles import require_turns
from server.api.tools.special import HidingParser
from server.api.tools.thoughts import ThoughtParser
from server.api.wire.chat import ChatPrompt, ChatRequest

_END_OF_PROMPT = 16
"""So many tokens hold the end of a prompt in which a thought is begun."""

_OWN_NAMES = frozenset(
    (
        *("messages", "conversation", "tools", "documents", "chat_template", "template"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "tokenizer_kwargs"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("at_most", "keep_end"),
        *("return_assistant_tokens_mask", "raise_exception", "strftime_now"),
    )
)
"""Names that a template gets from elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedChat:
    prompt: Sequence[int]
    grammar: Grammar | None
    """What the answer must be: by the request's tools and by its structure."""
    keeps_special_tokens: bool
    """Whether the parser needs the text with special tokens. It hides them then."""
    make_parser: Callable[[], AnswerParser]


def prepare_chat(
    tokenizer: Tokenizer,
    body: ChatRequest,
    setting: ToolParserName = "auto",
    template: str | None = None,
    *,
    at_most: int | None = None,
    keep_end: bool = False,
) -> PreparedChat:
    """Renders a chat, in the tokenizer's thread, by `template` if it is not the model's own, and
    tokenizes it as far as `Tokenizer.encode` does. Raises `InvalidRequestError`."""
    form = _form(tokenizer, body, setting, template)
    reads, family = form.reads, form.family
    prompt = _render(tokenizer, body, form, template, at_most=at_most, keep_end=keep_end)
    thought = _thought(tokenizer, body, reads, prompt)
    marks = {*(family.marks if body.callable_tools else ())}
    if thought is not Thought.NEVER:
        marks |= {THINK, END_OF_THOUGHT}
    special = tokenizer.special_tokens
    keeps = any(mark in special for mark in marks)
    # Who asks for special tokens gets to see them.
    hidden = frozenset(special) if keeps and body.skip_special_tokens is not False else None

    def make_parser() -> AnswerParser:
        parser = _call_parser(body, family) if body.callable_tools else PlainParser()
        if thought is not Thought.NEVER:
            parser = ThoughtParser(parser, begun=thought is Thought.BEGUN)
        if hidden is not None:
            parser = HidingParser(parser, special=hidden, marks=marks)
        return parser

    def make_grammar_form() -> GrammarForm:
        tokens = _single_tokens(tokenizer, [*family.marks, THINK, END_OF_THOUGHT])
        return GrammarForm(family=family, thought=thought, tokens=tokens)

    return PreparedChat(
        prompt=prompt,
        grammar=_grammar(body, thought, make_grammar_form),
        keeps_special_tokens=keeps,
        make_parser=make_parser,
    )


def _call_parser(body: ChatRequest, family: Family) -> AnswerParser:
    functions = [tool.function for tool in body.callable_tools]
    # Where the grammar allows nothing but calls that fit, any form of them is one.
    held = body.must_call or body.grammar is not None
    return CallParser(
        family.openers,
        {function.name for function in functions},
        strict=() if held else {function.name for function in functions if function.strict},
        most=1 if body.calls_at_most_one else None,
    )


def _grammar(
    body: ChatRequest, thought: Thought, make_form: Callable[[], GrammarForm]
) -> Grammar | None:
    structure = body.grammar
    if not body.callable_tools:
        if structure is None or thought is Thought.NEVER:
            return structure
        return make_form().must_answer(structure)
    held = body.must_call or structure is not None
    for at, tool in enumerate(body.tools or ()):
        if tool in body.callable_tools and (held or tool.function.strict):
            require_usable(tool.function, f"tools[{at}].function.parameters")
    functions = [tool.function for tool in body.callable_tools]
    if held:
        answer = None if body.must_call else structure
        # Small models do not end where a grammar lets them go on.
        many = body.parallel_tool_calls is True and not body.names_its_tool
        return make_form().must_call(functions, many=many, answer=answer)
    if any(function.strict for function in functions):
        return make_form().strict_calls(functions)
    return None


def _form(
    tokenizer: Tokenizer, body: ChatPrompt, setting: ToolParserName, template: str | None
) -> ChatForm:
    tools = [tool.for_template() for tool in body.callable_tools]
    return ChatForm.of(template or tokenizer.chat_template or "", tools, setting)


def render_prompt(
    tokenizer: Tokenizer,
    body: ChatPrompt,
    setting: ToolParserName = "auto",
    template: str | None = None,
    *,
    at_most: int | None = None,
) -> list[int]:
    """The tokens of a chat's prompt alone, as `prepare_chat` has them."""
    form = _form(tokenizer, body, setting, template)
    return _render(tokenizer, body, form, template, at_most=at_most, keep_end=False)


def _render(
    tokenizer: Tokenizer,
    body: ChatPrompt,
    form: ChatForm,
    template: str | None,
    *,
    at_most: int | None,
    keep_end: bool,
) -> list[int]:
    variables = _variables(body, form.reads)
    goes_on = bool(body.continue_final_message)

    def render(messages: Sequence[Message], **tools: Any) -> list[int]:
        return tokenizer.apply_chat_template(
            messages,
            template=template,
            add_generation_prompt=not goes_on and body.add_generation_prompt is not False,
            continue_final_message=goes_on,
            at_most=at_most,
            keep_end=keep_end,
            **variables,
            **tools,
        )

    def show(messages: Sequence[Message]) -> str:
        return tokenizer.decode(form.render(render, messages), skip_special_tokens=False)

    messages = [message.for_template() for message in body.messages]
    require_turns(messages, show)
    return form.render(render, messages)


def _variables(body: ChatPrompt, reads: TemplateReads) -> dict[str, Any]:
    """What the template gets beside messages and tools."""
    variables: dict[str, Any] = {}
    effort = body.reasoning_effort
    if effort is not None and "reasoning_effort" in reads.variables:
        variables["reasoning_effort"] = effort
    if effort is not None:
        variables |= dict.fromkeys(reads.switches, effort != "none")
    if body.documents:
        if "documents" not in reads.variables:
            raise _not_read("documents", "documents")
        variables["documents"] = body.documents
    for name, value in (body.chat_template_kwargs or {}).items():
        if name in _OWN_NAMES or name.endswith("_token"):
            raise InvalidRequestError(
                f"chat_template_kwargs: {name} is not a name that a request may give",
                param="chat_template_kwargs",
            )
        if name in reads.variables:
            variables[name] = value
        elif not (name in reads.SWITCHES and not value):
            raise _not_read("chat_template_kwargs", name)
    return variables


def _not_read(param: str, name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{param}: this model's chat template does not read {name[:64]}", param=param
    )


def _thought(
    tokenizer: Tokenizer, body: ChatRequest, reads: TemplateReads, prompt: Sequence[int]
) -> Thought:
    if not reads.thinks:
        return Thought.NEVER
    if body.continue_final_message:
        begun = body.messages[-1].content or ""
        return Thought.BEGUN if begun.rfind(THINK) > begun.rfind(END_OF_THOUGHT) else Thought.NEVER
    end = tokenizer.decode(prompt[-_END_OF_PROMPT:], skip_special_tokens=False).rstrip()
    if end.endswith(THINK):
        return Thought.BEGUN
    return Thought.NEVER if end.endswith(END_OF_THOUGHT) else Thought.MAYBE


def _single_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, int]:
    found = {text: tokenizer.encode(text, add_special_tokens=False) for text in texts}
    return {text: ids[0] for text, ids in found.items() if len(ids) == 1}
