// What the drivers of the SDKs of JavaScript have in common, as driving.py for those of Python: one JSON object a line
// in, one out. Usage: DRIVER FOLDER_OF_THE_SDK
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");

const folder = fs.realpathSync(process.argv[2]); // as it stands in stacks
const Sdk = require(folder);
const { version } = require(path.join(folder, "package.json"));

const PAUSE_MS_MAX = 120_000; // longer ones are the SDK's timeouts of whole requests

function raised(error) {
  const classes = [];
  for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) classes.push(kind.name);
  const headers = error.headers ?? error.rawResponse?.headers ?? {}; // a plain object in older SDKs
  return {
    classes,
    message: String(error.message),
    status: error.status ?? error.statusCode ?? null,
    body: error.error ?? error.body ?? null,
    request_id: error.requestID ?? null,
    headers: Object.fromEntries(Symbol.iterator in headers ? headers : Object.entries(headers)),
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

const usual = (asked) => new Sdk({ baseURL: asked.url, apiKey: asked.token, maxRetries: asked.client.max_retries });

async function answer(acts, clientFor, asked) {
  const seen = [];
  const waits = [];
  const began = performance.now();
  const client = clientFor(asked);
  const run = async () => acts[asked.do](client, seen, asked.with);
  let told;
  try {
    told = { returned: (await (asked.pauses ? run() : withoutPauses(waits, run))) ?? null };
  } catch (error) {
    told = { raised: raised(error) };
  }
  return { ...told, seen, waits, elapsed_s: (performance.now() - began) / 1000 };
}

async function drive(acts, clientFor = usual) {
  console.log(JSON.stringify({ version }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await answer(acts, clientFor, JSON.parse(line))));
  }
}

module.exports = { Sdk, drive };
