// What k6 sends: chats at a steady rate, or streams that are held open beside small questions.
import http from "k6/http";
import { check, sleep } from "k6";

export const options = JSON.parse(__ENV.OPTIONS);

const HEADERS = { "Content-Type": "application/json" };

function chat(stream, tokens) {
  const body = {
    model: "fake-base",
    messages: [{ role: "user", content: "What is the capital of France?" }],
    max_tokens: tokens,
    temperature: 0,
    ignore_eos: true,
    stream,
  };
  const params = { headers: HEADERS, timeout: "120s" };
  return http.post(`${__ENV.URL}/v1/chat/completions`, JSON.stringify(body), params);
}

export function whole() {
  check(chat(false, 1), { "whole answer": (r) => r.status === 200 && r.body.includes("usage") });
}

export function stream() {
  check(chat(true, 16), { "whole stream": (r) => r.body.endsWith("data: [DONE]\n\n") });
}

export function hold() {
  sleep(5 * Math.random());
  check(chat(true, 1), {
    "held stream": (r) => r.body.includes(": waiting") && r.body.endsWith("data: [DONE]\n\n"),
  });
}

export function look() {
  check(http.get(`${__ENV.URL}/v1/models`), { "answer beside": (r) => r.status === 200 });
}
