// Loaded into every Node process of OpenClaw: writes down each host it looks up or connects to, one a line, and lets
// it reach none but this machine.
"use strict";
const dns = require("node:dns");
const fs = require("node:fs");
const net = require("node:net");

const LOOPBACK = new Set(["127.0.0.1", "::1", "localhost"]);

// An error as of a name that does not exist, or null where the host may be reached.
function refusal(host) {
  fs.appendFileSync(process.env.CONNECTIONS_FILE, `${host}\n`);
  return LOOPBACK.has(host) ? null : Object.assign(new Error(`no way to ${host}`), { code: "ENOTFOUND" });
}

const connect = net.Socket.prototype.connect;
net.Socket.prototype.connect = function (...given) {
  const [first, second] = Array.isArray(given[0]) ? given[0] : given;
  const options = typeof first === "object" && first !== null ? first : { port: first, host: second };
  const error = options.path ? null : refusal(options.host ?? "localhost");
  return error ? this.destroy(error) : connect.apply(this, given);
};

const lookup = dns.lookup;
dns.lookup = function (host, ...more) {
  const error = refusal(host);
  return error ? process.nextTick(more.at(-1), error) : lookup.call(this, host, ...more);
};

const lookupLater = dns.promises.lookup;
dns.promises.lookup = async function (host, ...more) {
  const error = refusal(host);
  if (error) throw error;
  return lookupLater.call(this, host, ...more);
};
