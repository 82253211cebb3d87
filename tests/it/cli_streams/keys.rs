//! The keys of streams: who gets one, for which start, chain and AAD, and what the audit log says.

use sha2::{Digest, Sha256};

use super::*;
use crate::support::until;

#[tokio::test]
async fn a_key_is_that_of_its_start_chain_and_aad() {
    let service = start(&Setup::new()).await;
    let make = |body| service.ok("/v1/datakey", body);
    for ((chain, version), size) in CHAINS.into_iter().zip([16, 32]) {
        let made = make(json!({"chain": chain, "aad": "cm93IDc=", "stream_key": true})).await;
        let start = envelope::from_text(made["ciphertext"].as_str().unwrap()).unwrap();
        assert_eq!((start[0], start.len()), (version, header_len(&start) + PREFIX));
        let key = base64_simd::STANDARD.decode_to_vec(made["plaintext"].as_str().unwrap());
        assert_eq!(key.unwrap().len(), size);
        let request = |start: &[u8]| {
            let start = envelope::to_text(start);
            json!({"ciphertext": start, "chain": chain, "aad": "cm93IDc=", "stream_key": true})
        };
        let opened = service.ok("/v1/decrypt", request(&start)).await;
        assert_eq!(
            (&opened["plaintext"], &opened["kek_id"]),
            (&made["plaintext"], &made["kek_id"])
        );
        let refused = async |request, expected: &str| {
            let (status, answer) = service.post("/v1/decrypt", request).await;
            assert_eq!((status.as_u16(), &answer["code"]), (400, &expected.into()), "{answer}");
            assert!(answer.get("plaintext").is_none());
        };
        // Without the flag it is an envelope that lacks its last chunk.
        let mut whole = request(&start);
        whole["stream_key"] = false.into();
        refused(whole, "invalid_ciphertext").await;
        let mut other = request(&start);
        other["aad"] = "cm93IDg=".into();
        refused(other, "invalid_ciphertext").await;
        let mut other = request(&start);
        other["chain"] = if chain == "default" { "copied" } else { "default" }.into();
        // A record of another chain does not open: that may be the fault of the roots.
        let (status, answer) = service.post("/v1/decrypt", other).await;
        let expected = if chain == "default" { "unknown_kek" } else { "root_unavailable" };
        assert_eq!(answer["code"], expected, "{status}: {answer}");
        for changed in [header_len(&start) - 1, header_len(&start), start.len() - 1] {
            let mut start = start.clone();
            start[changed] ^= 1;
            refused(request(&start), "invalid_ciphertext").await;
        }
        for len in [0, 1, header_len(&start), start.len() - 1] {
            refused(request(&start[..len]), "invalid_ciphertext").await;
        }
        refused(request(&[&start[..], b"x"].concat()), "invalid_ciphertext").await;
        // A message has no key that leaves the service, whatever follows its header.
        let message = service.ok("/v1/encrypt", json!({"chain": chain, "plaintext": ""})).await;
        let mut message = envelope::from_text(message["ciphertext"].as_str().unwrap()).unwrap();
        refused(request(&message), "invalid_ciphertext").await;
        message.truncate(header_len(&message));
        message.resize(message.len() + PREFIX, 7);
        refused(request(&message), "invalid_ciphertext").await;
    }
    let both = json!({"bytes": 16, "stream_key": true});
    let (status, answer) = service.post("/v1/datakey", both).await;
    assert_eq!((status.as_u16(), &answer["code"]), (400, &"invalid_request".into()));
    let items = json!([{"ciphertext": "kp:AQ==", "stream_key": true}]);
    let batch = service.ok("/v1/batch/decrypt", json!({"items": items})).await;
    assert_eq!(batch["results"][0]["error"]["code"], "invalid_ciphertext");
}

/// A service for three clients, each of which may do one thing. Their tokens are in files.
async fn guarded(setup: Setup) -> Service {
    let mut setup = setup.set("AUTH__MODE", "required");
    for (number, operation) in ["datakey", "decrypt", "encrypt"].into_iter().enumerate() {
        let token = operation.repeat(8);
        let digest = base16ct::lower::encode_string(&Sha256::digest(&token));
        let allow = format!("[{{chains=[\"default\"], operations=[\"{operation}\"]}}]");
        std::fs::write(setup.file(operation), token).unwrap();
        setup = setup
            .set(&format!("CLIENT__{number}__NAME"), operation)
            .set(&format!("CLIENT__{number}__TOKEN_SHA256"), digest)
            .set(&format!("CLIENT__{number}__ALLOW"), allow);
    }
    setup.start().await
}

#[tokio::test]
async fn encrypting_needs_datakey_decrypting_needs_decrypt_and_both_are_audited() {
    let setup = Setup::new();
    let log = setup.file("audit.jsonl");
    let audited = setup.clone().set("AUDIT__FILE", log.display()).set("AUDIT__AAD", "plain");
    let service = guarded(audited.set("AUDIT__RULE__0__LEVEL", "full")).await;
    let by = |client: &str, args: &[&str], input: &[u8]| {
        let token = setup.file(client);
        let token = ["--token-file", token.to_str().unwrap(), "--aad", "row 7"];
        call(&service, &[args, &token].concat(), input)
    };
    let plaintext = message(5 * CHUNK);
    let envelope = good(by("datakey", &["encrypt", "--stream"], &plaintext));
    assert!(good(by("decrypt", &["decrypt"], &envelope)) == plaintext);
    for (client, args) in [
        ("encrypt", &["encrypt", "--stream"][..]),
        ("decrypt", &["encrypt", "--stream"]),
        ("encrypt", &["decrypt"]),
        ("datakey", &["decrypt"]),
    ] {
        let (said, written) = refused(by(client, args, &envelope), 1);
        assert!(said.contains("forbidden: ") && said.contains(client), "{said}");
        assert!(written.is_empty());
    }
    let lines = until("the lines of six calls", async || {
        let text = std::fs::read_to_string(&log).ok()?;
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let calls = lines.filter(|line: &serde_json::Value| line["client"].is_string());
        let calls: Vec<_> = calls.collect();
        (calls.len() >= 6).then_some(calls)
    })
    .await;
    for (line, operation) in lines.iter().zip(["datakey", "decrypt"]) {
        assert_eq!((&line["operation"], &line["client"]), (&operation.into(), &operation.into()));
        assert_eq!((&line["outcome"], &line["chain"]), (&"ok".into(), &"default".into()), "{line}");
        assert_eq!((&line["plaintext_bytes"], &line["aad"]), (&16.into(), &"text:row 7".into()));
        assert!(line["kek_id"].is_string(), "{line}");
    }
    assert!(lines[2..].iter().all(|line| line["outcome"] == "forbidden"), "{lines:?}");
}
