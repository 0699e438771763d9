// `puppeteer-core` as client of a browser elsewhere, driven from outside as driving.cjs says.
"use strict";
const { Sdk, drive } = require("./driving.cjs");

const acts = {
  // Two pages at once and a picture of the first; then the browser is left.
  async visit(_, seen, { endpoint, first, second }) {
    const browser = await Sdk.connect({ browserWSEndpoint: endpoint, defaultViewport: null });
    try {
      const [page] = await browser.pages();
      const other = await browser.newPage();
      await Promise.all([page.goto(first), other.goto(second)]);
      await page.bringToFront(); // a hidden page is not always drawn
      const picture = await page.screenshot({ encoding: "base64", fullPage: true });
      return { titles: [await page.title(), await other.title()], picture };
    } finally {
      await browser.disconnect();
    }
  },
};

drive(acts, () => undefined);
