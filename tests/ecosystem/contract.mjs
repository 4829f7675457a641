// contract.py for Node: what the clients of the matrix are asked, and how a check tells what came of it.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

export const BASE_URL = process.env.DEEPREQUEST_BASE_URL;
export const API_KEY = process.env.DEEPREQUEST_API_KEY;
export const SPLIT_API_KEY = process.env.DEEPREQUEST_SPLIT_API_KEY;
export const WRONG_KEY = "sk-of-nobody";
export const MODEL = "deepseek-r1-32b";

export const QUESTION = "How many r's are in the word 'strawberry'?";
export const NEXT_QUESTION = "Which word did I ask about?";
export const LONG_QUESTION = "strawberry ".repeat(4_000);
export const PERSON_QUESTION = "Give me a JSON object with name Ada and age 36.";
export const PERSON = { name: "Ada", age: 36 };
export const PERSON_SCHEMA = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};
export const WEATHER_QUESTION = "How is the weather in Rome?";
export const CITIES = ["Rome", "Oslo"];
export const WEATHER_SCHEMA = {
  type: "object",
  properties: { city: { type: "string", enum: CITIES } },
  required: ["city"],
  additionalProperties: false,
};
export const SPLIT = { reasoning_format: "split" };

export const AS_REASONING = "as reasoning";
export const IN_TEXT = "in text";
const LOST = "lost";
const NOT_APPLICABLE = "n/a";

/** Fails unless QUESTION is answered behind the thoughts, if there are any. */
export function answers(text) {
  assert.match((text ?? "").split("</think>").at(-1), /\b3\b/);
}

/** Fails unless NEXT_QUESTION is answered, after a turn of QUESTION. */
export function remembers(text) {
  assert.match((text ?? "").split("</think>").at(-1), /strawberry/);
}

/** IN_TEXT, if `text` begins with the thoughts about QUESTION in their tags. */
export function thoughtsInText(text) {
  const found = /^<think>\n(.*?)<\/think>\n\n/s.exec(text ?? "");
  assert.ok(found, `no thoughts before ${JSON.stringify(text)}`);
  thoughtsApart(found[1]);
  return IN_TEXT;
}

/** AS_REASONING, if these are the thoughts about QUESTION and `answer` is free of them. */
export function thoughtsApart(thoughts, answer = "3") {
  assert.match(thoughts ?? "", /Let me count the letter r.*10: y 3/s);
  assert.doesNotMatch(`${thoughts}${answer}`, /think>/);
  answers(answer);
  return AS_REASONING;
}

/** Run the checks ({name: function}) in their order, print the JSON line, and set the exit code. */
export async function tell(client, distribution, checks, note = "") {
  const told = {};
  const seen = [];
  for (const [name, check] of Object.entries(checks)) {
    try {
      const place = await check();
      if (typeof place === "string") seen.push(place);
      told[name] = "ok";
    } catch (error) {
      console.error(error);
      told[name] = `${error.name}: ${error.message}`.split("\n")[0].slice(0, 300);
      if (name.startsWith("reasoning")) seen.push(LOST);
    }
  }
  const reasoning =
    [LOST, IN_TEXT, AS_REASONING].find((place) => seen.includes(place)) ?? NOT_APPLICABLE;
  console.log(JSON.stringify({ client, version: versionOf(distribution), checks: told, reasoning, note }));
  process.exitCode = Object.values(told).every((outcome) => outcome === "ok") ? 0 : 1;
}

/** From the package's own package.json, which need not be among its exports. */
function versionOf(distribution) {
  const folders = createRequire(import.meta.url).resolve.paths(distribution);
  for (const folder of folders) {
    try {
      return JSON.parse(readFileSync(join(folder, distribution, "package.json"), "utf8")).version;
    } catch {
      continue;
    }
  }
  throw new Error(`${distribution} is not installed above ${dirname(import.meta.url)}`);
}
