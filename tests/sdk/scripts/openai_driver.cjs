// The `openai` of JavaScript, driven from outside as driving.cjs says.
"use strict";
const { drive } = require("./driving.cjs");

const CHAT = {
  model: "gpt-4o-mini",
  messages: [{ role: "user", content: "Name a bird." }],
  max_tokens: 100,
};
const RESPONSE = { model: "gpt-4o-mini", input: "Name a bird.", max_output_tokens: 100 };

async function all(stream, seen) {
  for await (const one of stream) seen.push(one);
}

const acts = {
  chat: (client, seen, more) => client.chat.completions.create({ ...CHAT, ...more }),
  chat_chunks: async (client, seen, more) =>
    all(await client.chat.completions.create({ ...CHAT, ...more, stream: true }), seen),
  response: (client, seen, more) => client.responses.create({ ...RESPONSE, ...more }),
  response_events: async (client, seen, more) =>
    all(await client.responses.create({ ...RESPONSE, ...more, stream: true }), seen),
  retrieve: (client, seen, { response_id }) => client.responses.retrieve(response_id),
  get: (client, seen, { path }) => client.get(path),
};

drive(acts);
