//! The `cryptography` of Python opens what the command line seals, and the other way round. The key
//! of a payload comes from the service, as for any other program.

use base64_simd::STANDARD;
use serde_json::Value;

use super::*;
use crate::support::root;
use crate::support::tools::{piped, printed, test_env};

const LENS: [usize; 5] = [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 1];

fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}

fn unhex(text: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(text).unwrap()
}

/// Runs a script of Python, from JSON to JSON.
fn python(args: &[&str], input: &Value) -> Vec<String> {
    let mut command = Command::new(test_env("python"));
    let json = printed(piped(command.args(args), &input.to_string()));
    serde_json::from_str(&json).unwrap()
}

const OPEN: &str = "
import json, sys
from cryptography.cobblestone import Cobblestone128Decryptor, Cobblestone256Decryptor
def opened(it):
    dek, context, payload = (bytes.fromhex(it[field]) for field in ('dek', 'context', 'payload'))
    decryptor = {16: Cobblestone128Decryptor, 32: Cobblestone256Decryptor}[len(dek)](dek, context)
    return (decryptor.update(payload) + decryptor.finalize()).hex()
json.dump([opened(it) for it in json.load(sys.stdin)], sys.stdout)
";

fn context(chain: &str, key: &[u8]) -> String {
    let suite = kms_proxy::Suite::from_key_len(key.len()).unwrap();
    let chain = kms_proxy::ChainName::new(chain).unwrap();
    hex(&envelope::stream_context(suite, &chain, b"row 7").unwrap())
}

fn key_of(answer: &Value) -> Vec<u8> {
    STANDARD.decode_to_vec(answer["plaintext"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn cryptography_opens_what_the_command_line_seals() {
    let service = start(&Setup::new()).await;
    let mut sealed = Vec::new();
    for (chain, _) in CHAINS {
        for len in LENS {
            let args = ["encrypt", "--stream", "--chain", chain, "--aad", "row 7"];
            let envelope = good(call(&service, &args, &message(len)));
            let header = header_len(&envelope);
            let start = envelope::to_text(&envelope[..header + PREFIX]);
            let request =
                json!({"ciphertext": start, "chain": chain, "aad": "cm93IDc=", "stream_key": true});
            let key = key_of(&service.ok("/v1/decrypt", request).await);
            sealed.push(json!({
                "dek": hex(&key), "context": context(chain, &key), "payload": hex(&envelope[header..]),
            }));
        }
    }
    let opened = python(&["-c", OPEN], &sealed.into());
    let expected = CHAINS.iter().flat_map(|_| LENS.map(|len| hex(&message(len))));
    assert!(opened.into_iter().eq(expected));
}

#[tokio::test]
async fn the_command_line_opens_what_cryptography_seals() {
    let service = start(&Setup::new()).await;
    for (chain, version) in CHAINS {
        let (mut headers, mut messages) = (Vec::new(), Vec::new());
        for len in LENS {
            let request = json!({"chain": chain, "aad": "cm93IDc=", "stream_key": true});
            let made = service.ok("/v1/datakey", request).await;
            let key = key_of(&made);
            let start = envelope::from_text(made["ciphertext"].as_str().unwrap()).unwrap();
            headers.push(start[..header_len(&start)].to_vec());
            messages.push(json!({
                "dek": hex(&key), "context": context(chain, &key), "plaintext": hex(&message(len)),
            }));
        }
        let seal = root().join("tests/decryptor/seal.py");
        // It draws its own salt: the envelope is the header of the start, and this payload.
        let payloads = python(&[seal.to_str().unwrap()], &messages.into());
        for ((header, payload), len) in headers.iter().zip(payloads).zip(LENS) {
            assert_eq!(header[0], version);
            let envelope = [&header[..], &unhex(&payload)].concat();
            let args = ["decrypt", "--chain", chain, "--aad", "row 7"];
            assert!(good(call(&service, &args, &envelope)) == message(len), "{len}");
        }
    }
}
