"""Wrong options of every command: one line that is no internal error, and not 0.

Servers are never started for real: where one could come up, an option is wrong before that.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.told import told

SERVE = ("serve", "--base", "anything", "--engine", "fake", "--port", "0")
OPTIONS: tuple[tuple[str, ...], ...] = (
    ("--nope",),
    ("nope",),
    ("check",),
    ("check", "a", "b"),
    ("check", "a", "--json", "yes"),
    ("eval", "a"),
    ("eval", "a", "b", "--limit", "0"),
    ("eval", "a", "b", "--batch-size", "-1"),
    ("eval", "a", "b", "--max-length", "1"),
    ("eval", "a", "b", "--max-length", "1e3"),
    ("eval", "nowhere", "nowhere.jsonl"),
    ("train",),
    ("train", "nowhere.yaml"),
    ("train", "."),
    ("train", "/dev/null"),
    ("serve",),
    ("serve", "--engine", "vllm"),
    ("serve", "--base"),
    ("serve", "--engine", "fake", "--max-running", "0"),
    ("serve", "--engine", "fake", "--max-model-len", "-1"),
    ("serve", "--engine", "fake", "--token-seconds", "-1"),
    ("serve", "--engine", "fake", "--prefill-seconds", "nan"),
    ("serve", "--engine", "fake", "--threads", "2"),
    ("serve", "--engine", "fake", "--dtype", "float32"),
    ("serve", "--base", "x", "--port", "0", "--token-seconds", "1"),
    (*SERVE, "--keep-alive-seconds", "-1"),
    (*SERVE, "--cors-origin", "app.example"),
    (*SERVE, "--cors-origin", "https://app.example/"),
    (*SERVE, "--port", "65536"),
    (*SERVE, "--port", "-1"),
    (*SERVE, "--port", "http"),
    (*SERVE, "--port", "9" * 400),
    (*SERVE, "--host", "no.such.host.invalid"),
    (*SERVE, "--host", ""),
    (*SERVE, "--host", "a b"),
    (*SERVE, "--host", "x" * 300),
    (*SERVE, "--host", "é..x"),
    (*SERVE, "--engine", "other"),
    (*SERVE, "--adapter", "pirate"),
    (*SERVE, "--adapter", "=folder"),
    (*SERVE, "--adapter", "pirate="),
    (*SERVE, "--adapter", "a b=folder"),
    (*SERVE, "--adapter", "a\nb=folder"),
    (*SERVE, "--adapter", "pirate=nowhere"),
    (*SERVE, "--adapter", "pirate=a\nb"),
    (*SERVE, "--adapter", "pirate=" + "x" * 300),
    (*SERVE, "--adapter", "pirate=a", "--adapter", "pirate=b"),
    (*SERVE, "--adapter", "anything=a"),
    (*SERVE, "--adapter", "pirate=a", "--data-dir", "data"),
    (*SERVE, "--data-dir", "data"),
    (*SERVE, "--api-key", ""),
    (*SERVE, "--api-key", "schlüssel"),
    (*SERVE, "--log-level", "loud"),
    (*SERVE, "--drain-seconds", "nan"),
    (*SERVE, "--drain-seconds", "-1"),
    (*SERVE, "--drain-seconds", "inf"),
    (*SERVE, "--max-body-bytes", "0"),
    (*SERVE, "--max-choices", "0"),
    (*SERVE, "--default-max-tokens", "0"),
    ("serve", "--base", "x", "--port", "0", "--max-running", "0"),
    ("serve", "--base", "x", "--port", "0", "--max-waiting", "-1"),
    ("serve", "--base", "x", "--port", "0", "--threads", "0"),
    ("serve", "--base", "x", "--port", "0", "--threads", "many"),
    ("serve", "--base", "x", "--port", "0", "--kv-cache-bytes", "-1"),
    ("serve", "--base", "x", "--port", "0", "--adapter-slots", "0"),
    ("serve", "--base", "x", "--port", "0", "--max-tokens-per-step", "0"),
    ("serve", "--base", "x", "--port", "0", "--dtype", "int3"),
    ("serve", "--base", "x", "--port", "0", "--device", "tpu"),
    ("serve", "--base", "x", "--port", "0", "--tensor-parallel-size", "2"),
    ("serve", "--base", "x", "--port", "0", "--engine-args", "{"),
    ("serve", "--base", "x", "--port", "0", "--engine-args", "[]"),
    ("serve", "--base", "x", "--port", "0", "--engine", "vllm", "--threads", "2"),
    ("serve", "--base", "", "--port", "0"),
    ("demo-model", "--cache", "/dev/null"),
    ("bench",),
    ("bench", "--base", "nowhere"),
    ("bench", "--base", "nowhere", "--suite", "other"),
    ("bench", "--base", "nowhere", "--suite", "determinism"),
    ("bench", "--base", "nowhere", "--adapter-shape", "8,4"),
    ("bench", "--base", "nowhere", "--adapter-shape", "a,b,c"),
    ("bench", "--base", "nowhere", "--adapter-shape", "1,2,3"),
    ("bench", "--base", "nowhere", "--batches", "0"),
    ("bench", "--base", "nowhere", "--batches", ""),
    ("bench", "--base", "nowhere", "--batches", "1,x"),
    ("bench", "--base", "nowhere", "--prompt", "medium"),
    ("bench", "--base", "nowhere", "--peers", "ollama"),
    ("bench", "--base", "nowhere", "--rounds", "0"),
    ("bench", "--base", "nowhere", "--threads", "0"),
    ("bench", "--base", "nowhere", "--new-tokens", "1"),
    ("tenant", "create"),
    ("tenant", "create", "acme"),
    ("tenant", "create", "acme", "--admin-url", "nonsense"),
    ("tenant", "create", "acme", "--admin-url", "http://127.0.0.1:99999"),
    ("tenant", "create", "acme", "--admin-url", "http://[::1"),
    ("tenant", "create", "acme", "--admin-url", "ftp://127.0.0.1"),
    ("tenant", "create", "acme", "--admin-url", "http://127.0.0.1:1"),
    ("tenant", "key", ".."),
    ("tenant", "quota", "acme", "--max-concurrent", "-1"),
    ("adapter", "import"),
    ("adapter", "import", "nowhere", "--admin-url", "http://127.0.0.1:1"),
    ("set", "apply"),
    ("set", "apply", "-f", "nowhere.yaml"),
    ("set", "apply", "-f", "."),
    ("set", "revisions", "acme", "--limit", "0"),
)


def short(arguments: tuple[str, ...]) -> str:
    return ascii(" ".join(arguments))[:80]


@pytest.mark.parametrize("arguments", OPTIONS, ids=short)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    if arguments[0] in ("tenant", "adapter", "set"):
        monkeypatch.setenv("REMIX_ADMIN_KEY", "the-key-of-the-operator")
    monkeypatch.chdir(tmp_path)
    told(capsys, *arguments)


@pytest.mark.parametrize("command", [("tenant", "list"), ("adapter", "list"), ("set", "show", "a")])
@pytest.mark.parametrize("key", [None, "", "sesame\nopen", "schlüsselloch", "sesame-open "])
def test_a_client_without_a_usable_key(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    key: str | None,
) -> None:
    monkeypatch.delenv("REMIX_ADMIN_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("REMIX_ADMIN_KEY", key)
    assert "REMIX_ADMIN_KEY" in told(capsys, *command, code=1)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("REMIX_PORT", value) for value in ("x", "", "-1", "70000", "1.5")),
        *(("REMIX_API_KEY", value) for value in ("", "sesame\nopen", "schlüsselloch")),
        *(("REMIX_API_KEY", value) for value in ("x", "abc", " sesame-open", "sesame-open ")),
        *(("REMIX_ALLOWED_HOST", value) for value in ("https://a.example", "a.example:80")),
        *(("REMIX_IMPORT_NETWORK", value) for value in ("10.0.0.1/8", "a.example", "10.0.0.0/40")),
        ("REMIX_IMPORT_SECONDS", "0"),
        ("REMIX_IMPORT_HTTP", "perhaps"),
        ("REMIX_LOG_LEVEL", "loud"),
        ("REMIX_ACCESS_LOG", "perhaps"),
        ("REMIX_CORS_ORIGIN", "https://a.example b"),
        ("REMIX_KEEP_ALIVE_SECONDS", "inf"),
        ("REMIX_DRAIN_SECONDS", "nan"),
        ("REMIX_MAX_CHOICES", "0"),
        ("REMIX_MAX_BODY_BYTES", "4MiB"),
        ("REMIX_POLL_SECONDS", "0"),
        ("REMIX_KEY_GRACE_SECONDS", "inf"),
    ],
)
def test_variables_with_a_bad_value(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)
    assert variable in told(capsys, "serve", "--base", "anything", "--engine", "fake", code=1)
