//! What a server says, when it may be shown: nothing that repeats a secret of the call, and nothing
//! that could be a KEK.
//!
//! A server, or what claims to be one, may send back what it received, in any encoding. Its texts
//! go to logs, to `/readyz` and to the status page. It knows no provider.

use std::collections::HashSet;
use std::sync::Arc;

use base64_simd::STANDARD;
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

/// What is shown instead of a text that is left out.
pub(super) const LEFT_OUT: &str = "(left out, since it may contain a secret)";

/// The longest text of others in an error, in characters.
const LONGEST: usize = 400;

/// Characters of base64 in a row that are a part of a secret: six bytes.
const BASE64_RUN: usize = 8;

/// Digits in hex in a row that are a part of a secret: six bytes.
const HEX_RUN: usize = 12;

/// Bytes in a row that are a part of a secret that is not text.
const BINARY_RUN: usize = 6;

/// Characters in a row that are a part of a secret that is text: tokens contain words.
const TEXT_RUN: usize = 16;

/// The characters of the shortest header of a JWT, `{"alg":"HS256"}`.
const SHORTEST_JWT: usize = 20;

/// A shorter secret could be a part of any word.
const SHORTEST: usize = 6;

/// The longest text of others that is read, in bytes: that of a larger one is never needed.
const LONGEST_READ: usize = 16 << 10;

/// How often a text may be escaped.
const ESCAPES: usize = 3;

/// The secrets that a call sends.
#[derive(Clone, Default)]
pub(super) struct Secrets(Vec<Arc<SecretBytes>>);

impl Secrets {
    /// The secret alone.
    pub(super) fn of(secret: &[u8]) -> Self {
        let mut secrets = Self::default();
        secrets.add(secret);
        secrets
    }

    pub(super) fn add(&mut self, secret: &[u8]) {
        self.0.push(Arc::new(SecretBytes::new(secret.to_vec())));
    }

    /// `text` of a server as one line of bounded length, or [`LEFT_OUT`].
    pub(super) fn line(&self, text: &str) -> String {
        if self.are_in(text) || could_be_key(text) { LEFT_OUT.to_owned() } else { line(text) }
    }

    /// Whether `text` repeats a part of a secret: as it is, in base64, in base64url, in hex or as
    /// numbers, also if that is escaped, or interrupted by other characters, or if what is encoded
    /// is a body that has the secret in base64. Of a text that is too long to be read it may.
    pub(super) fn are_in(&self, text: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        if text.len() > LONGEST_READ {
            return true;
        }
        let views = Views::of(text);
        self.0.iter().any(|secret| views.repeat(secret.expose()))
    }
}

/// One line of bounded length.
pub(super) fn line(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(LONGEST).collect()
}

/// Whether a word of `text` has the form of a KEK in base64 or hex, or of the start of a JWT. The
/// response to an unwrap may contain a KEK that this process does not know, and SDKs send JWTs by
/// themselves. The longer forms are those with a hash behind the KEK.
pub(super) fn could_be_key(text: &str) -> bool {
    let text = unescaped(text);
    text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/-_".contains(c))).any(|word| match word
        .len()
    {
        22 | 43 | 64 | 86 => true,
        32 if word.bytes().all(|b| b.is_ascii_hexdigit()) => true,
        len => len >= SHORTEST_JWT && word.starts_with("eyJ"),
    })
}

/// A text without the characters that don't belong to an encoding.
struct Views {
    /// In the alphabet of base64.
    base64: Zeroizing<Vec<u8>>,
    hex: Zeroizing<Vec<u8>>,
    bytes: Zeroizing<Vec<u8>>,
    /// Its characters as bytes, as a server does that takes bytes for Latin-1.
    latin1: Zeroizing<Vec<u8>>,
    /// Its decimal numbers as bytes.
    numbers: Zeroizing<Vec<u8>>,
}

impl Views {
    fn of(text: &str) -> Self {
        let text = unescaped(text);
        let digits = Zeroizing::new(text.to_ascii_lowercase().replace("0x", " "));
        let numbers = text.split(|c: char| !c.is_ascii_digit());
        Self {
            base64: in_base64(text.as_bytes()),
            hex: Zeroizing::new(digits.bytes().filter(u8::is_ascii_hexdigit).collect()),
            bytes: Zeroizing::new(text.as_bytes().to_vec()),
            latin1: Zeroizing::new(text.chars().filter_map(|c| u8::try_from(c).ok()).collect()),
            numbers: Zeroizing::new(numbers.filter_map(|number| number.parse().ok()).collect()),
        }
    }

    fn repeat(&self, secret: &[u8]) -> bool {
        if secret.len() < SHORTEST {
            return false;
        }
        let is_text = secret.iter().all(u8::is_ascii_graphic);
        let as_it_is = if is_text {
            repeats(&in_base64(secret), &self.base64, TEXT_RUN)
        } else {
            [&self.bytes, &self.latin1].iter().any(|view| repeats(secret, view, BINARY_RUN))
        };
        let base64 = encoded(secret, 0);
        let url = base64.iter().map(|&byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            byte => byte,
        });
        let url: Zeroizing<Vec<u8>> = Zeroizing::new(url.collect());
        as_it_is || [secret, &base64, &url].iter().any(|bytes| self.encode(bytes))
    }

    /// Whether the text has a part of `bytes` in an encoding.
    fn encode(&self, bytes: &[u8]) -> bool {
        let hex = Zeroizing::new(base16ct::lower::encode_string(bytes));
        repeats(hex.as_bytes(), &self.hex, HEX_RUN)
            || repeats(bytes, &self.numbers, BINARY_RUN)
            || (0..3).any(|before| repeats(&encoded(bytes, before), &self.base64, BASE64_RUN))
    }
}

/// Whether `text` contains `run` bytes in a row of `secret`, or all of it if it is shorter.
fn repeats(secret: &[u8], text: &[u8], run: usize) -> bool {
    let run = run.min(secret.len());
    if run < SHORTEST {
        return false;
    }
    let parts: HashSet<&[u8]> = secret.windows(run).collect();
    text.windows(run).any(|part| parts.contains(part))
}

/// The characters of base64, with those of base64url as the standard ones.
fn in_base64(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let characters = text.iter().filter_map(|&byte| match byte {
        b'-' => Some(b'+'),
        b'_' => Some(b'/'),
        b'+' | b'/' => Some(byte),
        _ => Some(byte).filter(u8::is_ascii_alphanumeric),
    });
    Zeroizing::new(characters.collect())
}

/// What `secret` is in base64 behind `before` other bytes: the characters that depend on it alone.
fn encoded(secret: &[u8], before: usize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(before + secret.len()));
    bytes.resize(before, 0);
    bytes.extend_from_slice(secret);
    let mut text = Zeroizing::new(STANDARD.encode_to_string(&*bytes).into_bytes());
    text.truncate(bytes.len() * 8 / 6);
    let shared = (before * 8).div_ceil(6).min(text.len());
    text.drain(..shared);
    text
}

/// `text` without the escapes of JSON, of URLs and of debuggers.
fn unescaped(text: &str) -> Zeroizing<String> {
    let mut text = Zeroizing::new(text.to_owned());
    for _ in 0..ESCAPES {
        let next = unescape(&text);
        if next.len() == text.len() {
            break;
        }
        text = next;
    }
    text
}

fn unescape(text: &str) -> Zeroizing<String> {
    let mut plain = Zeroizing::new(String::with_capacity(text.len()));
    let mut rest = text;
    while let Some((before, escape)) =
        rest.find(['\\', '%']).and_then(|at| rest.split_at_checked(at))
    {
        plain.push_str(before);
        let (mark, digits) = match escape.as_bytes() {
            [b'\\', b'u', ..] => (2, 4),
            [b'\\', b'x', ..] => (2, 2),
            [b'%', ..] => (1, 2),
            _ => (1, 0),
        };
        let code = escape.get(mark..mark + digits).filter(|code| !code.is_empty());
        let code = code.filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = code.and_then(|code| u32::from_str_radix(code, 16).ok());
        let skipped = match code.and_then(char::from_u32) {
            Some(character) => {
                plain.push(character);
                mark + digits
            }
            None => {
                if escape.starts_with('%') {
                    plain.push('%');
                }
                1
            }
        };
        rest = escape.get(skipped..).unwrap_or_default();
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use base64_simd::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    /// Every way in which a server may repeat `secret`.
    fn forms(secret: &[u8]) -> Vec<String> {
        let hex = base16ct::lower::encode_string(secret);
        let standard = STANDARD.encode_to_string(secret);
        let json = serde_json::json!({"body": format!("{{\"plaintext\":\"{standard}\"}}")});
        let escape = |c: char| format!("\\u{:04x}", u32::from(c));
        let bytes = |form: fn(&u8) -> String| secret.iter().map(form).collect::<String>();
        vec![
            standard.clone(),
            STANDARD_NO_PAD.encode_to_string(secret),
            URL_SAFE.encode_to_string(secret),
            URL_SAFE_NO_PAD.encode_to_string(secret),
            hex.to_uppercase(),
            hex.as_bytes().chunks(2).map(|b| String::from_utf8_lossy(b) + ":").collect(),
            hex,
            standard.replace('/', "\\/"),
            standard.replace('+', "\\u002b").replace('/', "\\u002F"),
            standard.replace('+', "\\\\u002b").replace('/', "\\\\\\/"),
            standard.replace('+', "%2B").replace('/', "%2f").replace('=', "%3D"),
            standard.chars().map(escape).collect(),
            standard.chars().map(|c| format!("{c}\n ")).collect(),
            json.to_string(),
            // In a longer value, at each place of a group of base64.
            STANDARD.encode_to_string([b"a", secret].concat()),
            STANDARD.encode_to_string([b"ab", secret, b"c"].concat()),
            STANDARD.encode_to_string([b"abc", secret].concat()),
            secret.iter().map(|&b| char::from(b)).collect(),
            bytes(|b| format!("\\x{b:02x}")),
            bytes(|b| format!("\\u00{b:02X}")),
            bytes(|b| format!("%{b:02X}")),
            bytes(|b| format!("0x{b:02x}, ")),
            format!("{secret:?}"),
            // The body of a call, which has it in base64.
            STANDARD.encode_to_string(json.to_string()),
            URL_SAFE.encode_to_string(format!(" {}", URL_SAFE.encode_to_string(secret))),
            base16ct::lower::encode_string(json.to_string().as_bytes()),
            format!("{:?}", json.to_string().as_bytes()),
        ]
    }

    proptest! {
        #[test]
        fn a_text_that_repeats_a_key_in_any_form_is_left_out(
            key in prop_oneof![any::<[u8; 16]>().prop_map(Vec::from),
                any::<[u8; 32]>().prop_map(Vec::from)],
        ) {
            let secrets = Secrets::of(&key);
            for form in forms(&key) {
                prop_assert_eq!(secrets.line(&format!("bad value '{form}' in it")), LEFT_OUT);
            }
        }

        #[test]
        fn any_text_is_read(text: String, secret: Vec<u8>) {
            let secrets = Secrets::of(&secret);
            prop_assert!(secrets.line(&text).chars().count() <= LONGEST);
        }
    }

    #[test]
    fn a_part_of_a_key_and_one_behind_the_end_of_the_line_are_left_out() {
        let key: Vec<u8> = (0..16).map(|n| n * 13 + 7).collect();
        let (secrets, text) = (Secrets::of(&key), STANDARD.encode_to_string(&key));
        for part in [&text[..8], &text[6..14], &text[13..21]] {
            assert_eq!(secrets.line(&format!("got {part}... for it")), LEFT_OUT, "{part}");
        }
        assert_eq!(secrets.line(&format!("{}{text}", "a ".repeat(195))), LEFT_OUT);
        assert_eq!(secrets.line(&"a ".repeat(LONGEST_READ)), LEFT_OUT);
    }

    #[test]
    fn a_token_is_left_out_and_the_words_in_it_are_not() {
        let token = b"ya29.metadata.q5GxZ~7f-_b3Yh0kLm9PqRsTuVw";
        let secrets = Secrets::of(token);
        for form in forms(token) {
            assert_eq!(secrets.line(&format!("token {form}?")), LEFT_OUT, "{form}");
        }
        assert_eq!(secrets.line("it ends in -_b3Yh0kLm9PqRsTuVw"), LEFT_OUT);
        for fine in ["ask the metadata server", "", "100 % of \\ it"] {
            assert_eq!(secrets.line(fine), fine);
        }
        assert_eq!(Secrets::of(b"hunter2").line("hunter2 is wrong"), LEFT_OUT);
        assert_eq!(Secrets::of(b"it").line("it is wrong"), "it is wrong");
    }

    #[test]
    fn a_text_that_could_have_a_key_that_is_not_known_is_left_out() {
        let none = Secrets::default();
        for len in [16, 32, 48, 64] {
            let key: Vec<u8> = (0..len).map(|n| n * 3 + 129).collect();
            for form in [
                STANDARD.encode_to_string(&key),
                URL_SAFE_NO_PAD.encode_to_string(&key),
                STANDARD.encode_to_string(&key).replace('/', "\\/").replace('+', "\\u002b"),
            ] {
                assert_eq!(none.line(&format!("{{\"plaintext\":\"{form}\"}}")), LEFT_OUT, "{form}");
            }
        }
        for header in ["{\"alg\":\"HS256\"}", "{\"typ\":\"JWT\",\"alg\":\"RS256\"}"] {
            let jwt = format!("{}.e30.c2ln", URL_SAFE_NO_PAD.encode_to_string(header));
            assert_eq!(none.line(&format!("{jwt} is invalid")), LEFT_OUT, "{jwt}");
        }
        for digits in [32, 64] {
            assert_eq!(none.line(&format!("key={}", "0aF9".repeat(digits / 4))), LEFT_OUT);
        }
        for fine in [
            "Permission denied on resource 'projects/p/locations/eu/keyRings/r' (or it may not be)",
            "arn:aws:kms:eu-central-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef",
            "Caller: appid=e49f4d0e-1096-fe4d-69c3-875fcfb482fe;iss=https://sts.windows.net/",
            "a key with id keys/one/0123456789abcdef0123456789abcdef was not found",
        ] {
            assert_eq!(none.line(fine), fine);
        }
    }
}
