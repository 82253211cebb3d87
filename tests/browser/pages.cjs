// Opens pages in headless Chromium, and reports what a person meets there: with the eyes, with the
// keyboard, or with a screen reader. It knows nothing of what the pages show.
//
// It reads commands from stdin, a JSON object a line, and answers each with one on stdout:
//
// {"open": URL, "views": [{"width": 360, "scheme": "dark"}, ...]}, with any of
//   "headers": {...}     to send with each request
//   "shot": PATH         in a view: a screenshot of the page, of at most "tall" pixels from its top
//   "tab": true          walk through the page with the tab key
//   "follow": [TEXT...]  then click links with these texts, one after the other
//   "refreshes": true    the page refreshes on purpose: WCAG 2.2.1 is not checked
//   "spoil": HTML        put this at the end of the page's main part
//
// The answer has "status", "title", "url" (after the last link), "text" (as a text browser shows it, without the
// style), "requests" (the URLs), "said" (the console, errors, dialogs and what Chromium's audits found, such as a
// violation of the content security policy), "tabs" (the elements that took the focus, and what of it was wrong), and
// "views", each with "wide" (pixels of the page's width) and "axe" (violations of WCAG 2.1 A and AA and of best
// practices).

const fs = require("node:fs");
const readline = require("node:readline");
const { chromium } = require("playwright-core");

const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];

// Without these Chromium calls servers of its vendor.
const QUIET = [
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
  "--no-default-browser-check", "--disable-quic", "--disable-gpu",
];

async function launch() {
  // Its sandbox does not work for root.
  const sandbox = process.getuid() === 0 ? ["--no-sandbox"] : [];
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  return chromium.launch({ executablePath, args: [...QUIET, ...sandbox] });
}

// What the page says besides its content.
async function listen(context, page, said) {
  page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => said.push(`error: ${error}`));
  page.on("dialog", async (dialog) => {
    said.push(`dialog: ${dialog.message()}`);
    await dialog.dismiss();
  });
  const devtools = await context.newCDPSession(page);
  devtools.on("Audits.issueAdded", ({ issue }) => said.push(`issue: ${JSON.stringify(issue)}`));
  await devtools.send("Audits.enable");
}

// The page as a text browser shows it: without its style.
function plainText() {
  const style = document.querySelector("style");
  style?.setAttribute("media", "not all");
  const text = document.body.innerText;
  style?.removeAttribute("media");
  return text;
}

async function violations(page, refreshes) {
  if (!(await page.evaluate(() => "axe" in globalThis))) await page.evaluate(AXE);
  const options = { runOnly: RULES, resultTypes: ["violations"], rules: { "meta-refresh": { enabled: !refreshes } } };
  const found = await page.evaluate((options) => axe.run(options), options);
  return found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ").slice(0, 500)}`);
}

// Walks through the page until the focus leaves it.
async function tabs(page) {
  const order = () => {
    const all = [...document.querySelectorAll("a[href], [tabindex]")];
    const at = document.activeElement;
    const { outlineStyle, outlineWidth, outlineColor, backgroundColor } = getComputedStyle(at);
    const { top, bottom, left, right } = at.getBoundingClientRect();
    const visible = bottom > 0 && top < innerHeight && right > 0 && left < innerWidth;
    const shown = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2 && outlineColor !== backgroundColor;
    const name = at.getAttribute("aria-label") ?? at.textContent;
    return { index: all.indexOf(at), all: all.length, visible, shown, name };
  };
  const walked = [];
  for (;;) {
    await page.keyboard.press("Tab");
    const { index, all, visible, shown, name } = await page.evaluate(order);
    if (index === -1 || index < walked.length) break;
    const wrong = [];
    if (index !== walked.length) wrong.push("not in the order of the page");
    if (!visible) wrong.push("not in sight");
    if (!shown) wrong.push("the focus is not visible");
    walked.push({ name, wrong });
    if (walked.length === all) break;
  }
  return walked;
}

async function shoot(page, path, tall) {
  const { width, height } = await page.evaluate(() => ({
    width: innerWidth,
    height: document.documentElement.scrollHeight,
  }));
  const clip = { x: 0, y: 0, width, height: Math.min(height, tall ?? 6000) };
  await page.screenshot({ path, fullPage: true, clip });
}

async function open(browser, command) {
  const [first] = command.views;
  const context = await browser.newContext({
    colorScheme: first.scheme,
    viewport: { width: first.width, height: 900 },
    extraHTTPHeaders: command.headers,
    timezoneId: "UTC",
  });
  try {
    const page = await context.newPage();
    const [said, requests] = [[], []];
    await listen(context, page, said);
    page.on("request", (request) => requests.push(request.url()));
    if (command.spoil) {
      await page.route(command.open, async (route) => {
        const response = await route.fetch();
        const body = (await response.text()).replace("</main>", `${command.spoil}</main>`);
        await route.fulfill({ response, body });
      });
    }
    const response = await page.goto(command.open, { waitUntil: "load" });
    const walked = command.tab ? await tabs(page) : [];
    await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
    const title = await page.title();
    const text = await page.evaluate(plainText);
    const views = [];
    for (const { width, scheme, shot, tall } of command.views) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width, height: 900 });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      if (shot) await shoot(page, shot, tall);
      views.push({ wide });
    }
    const heard = [...said];
    // What axe does to the page is not the page's fault.
    for (const [index, { width, scheme }] of command.views.entries()) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width, height: 900 });
      views[index].axe = await violations(page, command.refreshes === true);
    }
    for (const link of command.follow ?? []) {
      const element = page.getByRole("link", { name: link, exact: true }).first();
      await Promise.all([page.waitForNavigation(), element.press("Enter")]);
    }
    return { status: response.status(), title, url: page.url(), text, requests, said: heard, tabs: walked, views };
  } finally {
    await context.close();
  }
}

async function main() {
  let browser;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let answer;
    try {
      browser ??= await launch();
      answer = await open(browser, JSON.parse(line));
    } catch (error) {
      answer = { error: error.name, message: String(error.message) };
    }
    console.log(JSON.stringify(answer));
  }
  await browser?.close();
}

main();
