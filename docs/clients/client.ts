// Encrypts and decrypts with what Node.js, Deno and Bun have built in.

const server = process.env.KMS_PROXY_SERVER ?? "http://127.0.0.1:8080";

/** What the service says instead of an answer. */
class Refused extends Error {
  status: number;
  code: string;

  constructor(status: number, problem: { code: string; detail: string }) {
    super(`${problem.code}: ${problem.detail}`);
    this.status = status;
    this.code = problem.code;
  }
}

/** Makes a call; 429 and 503 say when it is worth another try. */
async function call<Answer>(path: string, body: object, tries = 3): Promise<Answer> {
  const response = await fetch(server + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(15_000),
  });
  if (response.ok) return (await response.json()) as Answer;
  if ([429, 503].includes(response.status) && tries > 1) {
    const seconds = Number(response.headers.get("retry-after") ?? 1);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    return call(path, body, tries - 1);
  }
  throw new Refused(response.status, await response.json());
}

const base64 = (data: Uint8Array): string => Buffer.from(data).toString("base64");

async function encrypt(plaintext: Uint8Array, aad: Uint8Array, chain = "default"): Promise<string> {
  const body = { plaintext: base64(plaintext), aad: base64(aad), chain };
  return (await call<{ ciphertext: string }>("/v1/encrypt", body)).ciphertext;
}

async function decrypt(ciphertext: string, aad: Uint8Array, chain = "default"): Promise<Uint8Array> {
  const body = { ciphertext, aad: base64(aad), chain };
  return Buffer.from((await call<{ plaintext: string }>("/v1/decrypt", body)).plaintext, "base64");
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

export {};
