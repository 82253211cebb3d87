//! An independent writer and an independent reader, both in Python: they agree with the library.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kms_proxy::aead::{Cipher, NONCE_LEN};
use kms_proxy::envelope::{self, InlineRecord, Malformed, Version};
use kms_proxy::secret::KeyBytes;
use kms_proxy::{ChainName, KekId, KeyChain, Suite, export, stream};
use serde_json::{Value, json};

use super::{Plain, Vector, data_aad, files, hex, root, unhex, vectors};

#[test]
fn the_writer_makes_these_vectors_again() {
    let fresh = tempfile::tempdir().unwrap();
    let output = python().arg(root().join("tests/vectors/make.py")).arg(fresh.path()).output();
    assert_success(&output.unwrap());
    let all = |directory: &Path| {
        let more = ["aws", "kek-ids", "text"].map(|name| files(&directory.join(name)));
        [files(directory), more.concat()].concat()
    };
    let (ours, theirs) = (all(&root().join("tests/vectors")), all(fresh.path()));
    assert_eq!(names(&ours), names(&theirs));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let same = std::fs::read(ours).unwrap() == std::fs::read(theirs).unwrap();
        assert!(same, "{} is not what make.py writes", ours.display());
    }
}

#[tokio::test]
async fn the_reader_in_python_agrees_on_the_vectors_and_on_fresh_envelopes() {
    let directory = tempfile::tempdir().unwrap();
    let fresh = fresh_vectors().await;
    let mut paths = files(&root().join("tests/vectors"));
    paths.push(write(directory.path(), &fresh));
    let output = check(&paths);
    assert_success(&output);
    let all = [vectors(), fresh].concat();
    let opened = all.iter().filter(|vector| vector.valid).count();
    let expected = format!("{opened} vectors opened, {} refused\n", all.len() - opened);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

/// `src/aws_api/tests/vectors.rs` reads the same file.
#[test]
fn the_reader_in_python_agrees_on_the_blobs_of_the_aws_kms_api() {
    let output = check(&files(&root().join("tests/vectors/aws")));
    assert_success(&output);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "36 vectors opened, 23 refused\n");
}

/// `the_one_text_of_an_envelope_is_taken_and_no_other` reads the same file.
#[test]
fn the_reader_in_python_agrees_on_texts() {
    let output = check(&files(&root().join("tests/vectors/text")));
    assert_success(&output);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3 vectors opened, 20 refused\n");
}

#[tokio::test]
async fn the_reader_in_python_reports_what_goes_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let good = fresh_vectors().await.swap_remove(0);
    assert_success(&check(&[write(directory.path(), std::slice::from_ref(&good))]));
    let other_plaintext = Vector { plaintext: format!("{}00", good.plaintext), ..good.clone() };
    let opens_after_all = Vector { valid: false, plaintext: String::new(), ..good.clone() };
    let other_aad = Vector { aad: format!("{}00", good.aad), ..good.clone() };
    let other_rule = Vector {
        valid: false,
        plaintext: String::new(),
        aad: format!("{}00", good.aad),
        rule: Some("wrap".to_owned()),
        ..good
    };
    let right_rule = Vector { rule: Some("payload".to_owned()), ..other_rule.clone() };
    assert_success(&check(&[write(directory.path(), &[right_rule])]));
    for bad in [other_plaintext, opens_after_all, other_aad, other_rule] {
        let output = check(&[write(directory.path(), &[bad])]);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(check(&[write(directory.path(), &[])]).status.code(), Some(1), "no vectors at all");
}

#[tokio::test]
async fn both_readers_take_the_one_text_of_an_envelope_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let vector = fresh_vectors().await.swap_remove(0);
    let kek = directory.path().join("kek.hex");
    std::fs::write(&kek, format!("{}\n", vector.kek)).unwrap();
    let open = |text: &str| {
        let mut command = python();
        command.arg(root().join("tests/decryptor/decrypt.py")).arg("open").arg("--kek-file");
        command.arg(&kek).args(["--chain", &vector.chain, "--aad", &vector.aad, text]);
        command.output().unwrap()
    };
    // 83 bytes: the last digit before the padding has two bits that are not used.
    let text = envelope::to_text(&unhex(&vector.envelope));
    let output = open(&text);
    assert_success(&output);
    assert_eq!(output.stdout, unhex(&vector.plaintext));
    let (start, last) = text.strip_suffix('=').unwrap().split_at(text.len() - 2);
    let next = char::from(last.bytes().next().unwrap() + 1);
    for bad in [
        format!("{start}{next}="),
        format!("{start}{last}"),
        format!("{text}\n"),
        format!(" {text}"),
        text.replacen("kp:", "KP:", 1),
        text.replacen("kp:", "kp: ", 1),
        text.replacen("kp:", "kp:_", 1),
    ] {
        assert_eq!(envelope::from_text(&bad), Err(Malformed::Text), "{bad:?}");
        let output = open(&bad);
        assert_eq!((output.status.code(), output.stdout), (Some(1), Vec::new()), "{bad:?}");
    }
}

/// The lengths of streams around the borders of chunks, and short ones.
fn stream_lens() -> impl Iterator<Item = usize> {
    (0..18).chain(16_384 - 17..16_384 + 18).chain(32_768 - 2..32_768 + 3)
}

#[tokio::test]
async fn the_reader_in_python_opens_streams_of_every_length_around_a_chunk() {
    let directory = tempfile::tempdir().unwrap();
    let mut vectors = Vec::new();
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        let chain = KeyChain::generate(ChainName::new("orders").unwrap(), suite).unwrap();
        let kek = primary(&chain).await;
        for len in stream_lens() {
            let plaintext = vec![b'p'; len];
            let mut sealing = stream::seal_to(&chain, Vec::new(), b"row 7").unwrap();
            sealing.write_all(&plaintext).unwrap();
            let envelope = sealing.finish().unwrap();
            let vector = |valid, envelope: &[u8]| Vector {
                comment: format!("{suite}: a stream of {len} bytes"),
                suite: suite.to_string(),
                chain: "orders".to_owned(),
                kek: hex(kek.expose()),
                aad: hex(b"row 7"),
                plaintext: if valid { hex(&plaintext) } else { String::new() },
                envelope: hex(envelope),
                valid,
                ..Vector::default()
            };
            vectors.push(vector(false, &envelope[..envelope.len() - 1]));
            vectors.push(vector(true, &envelope));
        }
    }
    let output = check(&[write(directory.path(), &vectors)]);
    assert_success(&output);
    let half = vectors.len() / 2;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("{half} vectors opened, {half} refused\n")
    );
}

#[tokio::test]
async fn what_cryptography_seals_opens_here() {
    let name = ChainName::new("orders").unwrap();
    let kek = KeyBytes::from_slice(&[7; 16]).unwrap();
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        let kek = KeyBytes::from_slice(&kek.expose().repeat(suite.key_len() / 16)).unwrap();
        let (id, dek) = (KekId::of_key(kek.expose()), KeyBytes::random(suite).unwrap());
        let context = envelope::stream_context(suite, &name, b"row 7").unwrap();
        let messages: Vec<_> = stream_lens()
            .map(|len| {
                let (dek, context) = (hex(dek.expose()), hex(&context));
                json!({"dek": dek, "context": context, "plaintext": hex(&vec![b'p'; len])})
            })
            .collect();
        for (len, payload) in stream_lens().zip(seal_in_python(&messages)) {
            let (version, nonce) = (Version::StoredStream, [7; NONCE_LEN]);
            let mut wrapped = dek.expose().to_vec();
            let wrap_aad = envelope::dek_aad(version, suite, &id, &name);
            let tag = Cipher::new(&kek).seal(&nonce, &wrap_aad, &mut wrapped).unwrap();
            let mut envelope = Vec::new();
            envelope::write_header(&mut envelope, version, suite, &id, &nonce, &wrapped, &tag);
            envelope.extend_from_slice(&unhex(&payload));
            let vector = Vector {
                comment: String::new(),
                suite: suite.to_string(),
                chain: name.to_string(),
                kek: hex(kek.expose()),
                aad: hex(b"row 7"),
                plaintext: String::new(),
                envelope: hex(&envelope),
                valid: true,
                ..Vector::default()
            };
            assert!(vector.open().await == Some(vec![b'p'; len]), "{suite}, {len} bytes");
        }
    }
}

/// Payloads by the Cobblestone of `cryptography`.
fn seal_in_python(messages: &[Value]) -> Vec<String> {
    let mut child = python()
        .arg(root().join("tests/decryptor/seal.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), messages).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_success(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Envelopes by the library, under keys drawn just now: of every kind that opens, each with a
/// changed copy that does not.
async fn fresh_vectors() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        for (name, aad, len) in
            [("orders", "row 7", 5), ("0", "", 0), ("a-b_c.d", "Zürich", 15), ("x", "16", 16)]
        {
            let chain = ChainName::new(name).unwrap();
            let (aad, plaintext) = (aad.as_bytes(), vec![b'p'; len]);
            let mut keys = KeyChain::generate(chain.clone(), suite).unwrap();
            let old = primary(&keys).await;
            let sealed = keys.encrypt(&plaintext, aad).unwrap();
            let inline = inline(&chain, &old, aad, &plaintext);
            keys.rotate().unwrap();
            let new = primary(&keys).await;
            let rewrapped = keys.rewrap(&sealed).unwrap();
            for (comment, kek, envelope) in [
                ("encrypted", &old, sealed),
                ("version 2", &old, inline),
                ("rewrapped", &new, rewrapped),
            ] {
                let good = Vector {
                    comment: format!("{suite}, chain {name}: {comment}"),
                    suite: suite.to_string(),
                    chain: name.to_owned(),
                    kek: hex(kek.expose()),
                    aad: hex(aad),
                    plaintext: hex(&plaintext),
                    envelope: hex(&envelope),
                    valid: true,
                    ..Vector::default()
                };
                vectors.push(Vector {
                    comment: format!("{}, changed", good.comment),
                    plaintext: String::new(),
                    envelope: hex(
                        &[&envelope[..envelope.len() - 1], &[!envelope.last().unwrap()]].concat()
                    ),
                    valid: false,
                    rule: Some("payload".to_owned()),
                    ..good.clone()
                });
                vectors.push(good);
            }
        }
    }
    vectors.sort_by_key(|vector| !vector.valid);
    vectors
}

/// The primary KEK of a chain.
async fn primary(chain: &KeyChain) -> KeyBytes {
    let mut out = Vec::new();
    export::write_with_half_the_uses(chain, &Plain, &mut out).await.unwrap();
    let export: Value = serde_json::from_slice(&out).unwrap();
    let keks = export["keks"].as_array().unwrap();
    let primary = keks.iter().find(|kek| kek["id"] == export["primary"]).unwrap();
    let key = base64_simd::STANDARD.decode_to_vec(primary["wrap"].as_str().unwrap()).unwrap();
    KeyBytes::from_slice(&key).unwrap()
}

/// A version 2 envelope by the parts of the library: only a service writes one.
fn inline(chain: &ChainName, kek: &KeyBytes, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let (suite, id, nonce) = (kek.suite(), KekId::of_key(kek.expose()), [7; NONCE_LEN]);
    let wraps = vec![("main".into(), vec![5; 300].into()), ("dr".into(), vec![6; 28].into())];
    let record = InlineRecord { wraps }.to_bytes().unwrap();
    let version = Version::Inline(&record);
    let dek = KeyBytes::random(suite).unwrap();
    let mut wrapped = dek.expose().to_vec();
    let wrap_aad = envelope::dek_aad(version, suite, &id, chain);
    let tag = Cipher::new(kek).seal(&nonce, &wrap_aad, &mut wrapped).unwrap();
    let mut out = Vec::new();
    envelope::write_header(&mut out, version, suite, &id, &nonce, &wrapped, &tag);
    let aad = data_aad(suite, chain, aad);
    let mut message = plaintext.to_vec();
    let tag = Cipher::new(&dek).seal(&[0; NONCE_LEN], &aad, &mut message).unwrap();
    [out, message, tag.to_vec()].concat()
}

fn names(files: &[PathBuf]) -> Vec<OsString> {
    files.iter().map(|path| path.file_name().unwrap().to_owned()).collect()
}

fn write(directory: &Path, vectors: &[Vector]) -> PathBuf {
    let path = directory.join("fresh.json");
    std::fs::write(&path, serde_json::to_vec(vectors).unwrap()).unwrap();
    path
}

/// Runs the reader over files of vectors.
fn check(paths: &[PathBuf]) -> Output {
    python()
        .arg(root().join("tests/decryptor/decrypt.py"))
        .arg("check")
        .args(paths)
        .output()
        .unwrap()
}

/// A Python that has `cryptography`.
fn python() -> Command {
    #[expect(clippy::disallowed_methods, reason = "the caller of the tests names the tools")]
    let python = std::env::var_os("KMS_PROXY_TEST_PYTHON")
        .map_or_else(|| root().join("target/test-env/bin/python"), PathBuf::from);
    let probe = Command::new(&python).args(["-c", "import cryptography"]).output();
    assert!(
        probe.is_ok_and(|output| output.status.success()),
        "{} is no Python with `cryptography`\nrun: make test-env",
        python.display()
    );
    Command::new(python)
}

fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
