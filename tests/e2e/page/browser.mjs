// A headless Chromium at the page, and what it must never do.
//
// In: an address. Out: a page whose console errors, violations of the policy and requests to other
// origins are kept, so that a test can demand that there are none; screenshots as test output.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const require = createRequire(path.join(process.env.OUTRIGGER_BROWSER, "package.json"));
const { chromium } = require("playwright-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** How long anything may take to show; nothing here is about speed. */
export const PATIENCE = 20_000;

export async function launch() {
  // Tests run as root in a container, where Chromium has no sandbox of its own and little shared memory.
  return chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"] });
}

/** Opens the page. `allowed` are parts of console errors that this test provokes. */
export async function open(browser, address, { width = 1280, height = 800, theme = "light", allowed = [] } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: theme, reducedMotion: "reduce", locale: "en-GB" });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const wrong = [];
  page.on("console", (message) => {
    if (message.type() === "error" && !allowed.some((part) => message.text().includes(part))) wrong.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => wrong.push(`error: ${error.stack}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith("data:") && new URL(url).origin !== new URL(address).origin) wrong.push(`a request to another origin: ${url}`);
  });
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
  });
  page.wrong = async () => {
    const violations = await page.evaluate(() => window.violations);
    return [...wrong, ...violations.map((one) => `policy: ${one}`)];
  };
  return page;
}

/** Waits until `check` holds; fails with what it last said. */
export async function eventually(what, check) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`${what}: ${error.message}`, { cause: error });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

/** The text of what is shown, with its blanks made one. */
export async function shown(page, selector = "main") {
  return (await page.locator(selector).first().innerText()).replace(/\s+/g, " ");
}

/** Waits until `selector` shows all of these. */
export async function shows(page, selector, ...parts) {
  return eventually(`${selector} to show ${parts.join(", ")}`, async () => {
    const text = await shown(page, selector);
    for (const part of parts) assert.ok(part instanceof RegExp ? part.test(text) : text.includes(part), `no ${part} in: ${text.slice(0, 1500)}`);
    return text;
  });
}

/** Nothing may be wider than the window. */
export async function fits(page, name) {
  const wide = await page.evaluate(() => {
    const most = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= most) return [];
    return [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > most + 1).map((one) => `${one.tagName}.${one.className.baseVal ?? one.className}`).slice(0, 8);
  });
  assert.deepEqual(wide, [], `${name} is wider than the window`);
}

/** Contrast, names, roles and order, as axe-core judges them. */
export async function accessible(page, name) {
  // The page's policy lets no script in that it does not serve; this one comes by the debugger.
  await page.evaluate(axe);
  const results = await page.evaluate(() => window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  const found = results.violations.map((one) => `${one.id} (${one.impact}): ${one.nodes.slice(0, 3).map((node) => `${node.html.slice(0, 160)} — ${node.any[0]?.message ?? node.all[0]?.message ?? ""}`).join(" | ")}`);
  assert.deepEqual(found, [], `${name} is not accessible`);
}

/** Keeps a picture among the test's output. */
export async function picture(page, name) {
  const folder = process.env.OUTRIGGER_PICTURES;
  fs.mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: true, animations: "disabled" });
}

/** Runs steps in order, and says which one failed. */
export async function steps(all) {
  for (const [name, step] of Object.entries(all)) {
    const begun = Date.now();
    try {
      await step();
    } catch (error) {
      console.error(`step \`${name}\` failed: ${error.stack}`);
      process.exit(1);
    }
    console.log(`${name}: ${Date.now() - begun} ms`);
  }
}
