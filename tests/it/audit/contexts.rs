//! Lines about an encryption context of the AWS KMS API.

use super::*;
use crate::support::tools::printed;

/// Makes a call of AWS KMS.
async fn aws(service: &Service, id: &str, operation: &str, body: &Value) -> u16 {
    let target = format!("TrentService.{operation}");
    let headers = [("x-amz-target", &*target), ("content-type", "application/x-amz-json-1.1")];
    call(service, id, Method::POST, "/", &headers, &body.to_string()).await
}

/// The requests whose lines `audit find` prints, and what it reports.
fn found(setup: &Setup, args: &[&str]) -> Vec<String> {
    let file = setup.file("audit.jsonl").display().to_string();
    let output = setup.run(&[&["audit", "find", "--json"], args, &[&*file]].concat());
    let events = events(&printed(output));
    events.iter().map(|it| it["request_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_lines_of_an_encryption_context_are_found_whatever_the_order_of_its_pairs() {
    for aad in ["hmac", "plain"] {
        let setup = full().set("AWS_API__ENABLED", true).set("AUDIT__AAD", aad);
        let setup = setup.clone().set("STORE__PATH", setup.data().display());
        let service = setup.start().await;
        let long = "x".repeat(200);
        for (id, context) in [
            ("both", json!({"tenant": "7", "table": "a=b"})),
            ("one", json!({"tenant": "7"})),
            ("long", json!({"tenant": long})),
            ("none", json!({})),
        ] {
            let body = json!({"KeyId": "default", "Plaintext": "aGVsbG8=",
                "EncryptionContext": context});
            assert_eq!(aws(&service, id, "Encrypt", &body).await, 200);
        }
        service.stop().await;
        let key = setup.file("aad.key").display().to_string();
        printed(setup.run(&["audit", "key", "--aad-key-file", &key]));
        let find = |pairs: &[&str]| {
            let pairs = pairs.iter().flat_map(|pair| ["--context", *pair]);
            found(&setup, &["--aad-key-file", &key].into_iter().chain(pairs).collect::<Vec<_>>())
        };
        assert_eq!(find(&["tenant=7", "table=a=b"]), ["both"], "{aad}");
        assert_eq!(find(&["table=a=b", "tenant=7"]), ["both"], "{aad}");
        assert_eq!(find(&["tenant=7"]), ["one"], "{aad}");
        assert_eq!(find(&[&format!("tenant={long}")]), ["long"], "{aad}");
        assert_eq!(find(&["tenant=8"]), [""; 0], "{aad}");
    }
}

#[test]
fn a_context_that_can_t_be_is_refused() {
    let setup = setup();
    let big = format!("a={}", "x".repeat(65_530));
    for (args, why) in [
        (&["--context", "tenant"][..], "KEY=VALUE"),
        (&["--context", "a=1", "--context", "a=2"], "the key \"a\" twice"),
        (&["--context", &*big], "longer than 64 KiB"),
        (&["--context", "a=1", "--aad", "row 7"], "cannot be used with"),
        (&["--aad-key-file", "aad.key"], "--context"),
    ] {
        let output = setup.run(&[&["audit", "find"], args, &["audit.jsonl"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
}
