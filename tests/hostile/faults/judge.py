"""Says of each request what became of it, and finds what must not become of any."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.hostile.faults.books import Books
from tests.hostile.faults.injected import DIRECTORY, INTERNAL
from tests.hostile.faults.shapes import (
    ENDPOINTS,
    Failure,
    NoEndError,
    Shape,
    TwoEndsError,
    Whole,
    read_answer,
    read_failure,
)
from tests.hostile.faults.wire import Answer

if TYPE_CHECKING:
    from tests.hostile.faults.trial import Trial

NOBODY = "nobody"
"""A model that there is not."""
UNKNOWN_KEY = "rk-00000000-" + "A" * 43
_MOST_FINDINGS = 40
_TEMPLATE_TOKENS = 40
"""More than a chat's template adds to a prompt."""
_SAID = {
    "The server had an error": INTERNAL,
    "The model is not available": "model_unavailable",
    "The server cannot check this": DIRECTORY,
    "The model 'nobody'": "model_not_found",
    "the queue is full": "busy",
}
"""What errors begin with whose API has no such code."""


@dataclass(slots=True, eq=False)
class Asked:
    """One request."""

    id: str
    tenant: str
    key: str
    name: str
    shape: Shape
    since: int
    outcome: str | None = None

    @classmethod
    def make(cls, trial: Trial, tenant: str, key: str, name: str, shape: Shape) -> Asked:
        moment = trial.moment()
        asked = cls(f"r-{trial.seed}-{moment}", tenant, key, name, shape, moment)
        trial.judge.asked += 1
        trial.judge.open.add(asked)
        return asked

    @property
    def is_good(self) -> bool:
        return not (self.shape.is_wrong or self.name == NOBODY or self.key == UNKNOWN_KEY)


class Judge:
    def __init__(self, trial: Trial, books: Books) -> None:
        self._trial = trial
        self._books = books
        self.asked = 0
        self.open: set[Asked] = set()
        self.outcomes: Counter[str] = Counter()
        self._ids: set[str] = set()
        """Of all complete answers."""
        self._right: dict[tuple[Shape, str], tuple[Any, int]] = {}
        """The first answer of each adapter to each shape, while nothing was wrong: its content and
        the tokens of its prompt."""

    def find(self, kind: str, what: str, asked: Asked | None = None) -> None:
        of = "" if asked is None else f" ({asked.id} of {asked.tenant}: {asked.name} {asked.shape})"
        if len(self._books.findings) < _MOST_FINDINGS:
            self._books.findings.append(f"{kind}: {what}{of}"[:1000])

    def cut(self, asked: Asked) -> None:
        """The client left before the end of the answer."""
        self._books.cut += 1
        self._without_answer(asked)
        self._end(asked, "cut")

    def lost(self, asked: Asked, how: str) -> None:
        self._books.cut += 1
        self._without_answer(asked)
        self.find("lost", how, asked)
        self._end(asked, "lost")

    def answered(self, asked: Asked, answer: Answer, *, is_slow: bool) -> None:
        """`is_slow`: the client may have taken too long to ask."""
        if answer.status == 408 and is_slow:  # the connection's own answer: no request is known
            self._books.cut += 1
            self._without_answer(asked)
            self._end(asked, read_failure(408, answer.body).code)
            return
        if (own := answer.headers.get("x-request-id")) != asked.id:
            self.find("another's", f"the answer is of {own}: {answer}", asked)
        self._books.answered[ENDPOINTS[asked.shape.path], str(answer.status)] += 1
        try:
            if answer.status == 200:
                result = read_answer(asked.shape, answer.body)
            else:
                result = read_failure(answer.status, answer.body)
        except NoEndError as error:
            self.find("lost", f"no end: {error}", asked)
            result = Failure(answer.status, "no end", "")
        except TwoEndsError as error:
            self.find("doubled", f"two ends: {error}", asked)
            result = Failure(answer.status, "two ends", "")
        except Exception as error:
            self.find("malformed", f"{error!r}: {answer}", asked)
            result = Failure(answer.status, "malformed", "")
        if isinstance(result, Whole):
            self._whole(asked, result)
        else:
            self._failed(asked, result)

    def _whole(self, asked: Asked, whole: Whole) -> None:
        trial, tokens = self._trial, asked.shape.n * whole.prompt_tokens + whole.generated_tokens
        self._books.told[asked.tenant] += tokens
        self._end(asked, "complete")
        if not asked.is_good:
            self.find("unexpected", "an answer to a wrong request", asked)
            return
        if (whole.model, whole.own_id or asked.id) != (asked.name, asked.id):
            self.find("another's", f"the answer is of {whole.model} {whole.own_id}", asked)
        if whole.id in self._ids:
            self.find("doubled", f"a second answer has the id {whole.id}", asked)
        self._ids.add(whole.id)
        if whole.digest not in trial.meanings(asked.tenant, asked.name):
            self.find("another's", f"the answer is of {whole.digest}", asked)
        mine = (whole.content, whole.prompt_tokens)
        right = self._right.setdefault((asked.shape, whole.digest), mine)
        if mine != right:
            self.find("wrong bits", f"{mine}, expected {right}", asked)

    def _failed(self, asked: Asked, failure: Failure) -> None:
        reason = reason_of(failure)
        self._without_answer(asked)
        self._end(asked, reason)
        if not self._is_right(asked, failure.status, reason, failure.message):
            self.find("unexpected", f"{failure}", asked)

    def _is_right(self, asked: Asked, status: int, reason: str, message: str) -> bool:
        """Whether a request may fail so, by its own mistakes or by a fault of its time."""
        trial = self._trial
        if reason in ("no end", "two ends", "malformed"):
            return True  # told already
        if asked.key == UNKNOWN_KEY:
            return status == 401 or reason == DIRECTORY
        if reason == DIRECTORY:
            return trial.is_excused(DIRECTORY, asked.since)
        match reason:
            case "rate_limit_exceeded" | "rate_limit_error":
                return asked.tenant == "c"
            case "busy" | "overloaded_error":
                return True
            case "model_unavailable":
                named = re.findall(r"[0-9a-f]{64}", message) or trial.digests
                return any(trial.is_excused(digest, asked.since) for digest in named)
            case "internal_error":
                return trial.is_excused(INTERNAL, asked.since)
            case "model_not_found":
                return asked.name == NOBODY
        return status == 400 and asked.shape.is_wrong

    def _without_answer(self, asked: Asked) -> None:
        self._books.incomplete(asked.tenant, len(asked.shape.prompt) + _TEMPLATE_TOKENS)

    def _end(self, asked: Asked, outcome: str) -> None:
        if asked.outcome is not None:
            self.find("doubled", f"{outcome} after {asked.outcome}", asked)
        else:
            self.outcomes[outcome] += 1
        asked.outcome = outcome
        self.open.discard(asked)


def reason_of(failure: Failure) -> str:
    told = (reason for begin, reason in _SAID.items() if failure.message.startswith(begin))
    return next(told, failure.code)
