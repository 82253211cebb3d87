//! The lines of the log, as JSON. A line begins with `v` and `seq`, which the writer adds: what is
//! made here begins after them.
//!
//! It knows the fields and their order, and nothing about rules and sinks.

use std::cell::RefCell;
use std::fmt;
use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

/// The value of a field of a change.
pub type Value<'a> = dyn fmt::Display + Send + Sync + 'a;

/// The longest text of a caller in a line, in bytes. It is cut off.
const MAX_TEXT: usize = 256;

/// The object of a line, without its beginning.
pub(super) struct Line<'a>(&'a mut Vec<u8>);

impl<'a> Line<'a> {
    /// Begins with the fields that all lines of a process or of a call have: those that
    /// [`Head::start`] wrote.
    pub(super) fn after(head: &[u8], out: &'a mut Vec<u8>) -> Self {
        out.extend_from_slice(head);
        Self(out)
    }

    /// Continues what is in `out`.
    pub(super) fn onto(out: &'a mut Vec<u8>) -> Self {
        Self(out)
    }

    /// The bytes that there are, also those before the line.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// A text that needs no escaping: letters, digits and `.:_/+=-[]%`.
    pub(super) fn plain(mut self, key: &'static str, text: &str) -> Self {
        self.key(key);
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
        self
    }

    /// A text that may need escaping, or null.
    pub(super) fn text(mut self, key: &'static str, text: Option<&str>) -> Self {
        self.key(key);
        match text {
            Some(text) => escape(self.0, text),
            None => self.0.extend_from_slice(b"null"),
        }
        self
    }

    /// The same, left out without a text.
    pub(super) fn some(self, key: &'static str, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.text(key, Some(text)),
            None => self,
        }
    }

    /// A number, left out without one.
    pub(super) fn number(mut self, key: &'static str, number: Option<u64>) -> Self {
        if let Some(number) = number {
            self.key(key);
            decimal(self.0, number);
        }
        self
    }

    /// A text that is not cut off.
    pub(super) fn whole(mut self, key: &'static str, text: &str) -> Self {
        self.key(key);
        escape_whole(self.0, text);
        self
    }

    /// An HMAC: `hmac:` and its base64.
    pub(super) fn hmac(mut self, key: &'static str, hmac: &[u8; 32]) -> Self {
        self.key(key);
        self.0.extend_from_slice(b"\"hmac:");
        base64_simd::STANDARD.encode_append(hmac, self.0);
        self.0.push(b'"');
        self
    }

    /// JSON that is written already.
    pub(super) fn json(mut self, key: &'static str, json: &str) -> Self {
        self.key(key);
        self.0.extend_from_slice(json.as_bytes());
        self
    }

    /// Ends the line.
    pub(super) fn end(self) {
        self.0.extend_from_slice(b"}\n");
    }
}

/// Writes the first fields of a line: `time`, and `node`, which is JSON already.
pub(super) fn start(out: &mut Vec<u8>, unix_millis: u64, node: &str) {
    out.extend_from_slice(b"\"time\":\"");
    time(out, unix_millis);
    out.extend_from_slice(b"\",\"node\":");
    out.extend_from_slice(node.as_bytes());
}

/// Writes a text as JSON, cut off where it is too long.
pub(super) fn escape(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    escape_whole(out, text.get(..end).unwrap_or_default());
}

/// Writes a text as JSON, however long it is.
pub(super) fn escape_whole(out: &mut Vec<u8>, text: &str) {
    if text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        // A text can be written, and a vector takes it.
        _ = serde_json::to_writer(&mut *out, text);
    } else {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}

/// The text of an AAD that is shown: `text:` and the AAD if it is UTF-8, else `base64:` and its
/// base64.
pub(super) fn plain_aad(aad: &[u8]) -> String {
    match std::str::from_utf8(aad) {
        Ok(text) => format!("text:{text}"),
        Err(_) => format!("base64:{}", base64_simd::STANDARD.encode_to_string(aad)),
    }
}

/// A text as JSON.
pub(super) fn json(text: &str) -> String {
    let mut out = Vec::new();
    escape(&mut out, text);
    String::from_utf8(out).unwrap_or_default()
}

/// Writes a number.
pub(super) fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(digits.len() - used..).unwrap_or_default());
}

/// The last millisecond that RFC 3339 can write.
const LAST: u64 = 253_402_300_799_999;

/// Writes a time as RFC 3339 in UTC, with milliseconds.
fn time(out: &mut Vec<u8>, unix_millis: u64) {
    thread_local! {
        /// The last second, and its text up to the point: to write the calendar is slow.
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let millis = unix_millis.min(LAST);
    let (second, rest) = (millis / 1_000, millis % 1_000);
    SECOND.with_borrow_mut(|(known, text)| {
        if *known != second {
            let at = UNIX_EPOCH + Duration::from_secs(second);
            *text = humantime::format_rfc3339_seconds(at).to_string();
            text.pop();
            *known = second;
        }
        out.extend_from_slice(text.as_bytes());
    });
    let digit = |divisor: u64| b'0' + u8::try_from(rest / divisor % 10).unwrap_or_default();
    out.extend_from_slice(&[b'.', digit(100), digit(10), digit(1), b'Z']);
}

/// JSON that `write` makes, such as the description of a change.
pub(super) fn object(fields: &[(&str, &Value<'_>)]) -> String {
    let mut out = Vec::new();
    for (index, (key, value)) in fields.iter().enumerate() {
        out.push(if index == 0 { b'{' } else { b',' });
        escape(&mut out, key);
        out.push(b':');
        // Numbers and truth values stay what they are.
        let text = value.to_string();
        let is_bare = matches!(&*text, "true" | "false" | "null")
            || !text.is_empty() && text.len() < 20 && text.bytes().all(|b| b.is_ascii_digit());
        if is_bare {
            _ = out.write_all(text.as_bytes());
        } else {
            escape(&mut out, &text);
        }
    }
    out.push(b'}');
    String::from_utf8(out).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(line: &[u8]) -> Value {
        let line = [b"{\"v\":1,\"seq\":7,", line].concat();
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn a_line_is_an_object_with_its_fields_in_order() {
        let (mut head, mut out) = (Vec::new(), Vec::new());
        start(&mut head, 1_767_225_600_012, "\"a\"");
        Line::after(&head, &mut out)
            .plain("operation", "encrypt")
            .text("client", None)
            .some("call", None)
            .number("plaintext_bytes", Some(u64::MAX))
            .number("item", None)
            .json("change", "{\"b\":1}")
            .end();
        assert_eq!(
            String::from_utf8(out.clone()).unwrap(),
            "\"time\":\"2026-01-01T00:00:00.012Z\",\"node\":\"a\",\"operation\":\"encrypt\",\
             \"client\":null,\"plaintext_bytes\":18446744073709551615,\"change\":{\"b\":1}}\n"
        );
        assert_eq!(read(&out)["change"], json!({"b": 1}));
    }

    #[test]
    fn what_callers_control_is_escaped_and_cut_off() {
        for text in ["a\"b\\c", "line\nfeed\r\t\0", "\u{7f}\u{2028}\u{1f600}", ""] {
            let mut out = Vec::new();
            Line::after(b"\"time\":\"\"", &mut out).text("call", Some(text)).end();
            assert_eq!(read(&out)["call"], text);
        }
        for long in ["x".repeat(10_000), "\u{1f600}".repeat(1_000)] {
            let mut out = Vec::new();
            Line::after(b"\"time\":\"\"", &mut out).text("call", Some(&long)).end();
            let line = read(&out);
            let cut = line["call"].as_str().unwrap();
            assert!(cut.len() <= MAX_TEXT && cut.len() > MAX_TEXT - 4 && long.starts_with(cut));
        }
    }

    #[test]
    fn times_and_numbers_are_written_as_others_write_them() {
        for millis in [0, 1, 999, 1_000, 1_767_225_599_999, 1_767_225_600_000, LAST, LAST + 1] {
            let mut out = Vec::new();
            time(&mut out, millis);
            let at = UNIX_EPOCH + Duration::from_millis(millis.min(LAST));
            let expected = humantime::format_rfc3339_millis(at).to_string();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        for number in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            decimal(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    #[test]
    fn a_change_has_numbers_and_texts() {
        let change = object(&[("uses", &7), ("created", &true), ("state", &"dis\"abled")]);
        let read: Value = serde_json::from_str(&change).unwrap();
        assert_eq!(read, json!({"uses": 7, "created": true, "state": "dis\"abled"}));
    }
}
