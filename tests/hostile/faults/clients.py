"""A client with a connection that it keeps, which asks in pieces and cuts at any byte."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.hostile.faults.judge import NOBODY, UNKNOWN_KEY, Asked
from tests.hostile.faults.shapes import GOOD, WRONG
from tests.hostile.faults.wire import ClosedError, CutError, HungError, MalformedError, Wire

if TYPE_CHECKING:
    from tests.hostile.faults.trial import Trial

_RESET, _CLOSE, _HALF, _STALL = "reset", "close", "half", "stall"


@dataclass(frozen=True)
class Plan:
    """How some requests are sent, one behind the other."""

    pieces: list[bytes]
    sent: int | None = None
    """The bytes of the requests before the cut."""
    read: int | None = None
    """The bytes of the answers before the cut."""
    how: str = _CLOSE
    """What the cut is: an end of the connection, of one direction, or of all activity."""
    waits: float = field(default=0.0, kw_only=True)
    """Seconds between the requests and a cut that reads nothing."""


class Client:
    def __init__(self, trial: Trial, number: int) -> None:
        self._trial = trial
        self._judge = trial.judge
        self._chance = random.Random(f"{trial.seed}/{number}")
        self._wire: Wire | None = None

    async def work(self) -> None:
        """Asks as long as requests are left."""
        trial, chance = self._trial, self._chance
        while trial.left > 0:
            count = min(trial.left, chance.choice((1,) * 18 + (2, 3)))
            trial.left -= count
            asked = [self._draw() for _ in range(count)]
            await self._exchange(asked, self._plan([self._written(item) for item in asked]))
            if chance.random() < 0.02:
                self._hang_up()
        self._hang_up()

    async def ask_in_peace(self, asked: Asked) -> None:
        await self._exchange([asked], Plan([self._written(asked)]))
        self._hang_up()

    def _draw(self) -> Asked:
        trial, chance = self._trial, self._chance
        tenant = chance.choice("aaabbbc")
        names = list(trial.wanted(tenant, chance))
        if tenant == "a":
            names.append(trial.base)
        name = NOBODY if chance.random() < 0.03 else chance.choice(names)
        shape = chance.choice(WRONG if name != NOBODY and chance.random() < 0.04 else GOOD)
        key = UNKNOWN_KEY if chance.random() < 0.03 else chance.choice(trial.keys[tenant])
        return Asked.make(trial, tenant, key, name, shape)

    def _written(self, asked: Asked) -> bytes:
        body = asked.shape.body(asked.name, asked.id)
        head = [
            f"POST {asked.shape.path} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {asked.key}",
            "Content-Type: application/json",
            f"X-Request-Id: {asked.id}",
        ]
        if self._chance.random() < 0.1:
            head.append("Transfer-Encoding: chunked")
            middle = len(body) // 2
            parts = (body[:middle], body[middle:], b"")
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        else:
            head.append(f"Content-Length: {len(body)}")
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body

    def _plan(self, written: list[bytes]) -> Plan:
        chance, data = self._chance, b"".join(written)
        pieces = [data]
        if (kind := chance.random()) < 0.3:
            ends = sorted(chance.randrange(len(data)) for _ in range(chance.randint(1, 4)))
            pieces = [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
        elif kind < 0.301:
            pieces = [data[at : at + 1] for at in range(len(data))]
        if chance.random() >= self._trial.cut_rate:
            return Plan(pieces)
        if chance.random() < 0.45:
            how = chance.choice((_RESET, _CLOSE) * 6 + (_HALF,))
            if len(written) == 1 and chance.random() < 0.01:
                how = _STALL
            return Plan(pieces, sent=chance.randint(how == _STALL, len(data) - 1), how=how)
        read = 0 if chance.random() < 0.2 else int(2 ** chance.uniform(0, 13))
        waits = chance.choice((0.0, 0.0, 0.002, 0.02))
        return Plan(pieces, read=read, how=chance.choice((_RESET, _CLOSE)), waits=waits)

    async def _exchange(self, asked: list[Asked], plan: Plan) -> None:
        """Sends requests and reads their answers, each of which is judged."""
        wire = self._wire = self._wire or await Wire.open(self._trial.served.address)
        left = list(asked)
        try:
            await self._trial.patiently(self._talk(wire, left, plan))
        except CutError:
            wire.close(by_reset=plan.how == _RESET)
            self._wire = None
            for item in left:
                self._judge.cut(item)
        except (ClosedError, MalformedError, HungError) as error:
            self._hang_up()
            for item in left:
                if plan.sent is not None and isinstance(error, ClosedError):
                    self._judge.cut(item)  # it has left by halves itself
                else:
                    self._judge.lost(item, repr(error))
        if self._wire is not None and (unasked := wire.unasked()) is not None:
            # What is answered before its body has come is given no more time than others.
            if unasked or len(plan.pieces) == 1:
                kind = "doubled" if unasked else "lost"
                self._judge.find(kind, f"after an answer came {unasked!r}", asked[-1])
            self._hang_up()

    async def _talk(self, wire: Wire, left: list[Asked], plan: Plan) -> None:
        """Takes out of `left` what is answered."""
        sent = 0
        for piece in plan.pieces:
            if plan.sent is not None:
                piece = piece[: plan.sent - sent]
            await wire.send(piece)
            sent += len(piece)
            await asyncio.sleep(0)
        if plan.sent is not None and plan.how in (_RESET, _CLOSE):
            raise CutError
        if plan.how == _HALF:
            wire.end_sending()
        wire.left = plan.read
        if plan.read == 0:
            await asyncio.sleep(plan.waits)
        is_slow = plan.how == _STALL or len(plan.pieces) > 1
        while left:
            answer = await wire.answer()
            self._judge.answered(left[0], answer, is_slow=is_slow)
            del left[0]
            if answer.closes:
                raise ClosedError
        if plan.sent is not None:  # answered early: the rest of it must not be taken for a request
            raise CutError
        wire.left = None

    def _hang_up(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
