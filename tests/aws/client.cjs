// A program that uses AWS KMS: @aws-sdk/client-kms on Node.js, with nothing set but the environment.
//
// It reads commands from stdin, a JSON object a line, and answers each with one on stdout, as client.py
// does for boto3: {"call": operation, "args": {...}}, with an operation such as "generate_data_key".
// Bytes are {"hex": text} in both directions. A call that fails is {"error": code, "message": text}.
// CLIENT_CERT names a file with a client certificate and its key, for which the SDK has no variable.

const fs = require("node:fs");
const https = require("node:https");
const readline = require("node:readline");
const kms = require("@aws-sdk/client-kms");

function options() {
  const file = process.env.CLIENT_CERT;
  if (!file) return {};
  const both = fs.readFileSync(file);
  return { requestHandler: { httpsAgent: new https.Agent({ cert: both, key: both, keepAlive: true }) } };
}

const client = new kms.KMSClient(options());

function toBytes(value) {
  if (value === null || typeof value !== "object") return value;
  if (Object.keys(value).join() === "hex") return Buffer.from(value.hex, "hex");
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, toBytes(item)]));
}

function fromBytes(value) {
  if (value instanceof Uint8Array) return { hex: Buffer.from(value).toString("hex") };
  if (value instanceof Date) return value.getTime() / 1000;
  if (Array.isArray(value)) return value.map(fromBytes);
  if (value === null || typeof value !== "object") return value;
  const members = Object.entries(value).filter(([key]) => key !== "$metadata");
  return Object.fromEntries(members.map(([key, item]) => [key, fromBytes(item)]));
}

async function run(command) {
  const words = command.call.split("_");
  const name = words.map((word) => word[0].toUpperCase() + word.slice(1)).join("");
  return client.send(new kms[`${name}Command`](toBytes(command.args ?? {})));
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let answer;
    try {
      answer = await run(JSON.parse(line));
    } catch (error) {
      answer = { error: error.name, message: String(error.message) };
    }
    console.log(JSON.stringify(fromBytes(answer)));
  }
}

main();
