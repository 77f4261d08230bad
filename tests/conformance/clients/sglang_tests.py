"""SGLang's own tests of tool_choice, as it runs them for Llama 3.2."""

from __future__ import annotations

import os
import sys
import unittest
from pathlib import Path

from calls import API_KEY, BASE_URL
from foreign_tests import StandIns, run_tests

SOURCE = Path(os.environ["CONFORMANCE_SOURCE"])

sys.meta_path.insert(
    0,
    StandIns(
        "sglang",
        {
            "CustomTestCase": unittest.TestCase,
            "DEFAULT_URL_FOR_TEST": BASE_URL.removesuffix("/v1"),
        },
    ),
)
run_tests(
    [SOURCE / "test/registered/openai_server/function_call/test_tool_choice.py"],
    {"sk-123456": API_KEY},
    selected="TestToolChoiceLlama32",
)
