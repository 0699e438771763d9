// The `@browserbasehq/sdk` of JavaScript, driven from outside as driving.cjs says.
"use strict";
const { Sdk, drive } = require("./driving.cjs");

const PATIENCE_MS = 600_000; // told from a pause by its length; the SDK's own minute is as long as its longest pause

const KEPT = "api_timeout"; // named as in Python's SDK, unlike all others
const camel = (name) => (name === KEPT ? name : name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase()));
const options = (given) => Object.fromEntries(Object.entries(given).map(([name, value]) => [camel(name), value]));
const base64 = async (response) => Buffer.from(await response.arrayBuffer()).toString("base64");
const file = (name, text) => Sdk.toFile(Buffer.from(text), name);

const acts = {
  create: (bb, seen, more) => bb.sessions.create(options(more)),
  retrieve: (bb, seen, { of }) => bb.sessions.retrieve(of),
  list: (bb, seen, more) => bb.sessions.list(more),
  release: (bb, seen, { of }) => bb.sessions.update(of, { status: "REQUEST_RELEASE" }),
  debug: (bb, seen, { of }) => bb.sessions.debug(of),
  logs: (bb, seen, { of }) => bb.sessions.logs.list(of),
  recording: (bb, seen, { of }) => bb.sessions.recording.retrieve(of),
  make_movies: (bb, seen, { of }) => bb.sessions.recording.downloads.create(of),
  movies: (bb, seen, { of }) => bb.sessions.recording.downloads.list(of),
  replays: (bb, seen, { of }) => bb.sessions.replays.retrieve(of),
  downloads: async (bb, seen, { of }) => base64(await bb.sessions.downloads.list(of)),
  upload: async (bb, seen, { of, name, text }) => bb.sessions.uploads.create(of, { file: await file(name, text) }),
  create_context: (bb, seen, more) => bb.contexts.create(more),
  context: (bb, seen, { of }) => bb.contexts.retrieve(of),
  delete_context: async (bb, seen, { of }) => void (await bb.contexts.delete(of)), // the answer itself, where it has no body
  create_extension: async (bb, seen, { name, text }) => bb.extensions.create({ file: await file(name, text) }),
  extension: (bb, seen, { of }) => bb.extensions.retrieve(of),
  delete_extension: async (bb, seen, { of }) => void (await bb.extensions.delete(of)),
  projects: (bb) => bb.projects.list(),
};

drive(
  acts,
  ({ url, token, pauses }) => new Sdk({ baseURL: url, apiKey: token, timeout: pauses ? undefined : PATIENCE_MS }),
);
