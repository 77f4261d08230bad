"""Finds the calls of tools in what a model writes."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Collection, Iterable, Sequence

from server.api.parts import AnswerParser, CallDelta, CallStart, Delta, TextDelta
from server.api.tools.call_text import BareArguments, CallObject, CallText, NotACallError
from server.api.tools.json_text import MalformedError

_FENCE = "```"
_PLAIN = r"[^\n`{{\[{}]+"
_BARE = re.compile(r"(```[a-z_]{0,16}[ \t]{0,8}\r?\n[ \t\r\n]{0,32})?(\[[ \t\r\n]{0,32})?\{")
"""A call without an opener: in a fence, in a list, in both or in none."""
_BARE_BEGUN = re.compile(
    r"`{1,3}|```[a-z_]{0,16}[ \t]{0,8}\r?|"
    r"(?:```[a-z_]{0,16}[ \t]{0,8}\r?\n[ \t\r\n]{0,32})?(?:\[[ \t\r\n]{0,32})?"
)
_NEXT_BEGUN = re.compile(r"[;,][ \t\r\n]{0,64}")
_NEXT = re.compile(r"(?:[;,][ \t\r\n]{0,64})?\{")
_NAMED = re.compile(r"\s*([a-zA-Z0-9_-]{1,128})(?:\[CALL_ID\][a-zA-Z0-9]{1,64})?(?:\[ARGS\])?\s*")
_NAMED_BEGUN = re.compile(r"\s*[a-zA-Z0-9_-]{0,128}(?:\[[A-Z_]{0,7}\]?[a-zA-Z0-9]{0,64}){0,2}\s*")

_MAX_BEFORE_CALL = 256
"""So many characters may stand between an opener and the call."""
_CLOSING = {"<tool_call>": "</tool_call>"}
_ID_CHARACTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """Nine letters and digits: Mistral's templates refuse other ids, and all others take them."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))


class CallParser(AnswerParser):
    """Takes a call where an opener stands before it, or where it begins a line, also in a fence of
    Markdown. What does not turn out to be a call of one of the tools stays text, and so does a call
    that breaks off before its arguments. White space around calls goes with them.

    A call whose arguments break off is given as far as it came, as OpenAI does; one whose arguments
    are no JSON is given as it was written, since its beginning is out.
    """

    def __init__(
        self,
        openers: Collection[str],
        names: Collection[str],
        *,
        strict: Collection[str] = (),
        most: int | None = None,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`openers`: texts before calls, as `<tool_call>`. `strict`: see `CallObject`. `most`:
        later calls are left out."""
        self._openers, self._names, self._strict = tuple(openers), names, strict
        self._most, self._new_id = most, new_id
        self._state = self._in_text
        starts = re.escape("".join(opener[0] for opener in self._openers))
        self._plain = re.compile(_PLAIN.format(starts))
        """Text that can begin no call."""
        self._unread, self._at = "", 0
        self._new: list[Delta] = []
        self._num_calls = 0

        self._line_is_blank = True
        self._space = ""
        """White space that goes if a call follows."""
        self._held = ""
        """What may begin a call, or follow one."""
        self._opener_size = 0
        """So much of it is the opener, where one is known."""
        self._call: CallText | None = None
        self._in_list = False
        self._closing = ""

    def push(self, text: str) -> Iterable[Delta]:
        self._unread += text
        return self._read()

    def close(self) -> Iterable[Delta]:
        new = list(self._read())
        while self._undecided:
            self._give_back()
            new += self._read()
        if self._state == self._in_text:
            self._show(self._held)
            if not self._num_calls and self._space:
                self._new.append(TextDelta(self._space))
        elif self._state == self._in_malformed:
            self._pass_on(self._held)
        self._held = self._space = ""
        return _joined([*new, *self._take()])

    @property
    def _undecided(self) -> bool:
        begun = self._call is not None and self._call.begun
        return self._state == self._opened or (self._state == self._in_call and not begun)

    def _read(self) -> Sequence[Delta]:
        while self._at < len(self._unread):
            if not self._skip():
                char = self._unread[self._at]
                self._at += 1
                self._state(char)
        self._unread, self._at = "", 0
        return self._take()

    def _skip(self) -> bool:
        """Takes many characters at once where none of them can change anything."""
        end = self._at
        if self._state == self._in_text and not self._held:
            run = self._plain.match(self._unread, self._at)
            if run is not None:
                end = run.end()
                self._show(run[0])
        elif self._state == self._in_call and self._call is not None:
            end = self._call.plain_until(self._unread, self._at)
            self._pass_on(self._unread[self._at : end])
        skipped, self._at = end > self._at, end
        return skipped

    def _read_again(self, text: str) -> None:
        self._unread, self._at = text + self._unread[self._at :], 0

    def _take(self) -> Sequence[Delta]:
        new, self._new = self._new, []
        return _joined(new)

    # -- text ---------------------------------------------------------------------------------

    def _in_text(self, char: str) -> None:
        self._held += char
        while self._held and self._state == self._in_text:
            if self._may_open():
                return
            self._show(self._held[0])
            self._held = self._held[1:]

    def _may_open(self) -> bool:
        """Whether what is held is, or may become, the beginning of a call; opens it if it is."""
        held = self._held
        if held in self._openers:
            self._closing, self._opener_size = _CLOSING.get(held, ""), len(held)
            self._state = self._opened
            return True
        if any(opener.startswith(held) for opener in self._openers):
            return True
        if not self._line_is_blank:
            return False
        bare = _BARE.fullmatch(held)
        if bare is None:
            return _BARE_BEGUN.fullmatch(held) is not None
        self._closing, self._in_list = _FENCE if bare[1] else "", bool(bare[2])
        self._begin(CallObject(self._names, self._strict))
        return True

    def _show(self, text: str) -> None:
        words = text.rstrip()
        if words:
            self._new.append(TextDelta(self._space + words))
            self._space, self._line_is_blank = "", False
        space = text[len(words) :]
        self._space += space
        self._line_is_blank |= "\n" in space

    # -- calls --------------------------------------------------------------------------------

    def _opened(self, char: str) -> None:
        """Between an opener and the call. `_held` has it all, for giving it back."""
        self._state = self._opened
        written = self._held[self._opener_size :].lstrip()
        self._held += char
        if self._in_list:
            written = written.removeprefix("[").lstrip()
        if char == "{":
            self._begin_object(written)
        elif char == "[" and not written and not self._in_list:
            self._in_list = True
        elif len(self._held) > _MAX_BEFORE_CALL or not self._may_be_named(written + char):
            self._give_back()

    def _may_be_named(self, written: str) -> bool:
        """Whether it is white space, or Mistral's `name[ARGS]` as far as it has come."""
        if not written.strip():
            return True
        return not self._in_list and _NAMED_BEGUN.fullmatch(written) is not None

    def _begin_object(self, written: str) -> None:
        named = _NAMED.fullmatch(written)
        if named is not None and named[1] in self._names:
            call = BareArguments(named[1])
            self._tell_of(call)
            self._begin(call)
        elif written:
            self._give_back()
        else:
            self._begin(CallObject(self._names, self._strict))

    def _begin(self, call: CallText) -> None:
        """`_held` ends in the brace that begins it."""
        self._call, self._held, self._state = call, self._held[:-1], self._in_call
        self._in_call("{")

    def _in_call(self, char: str) -> None:
        call = self._call
        assert call is not None
        told = call.begun
        try:
            taken = call.feed(char)
        except NotACallError:
            return self._give_back()
        except MalformedError:
            self._state = self._in_malformed
            return self._in_malformed(char)
        if call.begun and not told:
            self._tell_of(call)
        self._pass_on(call.take())
        if call.done:
            self._end_call()
        if not taken:
            self._read_again(char)
        return None

    def _tell_of(self, call: CallText) -> None:
        assert call.name is not None
        self._space = self._held = ""
        self._num_calls += 1
        if self._wanted:
            self._new.append(CallStart(self._num_calls - 1, self._new_id(), call.name))

    def _pass_on(self, arguments: str) -> None:
        if arguments and self._wanted:
            self._new.append(CallDelta(self._num_calls - 1, arguments))

    @property
    def _wanted(self) -> bool:
        return self._most is None or self._num_calls <= self._most

    def _end_call(self) -> None:
        self._call, self._held = None, ""
        self._state, self._line_is_blank = self._after_call, False

    def _in_malformed(self, char: str) -> None:
        """Arguments that are no JSON: up to what closes the call all is theirs."""
        self._held += char
        while self._held and not (self._closing and self._closing.startswith(self._held)):
            self._pass_on(self._held[0])
            self._held = self._held[1:]
        if self._held == self._closing and self._held:
            self._end_call()
            self._closing, self._line_is_blank = "", True

    def _after_call(self, char: str) -> None:
        if not self._held and char.isspace():
            return self._show(char)
        self._held += char
        if self._in_list and self._held == "]":
            self._in_list, self._held = False, ""
        elif self._closing and self._held == self._closing:
            self._closing = self._held = ""
            self._line_is_blank = True
        elif _NEXT.fullmatch(self._held):
            self._begin(CallObject(self._names, self._strict))
        elif not (_NEXT_BEGUN.fullmatch(self._held) or self._closing.startswith(self._held)):
            held = self._held
            self._back_to_text()
            self._read_again(held)
        return None

    def _give_back(self) -> None:
        """It was no call: its first character is text, and the others are read again."""
        raw = self._held + (self._call.raw if self._call is not None else "")
        self._back_to_text()
        self._show(raw[0])
        self._read_again(raw[1:])

    def _back_to_text(self) -> None:
        self._state, self._call, self._held = self._in_text, None, ""
        self._in_list, self._closing = False, ""


def _joined(deltas: Sequence[Delta]) -> Sequence[Delta]:
    """Fewer deltas that say the same."""
    joined: list[Delta] = []
    for delta in deltas:
        match (joined[-1] if joined else None), delta:
            case TextDelta(before), TextDelta(text):
                joined[-1] = TextDelta(before + text)
            case CallDelta(index, before), CallDelta(same, arguments) if same == index:
                joined[-1] = CallDelta(index, before + arguments)
            case _:
                joined.append(delta)
    return joined
