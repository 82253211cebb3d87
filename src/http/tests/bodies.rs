//! Bodies in encodings that the service does not accept, and the errors for them.

use base64_simd::STANDARD;

use super::*;

const OCTETS: &str = "application/octet-stream";

/// The status, the code and the detail.
async fn refused(request: reqwest::RequestBuilder) -> (u16, String, String) {
    let (status, problem) = answer(request).await;
    let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
    (status.as_u16(), text("code"), text("detail"))
}

#[tokio::test]
async fn a_body_with_a_content_encoding_is_refused_by_every_call_that_reads_one() {
    let server = Server::start().await;
    let made = server.ok("/v1/encrypt", json!({"plaintext": "aGVsbG8="})).await;
    let kek = format!("/v1/chains/default/keks/{}", made["kek_id"].as_str().unwrap());
    let post = |path: &str| (Method::POST, path.to_owned(), "application/json");
    let mut calls = vec![
        (Method::POST, "/v1/encrypt".to_owned(), OCTETS),
        (Method::POST, "/v1/decrypt".to_owned(), OCTETS),
        (Method::PUT, "/v1/chains/other".to_owned(), "application/json"),
    ];
    calls.extend(
        ["encrypt", "decrypt", "rewrap", "datakey", "rotate"]
            .map(|call| post(&format!("/v1/{call}"))),
    );
    calls.extend(["encrypt", "decrypt", "rewrap"].map(|call| post(&format!("/v1/batch/{call}"))));
    calls.extend(["disable", "enable", "destroy"].map(|call| post(&format!("{kek}/{call}"))));
    calls.extend(
        ["rewrap", "remove"].map(|call| post(&format!("/v1/chains/default/roots/main/{call}"))),
    );
    for (method, path, media) in calls {
        for coding in ["gzip", "br", "GZIP", "identity, gzip", "x"] {
            let request = server.request(method.clone(), &path).header("content-type", media);
            let request = request.header("content-encoding", coding).body("{}");
            let (status, code, detail) = refused(request).await;
            assert_eq!((status, &*code), (415, "unsupported_media_type"), "{path} {coding}");
            assert!(detail.contains("content-encoding"), "{detail}");
        }
    }
    for coding in ["identity", "Identity", ""] {
        let request = server.request(Method::POST, "/v1/encrypt").header("content-type", OCTETS);
        let request = request.header("content-encoding", coding).body("hello");
        assert_eq!(request.send().await.unwrap().status(), 200, "{coding:?}");
    }
}

#[tokio::test]
async fn bad_base64_is_explained_by_its_place_and_never_by_its_content() {
    let server = Server::start().await;
    for (field, text, reason) in [
        ("plaintext", "c2VjcmV0cw", "the padding (=) at its end is missing"),
        ("plaintext", "c2VjcmV0-_8=", "position 9 has a character of the URL-safe alphabet"),
        ("plaintext", "c2Vj\ncmV0", "there is a line break at position 5"),
        ("plaintext", "c2VjcmV0\n", "there is a line break at position 9"),
        ("aad", "c2VjcmV0cw", "the padding (=) at its end is missing"),
        ("aad", "c2Vj cmV0", "there is white space at position 5"),
    ] {
        let mut body = json!({"plaintext": ""});
        body[field] = json!(text);
        let (status, problem) = server.post("/v1/encrypt", body).await;
        assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_request")));
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with(&format!("{field} is not base64: {reason}")), "{detail}");
        assert!(!problem.to_string().contains("c2V"), "{problem}");
    }
    let raw = server.request(Method::POST, "/v1/encrypt").header("content-type", OCTETS);
    let (status, _, detail) = refused(raw.header("kms-proxy-aad", "cm93IDc").body("hello")).await;
    assert_eq!(status, 400);
    assert!(detail.starts_with("kms-proxy-aad is not base64: the padding"), "{detail}");
}

#[tokio::test]
async fn an_envelope_in_the_wrong_form_is_explained_and_keeps_its_code() {
    let server = Server::start().await;
    let made = server.ok("/v1/encrypt", json!({"plaintext": "aGVsbG8="})).await;
    let text = made["ciphertext"].as_str().unwrap();
    let base64 = text.strip_prefix("kp:").unwrap();
    let break_after = format!("line break at position {}", base64.len() + 1);
    for path in ["/v1/decrypt", "/v1/rewrap"] {
        for (text, reason) in [
            (format!("{text}\n"), &*break_after),
            (format!("{text}\r\n"), &*break_after),
            (format!(" {text}"), "does not start with kp:"),
            (base64.to_owned(), "does not start with kp:"),
            (String::new(), "does not start with kp:"),
            (format!("kp:{}", base64.replacen('A', "_", 1)), "URL-safe alphabet"),
        ] {
            let (status, problem) = server.post(path, json!({"ciphertext": text})).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_ciphertext")));
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("ciphertext") && detail.contains(reason), "{path}: {detail}");
        }
    }
    let raw = server.request(Method::POST, "/v1/decrypt").header("content-type", OCTETS);
    let (status, code, detail) = refused(raw.body(text.to_owned())).await;
    assert_eq!((status, &*code), (400, "invalid_ciphertext"));
    assert!(detail.contains("text form (kp:)") && detail.contains("JSON"), "{detail}");
    // Faults inside the envelope are not distinguished.
    let mut bytes = STANDARD.decode_to_vec(base64).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let raw = server.request(Method::POST, "/v1/decrypt").header("content-type", OCTETS);
    let (_, _, tampered) = refused(raw.body(bytes)).await;
    let raw = server.request(Method::POST, "/v1/decrypt").header("content-type", OCTETS);
    let (_, _, malformed) = refused(raw.body("hello")).await;
    assert_eq!(tampered, malformed);
}

#[tokio::test]
async fn json_with_a_byte_order_mark_is_refused_with_its_reason() {
    let server = Server::start().await;
    let utf_16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for body in ["\u{feff}{\"plaintext\":\"\"}".as_bytes().to_vec(), utf_16] {
        let request = server.request(Method::POST, "/v1/encrypt");
        let request = request.header("content-type", "application/json").body(body);
        let (status, code, detail) = refused(request).await;
        assert_eq!((status, &*code), (400, "invalid_request"));
        assert!(detail.contains("byte order mark"), "{detail}");
    }
}

#[tokio::test]
async fn a_transfer_coding_other_than_chunked_is_refused_and_ends_the_connection() {
    let server = Server::start().await;
    let body = "5\r\nhello\r\n0\r\n\r\n";
    let request = |codings: &str| {
        format!(
            "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nContent-Type: {OCTETS}\r\n{codings}\
             \r\nAccept: application/json\r\n\r\n{body}"
        )
    };
    for codings in [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: gzip,chunked",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ] {
        // It is read until the connection ends.
        let answer = server.raw(&request(codings)).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{codings}: {answer}");
        assert!(answer.contains("transfer-encoding must be chunked"), "{codings}: {answer}");
    }
    for codings in ["Transfer-Encoding: chunked", "transfer-encoding: Chunked"] {
        let answer = server.raw(&request(&format!("{codings}\r\nConnection: close"))).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{codings}: {answer}");
    }
}
