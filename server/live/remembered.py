"""Answers that clients may come back to by their ids, in the memory of this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import RLock

MAX_ANSWERS = 1000
"""The most answers that are remembered for one tenant."""
MAX_TENANT_BYTES = 16 << 20
MAX_BYTES = 64 << 20
"""The most that all tenants' answers may take together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """An answer with all that came before it. Texts are JSON."""

    id: str
    answer: str
    """As the client got it."""
    context: Sequence[str]
    """What the model was told, item by item, without instructions."""
    output: Sequence[tuple[str, str]]
    """The answer's items, by their ids."""

    @property
    def num_bytes(self) -> int:
        items = sum(map(_size, self.context)) + sum(_size(item) for _, item in self.output)
        return _size(self.answer) + items


def _size(text: str) -> int:
    return len(text.encode())


@dataclass(slots=True)
class _Shelf:
    """What one tenant has, the oldest first."""

    answers: OrderedDict[str, tuple[Remembered, int]] = field(default_factory=OrderedDict)
    items: dict[str, str] = field(default_factory=dict)
    """Items of those answers by their ids."""
    num_bytes: int = 0

    def remove(self, answer_id: str) -> None:
        answer, num_bytes = self.answers.pop(answer_id)
        for item_id, _ in answer.output:
            self.items.pop(item_id, None)
        self.num_bytes -= num_bytes


class Memory:
    """Bounded in answers and bytes for each tenant, and in bytes for all. Over its bound a tenant
    forgets its oldest answer; over the common one, the tenant that has most forgets its oldest. The
    context of an answer counts whole, also where the answer before it holds the same.

    May be used from any thread: long answers are written in one of their own."""

    def __init__(
        self,
        *,
        max_answers: int = MAX_ANSWERS,
        max_tenant_bytes: int = MAX_TENANT_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.max_answers = max_answers
        self._max_tenant_bytes = max_tenant_bytes
        self._max_bytes = max_bytes
        self._shelves: dict[str, _Shelf] = {}
        self._num_bytes = 0
        self._lock = RLock()

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def keep(self, tenant: str, answer: Remembered) -> None:
        """Remembers an answer; one that is larger than the bounds is forgotten at once."""
        num_bytes = answer.num_bytes
        with self._lock:
            shelf = self._shelves.setdefault(tenant, _Shelf())
            shelf.answers[answer.id] = (answer, num_bytes)
            shelf.items.update(answer.output)
            shelf.num_bytes += num_bytes
            self._num_bytes += num_bytes
            while len(shelf.answers) > self.max_answers or shelf.num_bytes > self._max_tenant_bytes:
                self._forget_oldest(tenant)
            while self._num_bytes > self._max_bytes:
                most, _ = max(self._shelves.items(), key=lambda shelf: shelf[1].num_bytes)
                self._forget_oldest(most)

    def find(self, tenant: str, answer_id: str) -> Remembered | None:
        shelf = self._shelves.get(tenant)
        found = shelf and shelf.answers.get(answer_id)
        return found[0] if found else None

    def find_item(self, tenant: str, item_id: str) -> str | None:
        """An item of an answer that is remembered."""
        shelf = self._shelves.get(tenant)
        return shelf.items.get(item_id) if shelf else None

    def forget(self, tenant: str, answer_id: str) -> bool:
        """Returns whether there was such an answer."""
        with self._lock:
            if self.find(tenant, answer_id) is None:
                return False
            shelf = self._shelves[tenant]
            before = shelf.num_bytes
            shelf.remove(answer_id)
            self._num_bytes -= before - shelf.num_bytes
            if not shelf.answers:
                del self._shelves[tenant]
            return True

    def _forget_oldest(self, tenant: str) -> None:
        self.forget(tenant, next(iter(self._shelves[tenant].answers)))
