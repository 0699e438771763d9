// `playwright-core` as client of a browser elsewhere, driven from outside as driving.cjs says.
"use strict";
const fs = require("node:fs/promises");
const { Sdk, drive } = require("./driving.cjs");

const PATIENCE_MS = 20_000;

const acts = {
  // Two pages at once, a picture of the first, a file that it links to; then the browser is left.
  async visit(_, seen, { endpoint, first, second, link, saved }) {
    const browser = await Sdk.chromium.connectOverCDP(endpoint, { timeout: PATIENCE_MS });
    try {
      const [context] = browser.contexts();
      context.setDefaultTimeout(PATIENCE_MS);
      const page = context.pages()[0] ?? (await context.newPage());
      const other = await context.newPage();
      await Promise.all([page.goto(first), other.goto(second)]);
      await page.bringToFront(); // a hidden page is not always drawn
      const picture = (await page.screenshot({ fullPage: true })).toString("base64");
      const [download] = await Promise.all([page.waitForEvent("download"), page.click(link)]);
      await download.saveAs(saved);
      return {
        titles: [await page.title(), await other.title()],
        picture,
        name: download.suggestedFilename(),
        size: (await fs.stat(saved)).size,
      };
    } finally {
      await browser.close();
    }
  },
  async connect(_, seen, { endpoint }) {
    const browser = await Sdk.chromium.connectOverCDP(endpoint, { timeout: PATIENCE_MS });
    await browser.close();
  },
  // Says that it is there by a file, and stays until it is cut off.
  async stay(_, seen, { endpoint, first, here }) {
    const browser = await Sdk.chromium.connectOverCDP(endpoint, { timeout: PATIENCE_MS });
    const gone = new Promise((resolve) => browser.once("disconnected", resolve));
    const page = await browser.contexts()[0].newPage();
    await page.goto(first);
    const waiting = page.waitForEvent("download", { timeout: 0 }).catch((error) => error.message);
    await fs.writeFile(here, "");
    await gone;
    return await waiting;
  },
};

drive(acts, () => undefined);
