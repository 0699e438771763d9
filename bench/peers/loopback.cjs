// Loaded into Portkey's gateway, which has no setting for it: it listens on loopback only.
"use strict";
const net = require("node:net");

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...more) {
  return listen.call(this, port, "127.0.0.1", ...more.filter((one) => typeof one === "function"));
};
