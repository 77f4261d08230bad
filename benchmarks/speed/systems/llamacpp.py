"""llama.cpp on a GGUF of the same weights, through the `xllamacpp` wheel.

The wheel's own server runs in this process: continuous batching with one slot per request
(`n_parallel`), requests put in from one thread each, tokens taken from its streaming callback.
No prompt cache, so every prompt is computed. Keys and values are float16, llama.cpp's default.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from benchmarks.speed.systems.protocol import Run, Workload


class LlamaCppSystem:
    """`gguf` is the model file, its weights of `kind`; `max_model_len` tokens of context for each
    slot."""

    def __init__(
        self, gguf: str, kind: str, threads: int, max_running: int, max_model_len: int
    ) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = gguf
        params.n_parallel = max_running
        params.n_ctx = max_running * max_model_len
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.fit_params = False
        params.cache_ram_mib = 0
        params.verbosity = 1
        self._server = xllamacpp.Server(params)
        self.about: dict[str, Any] = {
            "version": f"xllamacpp {version('xllamacpp')}",
            "threads": threads,
            "settings": f"GGUF {kind} weights, f16 KV, {max_running} slots, "
            + " ".join(xllamacpp.get_system_info().split()),
        }

    def run(self, workload: Workload) -> Run:
        start = time.perf_counter()
        streams = [_Stream() for _ in workload.prompts]
        with ThreadPoolExecutor(len(streams)) as pool:
            futures = [
                pool.submit(
                    self._server.handle_completions,
                    {
                        "prompt": prompt,
                        "max_tokens": workload.new_tokens,
                        "temperature": 0.0,
                        "ignore_eos": True,
                        "cache_prompt": False,
                        "stream": True,
                    },
                    stream.take,
                )
                for prompt, stream in zip(workload.prompts, streams, strict=True)
            ]
        for future in futures:
            future.result()
        failures = [stream.failure for stream in streams if stream.failure]
        if failures:
            raise RuntimeError(failures[0])
        return Run(
            arrivals=[[t - start for t in stream.times] for stream in streams],
            tokens=[[] for _ in streams],
            texts=["".join(stream.pieces) for stream in streams],
        )


class _Stream:
    """What has come of one request."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.pieces: list[str] = []
        self.failure = ""

    def take(self, event: Any) -> bool:
        """One event per token, then one with the finish reason and the number of tokens.

        A token that ends within a character has no event of its own; its time is taken to be
        that of the last event.
        """
        now = time.perf_counter()
        if "error" in event:
            self.failure = str(event["error"])
        elif event["choices"][0]["finish_reason"] is None:
            self.times.append(now)
            self.pieces.append(event["choices"][0]["text"])
        else:
            silent = event["usage"]["completion_tokens"] - len(self.times)
            self.times += [now] * silent
        return False
