//! The wire format seen from outside: known answers by an independent writer (`tests/vectors`), and
//! an independent reader (`tests/decryptor`) over them and over envelopes made just now.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use kms_proxy::aead::{Cipher, NONCE_LEN};
use kms_proxy::envelope::{self, CarriedRecord, Envelope, Header, Version};
use kms_proxy::id::{ChainName, KekId, Suite};
use kms_proxy::keychain::KeyChain;
use kms_proxy::keychain::budget::Budget;
use kms_proxy::keychain::kek::Kek;
use kms_proxy::secret::KeyBytes;
use serde::{Deserialize, Serialize};

/// One known answer. Bytes are lower-case hex.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    comment: String,
    suite: String,
    chain: String,
    kek: String,
    aad: String,
    /// Empty where `valid` is false.
    plaintext: String,
    envelope: String,
    valid: bool,
}

impl Vector {
    /// What a process sees that holds this chain with this KEK.
    fn open(&self) -> Option<Vec<u8>> {
        let name = ChainName::new(&self.chain).ok()?;
        let kek = Kek::new(&name, KeyBytes::from_slice(&unhex(&self.kek))?);
        let mut chain = KeyChain::empty(name);
        chain.hold(Arc::new(kek));
        let opened = chain.decrypt(&unhex(&self.envelope), &unhex(&self.aad)).ok()?;
        Some(opened.as_slice().to_vec())
    }
}

#[test]
fn every_vector_opens_or_is_refused_as_it_says() {
    let vectors = vectors();
    let valid = vectors.iter().filter(|vector| vector.valid).count();
    assert!(vectors.len() >= 40 && valid >= 20 && valid * 2 <= vectors.len(), "{valid} valid");
    for vector in vectors {
        let expected = vector.valid.then(|| unhex(&vector.plaintext));
        assert_eq!(vector.open(), expected, "{}", vector.comment);
        assert!(vector.valid || vector.plaintext.is_empty(), "{}", vector.comment);
    }
}

#[test]
fn valid_vectors_name_the_id_and_the_suite_of_their_kek() {
    for vector in vectors().into_iter().filter(|vector| vector.valid) {
        let (bytes, kek) = (unhex(&vector.envelope), unhex(&vector.kek));
        let header = Envelope::parse(&bytes).unwrap().header;
        assert_eq!(header.kek_id, KekId::of_key(&kek), "{}", vector.comment);
        assert_eq!(header.suite.as_str(), vector.suite, "{}", vector.comment);
        assert_eq!(header.suite.key_len(), kek.len(), "{}", vector.comment);
        let text = envelope::to_text(&bytes);
        assert_eq!(envelope::from_text(&text).unwrap(), bytes, "{}", vector.comment);
    }
}

#[test]
fn the_example_in_the_document_is_what_the_library_makes() {
    let document = std::fs::read_to_string(root().join("docs/format.md")).unwrap();
    let shown = hex_of_code_blocks(&document);
    let vectors = vectors();
    for comment in ["the example of docs/format.md", "the version 2 example of docs/format.md"] {
        let vector = vectors.iter().find(|vector| vector.comment == comment).unwrap();
        assert!(shown.contains(&vector.envelope), "{comment}");
        let chain = ChainName::new(&vector.chain).unwrap();
        let bytes = unhex(&vector.envelope);
        let (header, _) = Header::split_from(&bytes).unwrap();
        assert!(document.contains(&header.kek_id.to_string()), "{comment}: kek_id");
        if header.version == Version::Stored {
            assert!(document.contains(&envelope::to_text(&bytes)), "{comment}: text");
            assert!(shown.contains(&hex(&header.dek_aad(&chain))), "{comment}: AAD of the wrap");
            let aad = data_aad(header.suite, &chain, &unhex(&vector.aad));
            assert!(shown.contains(&hex(&aad)), "{comment}: AAD of the payload");
        }
    }
}

#[test]
fn the_writer_makes_these_vectors_again() {
    let fresh = tempfile::tempdir().unwrap();
    let output = python().arg(root().join("tests/vectors/make.py")).arg(fresh.path()).output();
    assert_success(&output.unwrap());
    let (ours, theirs) = (files(&root().join("tests/vectors")), files(fresh.path()));
    assert_eq!(names(&ours), names(&theirs));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let same = std::fs::read(ours).unwrap() == std::fs::read(theirs).unwrap();
        assert!(same, "{} is not what make.py writes", ours.display());
    }
}

#[test]
fn the_reader_in_python_agrees_on_the_vectors_and_on_fresh_envelopes() {
    let directory = tempfile::tempdir().unwrap();
    let fresh = fresh_vectors();
    let mut paths = files(&root().join("tests/vectors"));
    paths.push(write(directory.path(), &fresh));
    let output = check(&paths);
    assert_success(&output);
    let all = [vectors(), fresh].concat();
    let opened = all.iter().filter(|vector| vector.valid).count();
    let expected = format!("{opened} vectors opened, {} refused\n", all.len() - opened);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn the_reader_in_python_reports_what_goes_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let good = fresh_vectors().swap_remove(0);
    assert_success(&check(&[write(directory.path(), std::slice::from_ref(&good))]));
    let other_plaintext = Vector { plaintext: format!("{}00", good.plaintext), ..good.clone() };
    let opens_after_all = Vector { valid: false, plaintext: String::new(), ..good.clone() };
    let other_aad = Vector { aad: format!("{}00", good.aad), ..good };
    for bad in [other_plaintext, opens_after_all, other_aad] {
        let output = check(&[write(directory.path(), &[bad])]);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(check(&[write(directory.path(), &[])]).status.code(), Some(1), "no vectors at all");
}

/// Envelopes by the library, under keys drawn just now: of every kind that opens, each with a
/// changed copy that does not.
fn fresh_vectors() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        for (name, aad, len) in
            [("orders", "row 7", 5), ("0", "", 0), ("a-b_c.d", "Zürich", 15), ("x", "16", 16)]
        {
            let chain = ChainName::new(name).unwrap();
            let (aad, plaintext) = (aad.as_bytes(), vec![b'p'; len]);
            let (old, new) = (kek(&chain, suite), kek(&chain, suite));
            let mut keys = KeyChain::empty(chain.clone());
            keys.set_primary(Arc::clone(&old), Arc::new(Budget::unshared(1)));
            let sealed = keys.encrypt(&plaintext, aad).unwrap();
            let carried = carried(&chain, &old, aad, &plaintext);
            keys.set_primary(Arc::clone(&new), Arc::new(Budget::unshared(1)));
            let rewrapped = keys.rewrap(&sealed).unwrap();
            for (comment, kek, envelope) in [
                ("encrypted", &old, sealed),
                ("version 2", &old, carried),
                ("rewrapped", &new, rewrapped),
            ] {
                let good = Vector {
                    comment: format!("{suite}, chain {name}: {comment}"),
                    suite: suite.to_string(),
                    chain: name.to_owned(),
                    kek: hex(kek.key().expose()),
                    aad: hex(aad),
                    plaintext: hex(&plaintext),
                    envelope: hex(&envelope),
                    valid: true,
                };
                vectors.push(Vector {
                    comment: format!("{}, changed", good.comment),
                    plaintext: String::new(),
                    envelope: hex(
                        &[&envelope[..envelope.len() - 1], &[!envelope.last().unwrap()]].concat()
                    ),
                    valid: false,
                    ..good.clone()
                });
                vectors.push(good);
            }
        }
    }
    vectors.sort_by_key(|vector| !vector.valid);
    vectors
}

fn kek(chain: &ChainName, suite: Suite) -> Arc<Kek> {
    Arc::new(Kek::new(chain, KeyBytes::random(suite).unwrap()))
}

/// A version 2 envelope by the library's parts; no call of it writes one yet.
fn carried(chain: &ChainName, kek: &Kek, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let (suite, id, nonce) = (kek.suite(), kek.id(), [7; NONCE_LEN]);
    let wraps = vec![("main".into(), vec![5; 300].into()), ("dr".into(), vec![6; 28].into())];
    let record = CarriedRecord { wraps }.to_bytes().unwrap();
    let version = Version::Carried(&record);
    let dek = KeyBytes::random(suite).unwrap();
    let mut wrapped = dek.expose().to_vec();
    let wrap_aad = envelope::dek_aad(version, suite, &id, chain);
    let tag = Cipher::new(kek.key()).seal(&nonce, &wrap_aad, &mut wrapped).unwrap();
    let mut out = Vec::new();
    envelope::write_header(&mut out, version, suite, &id, &nonce, &wrapped, &tag);
    let aad = data_aad(suite, chain, aad);
    let mut message = plaintext.to_vec();
    let tag = Cipher::new(&dek).seal(&[0; NONCE_LEN], &aad, &mut message).unwrap();
    [out, message, tag.to_vec()].concat()
}

fn data_aad(suite: Suite, chain: &ChainName, aad: &[u8]) -> Vec<u8> {
    envelope::push_data_aad(&envelope::data_aad_prefix(suite, chain), aad).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn vectors() -> Vec<Vector> {
    let read = |path| serde_json::from_slice::<Vec<Vector>>(&std::fs::read(path).unwrap()).unwrap();
    files(&root().join("tests/vectors")).into_iter().flat_map(read).collect()
}

/// The JSON files of a directory, in order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension() == Some("json".as_ref())).collect();
    files.sort();
    files
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

/// The hex digits that stand at the start of the lines of the document's code blocks, in one row.
fn hex_of_code_blocks(document: &str) -> String {
    let is_hex = |word: &&str| word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let blocks = document.split("```").skip(1).step_by(2);
    blocks.flat_map(str::lines).flat_map(|line| line.split(' ').take_while(is_hex)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}
