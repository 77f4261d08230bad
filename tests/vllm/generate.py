"""A process that runs vLLM's `LLM` once: a job as JSON on stdin, token ids as JSON in a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tests.vllm_engines  # noqa: F401  sets what vLLM reads at import


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    job = json.load(sys.stdin)
    llm = LLM(**job["llm"])
    folders = sorted({folder for _, folder in job["requests"] if folder})
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in job["requests"]],
        SamplingParams(temperature=0, max_tokens=job["new_tokens"], ignore_eos=True),
        lora_request=[
            LoRARequest(folder, 1 + folders.index(folder), folder) if folder else None
            for _, folder in job["requests"]
        ],
        use_tqdm=False,
    )
    # vLLM prints on stdout, until its end.
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    Path(sys.argv[1]).write_text(json.dumps(tokens))


if __name__ == "__main__":
    main()
