// Encrypts and decrypts with what Node.js, Deno and Bun have built in.

import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";

const { KMS_PROXY_SERVER, KMS_PROXY_TOKEN_FILE, KMS_PROXY_CA, KMS_PROXY_CERT, KMS_PROXY_KEY } =
  process.env;
const server = KMS_PROXY_SERVER ?? "http://127.0.0.1:8080";
const isSecure = server.startsWith("https:");
const file = (path?: string) => (path ? readFileSync(path) : undefined);
const pause = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
const TRIES = 5;

/** Connections stay open between calls. */
const agent = isSecure
  ? new https.Agent({
      keepAlive: true,
      ca: file(KMS_PROXY_CA),
      cert: file(KMS_PROXY_CERT),
      key: file(KMS_PROXY_KEY),
    })
  : new http.Agent({ keepAlive: true });

type Answer = { status: number; wait: string; text: string };

/** What the service, or a proxy before it, says instead of an answer. */
class Refused extends Error {
  status: number;
  code: string;

  constructor({ status, text }: Answer) {
    const problem = parsed(text) ?? {};
    const code = problem.code ?? `http_${status}`;
    super(`${code}: ${problem.detail ?? "the answer is not from kms-proxy"} (HTTP ${status})`);
    this.status = status;
    this.code = code;
  }
}

/** The object in an answer; proxies may say anything. */
function parsed(text: string): Record<string, string> | undefined {
  try {
    return JSON.parse(text) ?? undefined;
  } catch {
    return undefined;
  }
}

function send(path: string, body: string): Promise<Answer> {
  const headers: Record<string, string | number> = {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(body),
  };
  // It is read for each call: tokens are replaced while programs run.
  const token = file(KMS_PROXY_TOKEN_FILE);
  if (token) headers.authorization = `Bearer ${token.toString().trim()}`;
  return new Promise((resolve, reject) => {
    const options = { method: "POST", agent, headers, timeout: 15_000 };
    const request = (isSecure ? https : http).request(server + path, options, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        const wait = response.headers["retry-after"] ?? "";
        resolve({ status: response.statusCode ?? 0, wait, text: Buffer.concat(chunks).toString() });
      });
    });
    request.on("timeout", () => request.destroy(new Error("the service did not answer in time")));
    request.on("error", reject);
    request.end(body);
  });
}

/** Makes a call. A broken connection, 429 and 503 are worth another try: calls can be repeated. */
async function call(path: string, body: object): Promise<Record<string, string>> {
  for (let left = TRIES - 1; ; left--) {
    let answer: Answer;
    try {
      answer = await send(path, JSON.stringify(body));
    } catch (error) {
      if (left === 0) throw error;
      await pause(0.2);
      continue;
    }
    if ([429, 503].includes(answer.status) && left > 0) {
      await pause(/^\d+$/.test(answer.wait) ? Number(answer.wait) : 1);
      continue;
    }
    const made = answer.status === 200 ? parsed(answer.text) : undefined;
    if (made) return made;
    throw new Refused(answer);
  }
}

const base64 = (data: Uint8Array): string => Buffer.from(data).toString("base64");

async function encrypt(plaintext: Uint8Array, aad: Uint8Array, chain = "default"): Promise<string> {
  const body = { plaintext: base64(plaintext), aad: base64(aad), chain };
  return (await call("/v1/encrypt", body)).ciphertext;
}

async function decrypt(ciphertext: string, aad: Uint8Array, chain = "default") {
  const body = { ciphertext, aad: base64(aad), chain };
  return Buffer.from((await call("/v1/decrypt", body)).plaintext, "base64");
}

// The AAD binds the ciphertext to its place: moved to another row, it does not open.
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const secret = await encrypt(bytes("hello"), bytes("row 7"));
console.log(new TextDecoder().decode(await decrypt(secret, bytes("row 7"))));
try {
  await decrypt(secret, bytes("row 8"));
} catch (error) {
  if (!(error instanceof Refused)) throw error;
  console.log("refused:", error.code);
}
agent.destroy();
