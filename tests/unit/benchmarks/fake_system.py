"""A system whose speed is written in its options, so that a bench round has a known result."""

from __future__ import annotations

import time

from benchmarks.speed.systems.protocol import Run, Workload


class FakeSystem:
    """Token i of every request arrives at (i + 1) * `seconds_per_token`; prompts of `broken_at`
    tokens fail, prompts of `dies_at` tokens end the process."""

    def __init__(
        self, seconds_per_token: float, broken_at: int = -1, dies_at: int = -1, spin: bool = False
    ) -> None:
        if seconds_per_token <= 0:
            raise ValueError("seconds_per_token: expected more than 0\nsecond line")
        self.about = {"version": "fake 1", "threads": 1, "settings": f"{seconds_per_token} s"}
        self._seconds = seconds_per_token
        self._broken_at = broken_at
        self._dies_at = dies_at
        if spin:
            self._spin()

    def run(self, workload: Workload) -> Run:
        print("noise on stdout must not reach the answers")
        if len(workload.prompts[0]) == self._broken_at:
            raise RuntimeError("broken prompt")
        if len(workload.prompts[0]) == self._dies_at:
            raise SystemExit(3)
        row = [(i + 1) * self._seconds for i in range(workload.new_tokens)]
        tokens = [[sum(prompt) % 97] * workload.new_tokens for prompt in workload.prompts]
        return Run(arrivals=[row] * len(workload.prompts), tokens=tokens)

    def _spin(self) -> None:
        """Uses a core for ever, as an OpenMP team that never sleeps."""
        import threading

        def burn() -> None:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                sum(range(10_000))

        threading.Thread(target=burn, daemon=True).start()


class FakeEngine(FakeSystem):
    """Takes the options of the embedded engine."""

    def __init__(self, engine: dict[str, object]) -> None:
        super().__init__(seconds_per_token=0.001)
        self.about["settings"] = str(engine)
