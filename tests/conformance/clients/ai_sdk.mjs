// Vercel's `ai`: text, streams, objects and tools, by @ai-sdk/openai (its default is the responses
// API), by its chat models, and by @ai-sdk/openai-compatible.

import { API_KEY, BASE_URL, MODEL, QUESTION, WEATHER, call, check, run } from "./calls.mjs";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const openai = createOpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const compatible = createOpenAICompatible({
  name: "served",
  baseURL: BASE_URL,
  apiKey: API_KEY,
  supportsStructuredOutputs: true,
});
const City = z.object({ name: z.string(), country: z.string() });
const tools = {
  get_weather: tool({
    description: "The weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `Sunny in ${city}, 21 degrees.`,
  }),
};
const models = {
  "@ai-sdk/openai": openai(MODEL),
  "@ai-sdk/openai chat": openai.chat(MODEL),
  "openai-compatible": compatible(MODEL),
};

for (const [name, model] of Object.entries(models)) {
  const to = { model, temperature: 0, maxOutputTokens: 200, maxRetries: 0 };

  call(`${name}, generateText`, async () => {
    const { text } = await generateText({ ...to, prompt: QUESTION });
    check(text, "no text");
    return text;
  });

  call(`${name}, streamText`, async () => {
    const failed = [];
    const stream = streamText({
      ...to,
      prompt: QUESTION,
      onError: ({ error }) => failed.push(error),
    });
    let text = "";
    for await (const part of stream.textStream) text += part;
    if (failed.length) throw failed[0];
    check(text, "no text");
    return text;
  });

  call(`${name}, generateObject`, async () => {
    const { object } = await generateObject({ ...to, prompt: QUESTION, schema: City });
    return City.parse(object);
  });

  call(`${name}, output`, async () => {
    const output = Output.object({ schema: City });
    return City.parse((await generateText({ ...to, prompt: QUESTION, output })).output);
  });

  call(`${name}, tools`, async () => {
    const answer = await generateText({
      ...to,
      prompt: WEATHER,
      tools,
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
      stopWhen: stepCountIs(2),
    });
    check(answer.steps[0].toolResults.length > 0, "the tool was not called");
    return answer.text;
  });

  call(`${name}, streamed tools`, async () => {
    const failed = [];
    const stream = streamText({
      ...to,
      prompt: WEATHER,
      tools,
      toolChoice: { type: "tool", toolName: "get_weather" },
      onError: ({ error }) => failed.push(error),
    });
    await stream.consumeStream();
    if (failed.length) throw failed[0];
    const [found] = await stream.toolCalls;
    check(typeof found?.input.city === "string", "the tool was not called");
    return found.input;
  });
}

call("openai-compatible, completionModel", async () => {
  const model = compatible.completionModel(MODEL);
  const { text } = await generateText({ model, prompt: "The capital of France is", maxRetries: 0 });
  return text;
});

await run();
