// Vercel's AI SDK with its openai-compatible provider. Version 7 wants Node 22; this one runs on Node 20.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError,
  Output,
  extractReasoningMiddleware,
  generateText,
  jsonSchema,
  streamText,
  tool,
  wrapLanguageModel,
} from "ai";
import {
  API_KEY,
  BASE_URL,
  CITIES,
  MODEL,
  NEXT_QUESTION,
  PERSON,
  PERSON_QUESTION,
  PERSON_SCHEMA,
  QUESTION,
  SPLIT,
  WEATHER_QUESTION,
  WEATHER_SCHEMA,
  WRONG_KEY,
  answers,
  remembers,
  tell,
  thoughtsApart,
} from "../contract.mjs";

function provider(apiKey = API_KEY) {
  return createOpenAICompatible({
    name: "deeprequest",
    baseURL: BASE_URL,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
}

const model = provider()(MODEL);
const asked = { model, prompt: QUESTION, temperature: 0, maxOutputTokens: 300, maxRetries: 0 };
const split = { ...asked, providerOptions: { deeprequest: SPLIT } };
const byTags = wrapLanguageModel({
  model,
  middleware: extractReasoningMiddleware({ tagName: "think" }),
});

function used({ outputTokens, outputTokenDetails }) {
  const { reasoningTokens } = outputTokenDetails;
  assert.ok(reasoningTokens > 0 && reasoningTokens < outputTokens);
}

await tell(
  "AI SDK openai-compatible",
  "@ai-sdk/openai-compatible",
  {
    chat: async () => answers((await generateText(asked)).text),
    stream: async () => answers(await streamText(asked).text),
    reasoning: async () => {
      for (const fields of [split, { ...asked, model: byTags }]) {
        const { reasoningText, text } = await generateText(fields);
        thoughtsApart(reasoningText, text);
      }
      return "as reasoning";
    },
    "reasoning streamed": async () => {
      for (const fields of [split, { ...asked, model: byTags }]) {
        const stream = streamText(fields);
        thoughtsApart(await stream.reasoningText, await stream.text);
      }
      return "as reasoning";
    },
    usage: async () => {
      used((await generateText(asked)).usage);
      used(await streamText(asked).usage);
    },
    "json schema": async () => {
      const output = Output.object({ schema: jsonSchema(PERSON_SCHEMA) });
      const fields = { ...asked, prompt: PERSON_QUESTION, output };
      assert.deepEqual((await generateText(fields)).output, PERSON);
    },
    "tool call": async () => {
      const weather = tool({ inputSchema: jsonSchema(WEATHER_SCHEMA) });
      const fields = { ...asked, prompt: WEATHER_QUESTION, tools: { weather } };
      const { toolCalls } = await generateText({ ...fields, toolChoice: "required" });
      assert.equal(toolCalls[0].toolName, "weather");
      assert.ok(CITIES.includes(toolCalls[0].input.city));
    },
    "wrong key": async () => {
      const stranger = generateText({ ...asked, model: provider(WRONG_KEY)(MODEL) });
      await assert.rejects(
        stranger,
        (error) => APICallError.isInstance(error) && error.statusCode === 401,
      );
    },
    turns: async () => {
      const question = { role: "user", content: QUESTION };
      const { response } = await generateText(split);
      const messages = [question, ...response.messages, { role: "user", content: NEXT_QUESTION }];
      const { prompt, ...fields } = asked;
      remembers((await generateText({ ...fields, messages })).text);
    },
  },
  '`providerOptions: {deeprequest: {reasoning_format: "split"}}`, or `extractReasoningMiddleware`',
);
