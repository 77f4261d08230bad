// openai for Node: chat, stream, parse, tools, responses, completions, models.

import { API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, check, run } from "./calls.mjs";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat, zodFunction } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });
const to = { model: MODEL, temperature: 0, max_tokens: 200 };
const messages = [{ role: "user", content: QUESTION }];
const City = z.object({ name: z.string(), country: z.string() });
const parameters = z.object({ city: z.string() });
const getWeather = zodFunction({
  name: "get_weather",
  parameters,
  function: ({ city }) => `Sunny in ${city}, 21 degrees.`,
});

call("models", async () => {
  const names = (await client.models.list()).data.map((model) => model.id);
  check(names.includes(MODEL), `${MODEL} is not among ${names}`);
  return names.join(", ");
});

call("chat", async () => {
  const answer = await client.chat.completions.create({ ...to, messages });
  check(answer.choices[0].message.content, "no text");
  return answer.choices[0].message.content;
});

call("chat, stream", async () => {
  const stream = client.chat.completions.stream({ ...to, messages });
  const text = await stream.finalContent();
  check(text, "no text");
  return text;
});

call("chat, parse", async () => {
  const response_format = zodResponseFormat(City, "city");
  const answer = await client.chat.completions.parse({ ...to, messages, response_format });
  return City.parse(answer.choices[0].message.parsed);
});

call("tools, required", async () => {
  const answer = await client.chat.completions.parse({
    ...to,
    messages: [{ role: "user", content: WEATHER }],
    tools: [getWeather],
    tool_choice: "required",
  });
  return parameters.parse(answer.choices[0].message.tool_calls[0].function.parsed_arguments);
});

call("tools, stream", async () => {
  const stream = client.chat.completions.stream({
    ...to,
    messages: [{ role: "user", content: WEATHER }],
    tools: [getWeather],
    tool_choice: "required",
  });
  let pieces = 0;
  stream.on("tool_calls.function.arguments.delta", () => (pieces += 1));
  const answer = await stream.finalChatCompletion();
  check(pieces >= 2, `the arguments came in ${pieces} pieces`);
  return parameters.parse(answer.choices[0].message.tool_calls[0].function.parsed_arguments);
});

call("runTools", async () => {
  const runner = client.chat.completions.runTools(
    { ...to, messages: [{ role: "user", content: WEATHER }], tools: [getWeather] },
    { maxChatCompletions: 3 },
  );
  await runner.done();
  return runner.messages.at(-1).content ?? "called again";
});

call("completions", async () => {
  const prompt = "The capital of France is";
  return (await client.completions.create({ model: MODEL, prompt, max_tokens: 8 })).choices[0].text;
});

call("responses", async () => {
  const answer = await client.responses.create({
    model: MODEL,
    input: QUESTION,
    max_output_tokens: 48,
  });
  check(answer.output_text, "no text");
  return answer.output_text;
});

call("responses, stream", async () => {
  const stream = client.responses.stream({ model: MODEL, input: QUESTION, max_output_tokens: 48 });
  let text = "";
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  const final = await stream.finalResponse();
  check(text && text === final.output_text, `${text} is not ${final.output_text}`);
  return text;
});

call("responses, parse", async () => {
  const answer = await client.responses.parse({
    model: MODEL,
    input: QUESTION,
    temperature: 0,
    max_output_tokens: 200,
    text: { format: zodTextFormat(City, "city") },
  });
  return City.parse(answer.output_parsed);
});

await run();
