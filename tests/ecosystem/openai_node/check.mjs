// openai-node, the official SDK. Version 7 wants Node 22; this one runs on Node 20.

import assert from "node:assert/strict";
import OpenAI from "openai";
import {
  API_KEY,
  BASE_URL,
  CITIES,
  LONG_QUESTION,
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
  remembers,
  tell,
  thoughtsApart,
  thoughtsInText,
} from "../contract.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const ask = (fields) => client.chat.completions.create(asked(fields));

function asked({ question = QUESTION, ...fields } = {}) {
  const messages = [{ role: "user", content: question }];
  return { model: MODEL, messages, temperature: 0, max_tokens: 300, ...fields };
}

async function joined(stream) {
  const parts = { content: "", reasoning: "", reasoning_content: "" };
  for await (const chunk of stream) {
    for (const name of Object.keys(parts)) parts[name] += chunk.choices[0].delta[name] ?? "";
  }
  return parts;
}

await tell(
  "openai-node",
  "openai",
  {
    chat: async () => {
      thoughtsInText((await ask()).choices[0].message.content);
    },
    stream: async () => {
      thoughtsInText((await joined(await ask({ stream: true }))).content);
    },
    reasoning: async () => {
      const { message } = (await ask(SPLIT)).choices[0];
      assert.equal(message.reasoning, message.reasoning_content);
      return thoughtsApart(message.reasoning_content, message.content);
    },
    "reasoning streamed": async () => {
      const parts = await joined(await ask({ ...SPLIT, stream: true }));
      assert.equal(parts.reasoning, parts.reasoning_content);
      return thoughtsApart(parts.reasoning_content, parts.content);
    },
    usage: async () => {
      const { usage } = await ask();
      assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
      const { reasoning_tokens: reasoned } = usage.completion_tokens_details;
      assert.ok(reasoned > 0 && reasoned < usage.completion_tokens);
    },
    "json schema": async () => {
      const schema = { name: "person", schema: PERSON_SCHEMA, strict: true };
      const response_format = { type: "json_schema", json_schema: schema };
      const fields = asked({ question: PERSON_QUESTION, response_format });
      const reply = await client.chat.completions.parse(fields);
      assert.deepEqual(JSON.parse(reply.choices[0].message.content), PERSON);
    },
    "tool call": async () => {
      const runner = client.chat.completions.stream(
        asked({
          question: WEATHER_QUESTION,
          tools: [{ type: "function", function: { name: "weather", parameters: WEATHER_SCHEMA } }],
          tool_choice: "required",
        }),
      );
      const [choice] = (await runner.finalChatCompletion()).choices;
      assert.equal(choice.finish_reason, "tool_calls");
      assert.ok(CITIES.includes(JSON.parse(choice.message.tool_calls[0].function.arguments).city));
    },
    "wrong key": async () => {
      const stranger = client.withOptions({ apiKey: WRONG_KEY });
      await assert.rejects(stranger.chat.completions.create(asked()), OpenAI.AuthenticationError);
    },
    "too long": async () => {
      const refused = ask({ question: LONG_QUESTION });
      await assert.rejects(refused, { status: 400, code: "context_length_exceeded" });
    },
    "text completion": async () => {
      const fields = { model: MODEL, prompt: QUESTION, temperature: 0, max_tokens: 20 };
      const whole = (await client.completions.create(fields)).choices[0].text;
      let streamed = "";
      for await (const chunk of await client.completions.create({ ...fields, stream: true })) {
        streamed += chunk.choices[0].text;
      }
      assert.ok(whole);
      assert.equal(streamed, whole);
    },
    turns: async () => {
      const { message } = (await ask(SPLIT)).choices[0];
      const history = [...asked().messages, message, { role: "user", content: NEXT_QUESTION }];
      remembers((await ask({ messages: history })).choices[0].message.content);
    },
  },
  '`reasoning_format: "split"` among the fields, then `message.reasoning_content`',
);
