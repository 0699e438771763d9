// The `@anthropic-ai/sdk` of JavaScript, driven from outside as driving.cjs says.
"use strict";
const { drive } = require("./driving.cjs");

const SMALL = {
  model: "claude-haiku-4-5",
  max_tokens: 100,
  messages: [{ role: "user", content: "Name a bird." }],
};

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

drive(acts);
