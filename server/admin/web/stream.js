// Answers that come in parts: lines of JSON, and server-sent events.

async function* pieces(response, separator) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split(separator);
      rest = parts.pop();
      yield* parts;
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The documents of a body with one in each line. */
export async function* documents(response) {
  for await (const line of pieces(response, "\n")) {
    if (line.trim()) yield JSON.parse(line);
  }
}

/** The documents of OpenAI's stream, up to its end. */
export async function* chunks(response) {
  for await (const event of pieces(response, "\n\n")) {
    const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
    if (data === "[DONE]") return;
    if (data) yield JSON.parse(data);
  }
}
