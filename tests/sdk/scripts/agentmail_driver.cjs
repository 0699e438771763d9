// The `agentmail` of JavaScript, driven from outside as driving.cjs says.
"use strict";
const { Sdk, drive } = require("./driving.cjs");

const PATIENCE_S = 600; // told from a pause by its length; the SDK's own minute is as long as its longest pause

const acts = {
  // Any method of the client, by its way there: `inboxes.messages.send`.
  call(client, seen, { method, args = [] }) {
    const way = method.split(".");
    const last = way.pop();
    const holder = way.reduce((part, name) => part[name], client);
    return holder[last](...args);
  },
  // Subscribes and hears so many messages, then leaves.
  async listen(client, seen, { messages, how = {}, asks = {} }) {
    const socket = await client.websockets.connect(how);
    const heard = new Promise((resolve, reject) => {
      socket.on("error", reject);
      socket.on("message", (message) => {
        seen.push(message);
        if (seen.length === messages) resolve();
      });
    });
    await socket.waitForOpen(); // a handler of `open` was not called (0.5.27)
    socket.sendSubscribe({ type: "subscribe", ...asks });
    await heard;
    socket.close();
  },
  send: (client, seen, { inbox, ...more }) => client.inboxes.messages.send(inbox, { to: "ann@x.y", text: "Hi", ...more }),
};

drive(
  acts,
  ({ url, token, pauses }) =>
    new Sdk.AgentMailClient({ baseUrl: url, apiKey: token, timeoutInSeconds: pauses ? undefined : PATIENCE_S }),
);
