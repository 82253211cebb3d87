//! The published vectors of AES-GCM, each by both implementations: Project Wycheproof
//! (`tests/vectors/wycheproof`) and NIST's CAVP (`tests/vectors/cavp`).
//!
//! It knows the formats of those files, which the repository has and the package does not. Builds
//! without AWS-LC run the same vectors by `aes-gcm`.

use serde::Deserialize;

use super::*;

/// One vector, whatever file it is from. Bytes are hex.
struct Vector {
    name: String,
    key: String,
    nonce: String,
    aad: String,
    plaintext: String,
    ciphertext: String,
    tag: String,
    is_valid: bool,
}

/// A file of `tests/vectors`.
fn file(name: &str) -> String {
    let path = format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn hex(text: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(text).unwrap()
}

impl Vector {
    /// Seals and opens it with both implementations.
    fn check(&self) {
        let name = &self.name;
        let key = KeyBytes::from_slice(&hex(&self.key)).unwrap();
        let nonce: [u8; NONCE_LEN] = hex(&self.nonce).try_into().unwrap();
        let tag: [u8; TAG_LEN] = hex(&self.tag).try_into().unwrap();
        let (aad, plaintext) = (hex(&self.aad), hex(&self.plaintext));
        let ciphertext = hex(&self.ciphertext);
        let (cipher, bulk) = (Cipher::new(&key), BulkCipher::new(&key).unwrap());

        let (mut one, mut two) = (ciphertext.clone(), ciphertext.clone());
        let opened = cipher.open(&nonce, &aad, &mut one, &tag);
        assert_eq!(bulk.open(&nonce, &aad, &mut two, &tag), opened, "{name}: AWS-LC opens");
        if !self.is_valid {
            assert_eq!(opened, Err(Failed), "{name}");
            assert_eq!(one, ciphertext, "{name}: a failed open leaves the buffer alone");
            return;
        }
        assert_eq!(opened, Ok(()), "{name}");
        assert!(one == plaintext && two == plaintext, "{name}");
        let (mut one, mut two) = (plaintext.clone(), plaintext.clone());
        assert_eq!(cipher.seal(&nonce, &aad, &mut one), Ok(tag), "{name}");
        assert_eq!(bulk.seal(&nonce, &aad, &mut two), Ok(tag), "{name}: AWS-LC seals");
        assert!(one == ciphertext && two == ciphertext, "{name}");
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    number_of_tests: usize,
    test_groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    key_size: usize,
    iv_size: usize,
    tag_size: usize,
    tests: Vec<Test>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Test {
    tc_id: usize,
    key: String,
    iv: String,
    aad: String,
    msg: String,
    ct: String,
    tag: String,
    result: String,
}

/// Skipped are the groups of AES-192, which no suite has, and those with a nonce that has not 96
/// bits: the functions of this module take 12 bytes, so there is no call to make.
#[test]
fn every_vector_of_wycheproof_that_fits_passes() {
    let file: File = serde_json::from_str(&file("wycheproof/aes_gcm_test.json")).unwrap();
    let (mut valid, mut invalid, mut of_aes_192, mut of_other_nonces) = (0, 0, 0, 0);
    for group in &file.test_groups {
        assert_eq!(group.tag_size, 8 * TAG_LEN);
        if group.key_size == 192 {
            of_aes_192 += group.tests.len();
            continue;
        }
        if group.iv_size != 8 * NONCE_LEN {
            of_other_nonces += group.tests.len();
            continue;
        }
        for test in &group.tests {
            let is_valid = test.result == "valid";
            assert!(is_valid || test.result == "invalid", "{}", test.result);
            *(if is_valid { &mut valid } else { &mut invalid }) += 1;
            let vector = Vector {
                name: format!("AES-{}, test {}", group.key_size, test.tc_id),
                key: test.key.clone(),
                nonce: test.iv.clone(),
                aad: test.aad.clone(),
                plaintext: test.msg.clone(),
                ciphertext: test.ct.clone(),
                tag: test.tag.clone(),
                is_valid,
            };
            vector.check();
        }
    }
    println!(
        "{valid} valid and {invalid} invalid vectors of Wycheproof; {of_aes_192} of AES-192 and \
         {of_other_nonces} of other nonces skipped"
    );
    assert_eq!((valid, invalid, of_aes_192, of_other_nonces), WYCHEPROOF);
    assert_eq!(valid + invalid + of_aes_192 + of_other_nonces, file.number_of_tests);
}

/// Valid, invalid, skipped for AES-192, skipped for their nonce.
const WYCHEPROOF: (usize, usize, usize, usize) = (79, 54, 103, 80);

#[test]
fn every_vector_of_cavp_passes() {
    let mut seen = Vec::new();
    for name in ["gcmDecrypt128", "gcmDecrypt256", "gcmEncryptExtIV128", "gcmEncryptExtIV256"] {
        let vectors = rsp(name, &file(&format!("cavp/{name}.rsp")));
        vectors.iter().for_each(Vector::check);
        seen.push((vectors.len(), vectors.iter().filter(|vector| !vector.is_valid).count()));
    }
    println!("vectors of CAVP by file, and those that must not open: {seen:?}");
    assert_eq!(seen, [(375, 196), (375, 191), (375, 0), (375, 0)]);
}

/// Reads a response file: blocks of `NAME = VALUE` lines; `FAIL` stands for the plaintext of what
/// must not open.
fn rsp(file: &str, text: &str) -> Vec<Vector> {
    let blocks = text.split("Count = ").skip(1);
    let vectors = blocks.map(|block| {
        let of = |name: &str| {
            let mut lines = block.lines().filter_map(|line| line.split_once(" = "));
            let (_, value) = lines.find(|(found, _)| *found == name).unwrap();
            value.trim().to_owned()
        };
        let is_valid = !block.lines().any(|line| line == "FAIL");
        Vector {
            name: format!("{file}, key {}", of("Key")),
            key: of("Key"),
            nonce: of("IV"),
            aad: of("AAD"),
            plaintext: if is_valid { of("PT") } else { String::new() },
            ciphertext: of("CT"),
            tag: of("Tag"),
            is_valid,
        }
    });
    vectors.collect()
}
