// The `@anthropic-ai/sdk` of JavaScript, driven from outside as driver.py drives the one of Python: one JSON object a
// line in, one out. Usage: driver.cjs FOLDER_OF_THE_SDK
"use strict";
const path = require("node:path");
const readline = require("node:readline");

const folder = process.argv[2];
const Anthropic = require(folder);
const { version } = require(path.join(folder, "package.json"));

const SMALL = {
  model: "claude-haiku-4-5",
  max_tokens: 100,
  messages: [{ role: "user", content: "Name a bird." }],
};
const PAUSE_MS_MAX = 120_000; // longer ones are the SDK's timeouts of whole requests

const acts = {
  create: (client, seen, more) => client.messages.create({ ...SMALL, ...more }),
  async text_stream(client, seen, more) {
    const stream = client.messages.stream({ ...SMALL, ...more });
    stream.on("text", (text) => seen.push(text));
    return stream.finalMessage();
  },
  async raw_events(client, seen, more) {
    for await (const event of await client.messages.create({ ...SMALL, ...more, stream: true })) seen.push(event.type);
  },
  get: (client, seen, { path }) => client.get(path),
};

function raised(error) {
  const classes = [];
  for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) classes.push(kind.name);
  return {
    classes,
    message: String(error.message),
    status: error.status ?? null,
    body: error.error ?? null,
    request_id: error.requestID ?? null,
    headers: error.headers ? Object.fromEntries(error.headers) : {},
  };
}

// While it runs, what the SDK itself would wait before another try is written down and not waited.
async function withoutPauses(waits, run) {
  const later = globalThis.setTimeout;
  globalThis.setTimeout = (call, ms, ...more) => {
    const isPause = ms <= PAUSE_MS_MAX && new Error().stack.includes(folder);
    if (isPause) waits.push(ms / 1000);
    return later(call, isPause ? 0 : ms, ...more);
  };
  try {
    return await run();
  } finally {
    globalThis.setTimeout = later;
  }
}

async function answer(asked) {
  const seen = [];
  const waits = [];
  const began = performance.now();
  const client = new Anthropic({ baseURL: asked.url, apiKey: asked.token, maxRetries: asked.client.max_retries });
  const run = async () => acts[asked.do](client, seen, asked.with);
  let told;
  try {
    told = { returned: (await (asked.pauses ? run() : withoutPauses(waits, run))) ?? null };
  } catch (error) {
    told = { raised: raised(error) };
  }
  return { ...told, seen, waits, elapsed_s: (performance.now() - began) / 1000 };
}

async function main() {
  console.log(JSON.stringify({ version }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await answer(JSON.parse(line))));
  }
}

main();
