// The `@google/genai` of JavaScript, driven from outside as driving.cjs says; its client takes options of its own.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");

const folder = process.argv[2];
const { GoogleGenAI } = require(path.join(folder, "dist", "node", "index.cjs"));
const { version } = JSON.parse(fs.readFileSync(path.join(folder, "package.json"), "utf8"));

const MODEL = "gemini-2.5-flash";
const QUESTION = "Name a bird.";
const BIRD = { type: "OBJECT", properties: { name: { type: "STRING" } }, required: ["name"] };

const asked = ({ model = MODEL, contents = QUESTION, ...more }) => ({
  model,
  contents,
  config: { maxOutputTokens: 100, ...more },
});

const acts = {
  generate: async ({ models }, seen, more) => JSON.parse(JSON.stringify(await models.generateContent(asked(more)))),
  async stream({ models }, seen, more) {
    for await (const chunk of await models.generateContentStream(asked(more))) seen.push(chunk.text ?? "");
  },
  async structured({ models }) {
    const config = { responseMimeType: "application/json", responseSchema: BIRD };
    return JSON.parse((await models.generateContent(asked(config))).text);
  },
  async call({ models }) {
    const tools = [{ functionDeclarations: [{ name: "weather", parametersJsonSchema: { type: "object" } }] }];
    const { functionCalls } = await models.generateContent(asked({ tools }));
    return functionCalls.map((call) => [call.name, call.args]);
  },
  async embed({ models }, seen, { texts, model = "gemini-embedding-2" }) {
    const { embeddings } = await models.embedContent({ model, contents: texts });
    return embeddings.map(({ values }) => values);
  },
  count: async ({ models }) => (await models.countTokens({ model: MODEL, contents: QUESTION })).totalTokens,
  async list({ models }, seen, { page_size: pageSize }) {
    const names = [];
    for await (const model of await models.list({ config: { pageSize } })) names.push(model.name);
    return names;
  },
  get: async ({ models }, seen, { name }) => (await models.get({ model: name })).name,
};

function raised(error) {
  const classes = [];
  for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) classes.push(kind.name);
  return { classes, message: String(error.message), code: error.status ?? null, status: null, headers: {} };
}

async function answer(given) {
  const seen = [];
  const began = performance.now();
  const client = new GoogleGenAI({ apiKey: given.token, httpOptions: { baseUrl: given.url } });
  let told;
  try {
    told = { returned: (await acts[given.do](client, seen, given.with)) ?? null };
  } catch (error) {
    told = { raised: raised(error) };
  }
  return { ...told, seen, elapsed_s: (performance.now() - began) / 1000 };
}

async function main() {
  console.log(JSON.stringify({ version }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await answer(JSON.parse(line))));
  }
}

main();
