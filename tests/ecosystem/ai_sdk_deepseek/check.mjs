// Vercel's AI SDK with its DeepSeek provider. It sends no field that DeepSeek's API lacks, so its key says
// that thoughts are to be split off.

import assert from "node:assert/strict";
import { createDeepSeek } from "@ai-sdk/deepseek";
import { APICallError, Output, generateText, jsonSchema, streamText, tool } from "ai";
import {
  BASE_URL,
  CITIES,
  MODEL,
  NEXT_QUESTION,
  PERSON,
  PERSON_QUESTION,
  PERSON_SCHEMA,
  QUESTION,
  SPLIT_API_KEY,
  WEATHER_QUESTION,
  WEATHER_SCHEMA,
  WRONG_KEY,
  answers,
  remembers,
  tell,
  thoughtsApart,
} from "../contract.mjs";

const provider = (apiKey) => createDeepSeek({ baseURL: BASE_URL, apiKey });
const model = provider(SPLIT_API_KEY)(MODEL);
const options = { model, temperature: 0, maxOutputTokens: 300, maxRetries: 0 };
const asked = { ...options, prompt: QUESTION };

await tell(
  "AI SDK deepseek",
  "@ai-sdk/deepseek",
  {
    chat: async () => answers((await generateText(asked)).text),
    stream: async () => answers(await streamText(asked).text),
    reasoning: async () => {
      const { reasoningText, text } = await generateText(asked);
      return thoughtsApart(reasoningText, text);
    },
    "reasoning streamed": async () => {
      const stream = streamText(asked);
      return thoughtsApart(await stream.reasoningText, await stream.text);
    },
    usage: async () => {
      const { outputTokens, outputTokenDetails } = (await generateText(asked)).usage;
      const { reasoningTokens } = outputTokenDetails;
      assert.ok(reasoningTokens > 0 && reasoningTokens < outputTokens);
    },
    "json schema": async () => {
      const output = Output.object({ schema: jsonSchema(PERSON_SCHEMA) });
      const fields = { ...options, prompt: PERSON_QUESTION, output };
      assert.deepEqual((await generateText(fields)).output, PERSON);
    },
    "tool call": async () => {
      const weather = tool({ inputSchema: jsonSchema(WEATHER_SCHEMA) });
      const fields = { ...options, prompt: WEATHER_QUESTION, tools: { weather } };
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
      const { response } = await generateText(asked);
      const question = { role: "user", content: QUESTION };
      const messages = [question, ...response.messages, { role: "user", content: NEXT_QUESTION }];
      remembers((await generateText({ ...options, messages })).text);
    },
  },
  "a key with `--reasoning-format split`, as it sends no field of ours",
);
