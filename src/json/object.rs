//! Writes a JSON object of strings.
//!
//! Base64, hex and chain names need no escaping, so this writes the responses of calls on data
//! several times faster than a serializer.

use base64_simd::STANDARD;

/// One JSON object at the end of a buffer.
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Object<'a> {
    /// Starts an object; `room` bytes are about what will be written.
    pub(crate) fn start(out: &'a mut Vec<u8>, room: usize) -> Self {
        out.reserve(room);
        out.push(b'{');
        Self { out, empty: true }
    }

    /// About how many bytes an object with `len` binary bytes takes.
    pub(crate) fn room(len: usize) -> usize {
        STANDARD.encoded_length(len) + 192
    }

    /// Starts a member; its value comes next.
    fn key(&mut self, key: &'static str) {
        self.out.extend_from_slice(if self.empty { b"\"" } else { b",\"" });
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.empty = false;
    }

    /// Any text.
    pub(crate) fn text(mut self, key: &'static str, text: &str) -> Self {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/:_.-".contains(&byte);
        if text.bytes().all(is_plain) {
            return self.plain(key, text);
        }
        self.key(key);
        // A text can always be written to memory.
        _ = serde_json::to_writer(&mut *self.out, text);
        self
    }

    /// A text that needs no escaping: of letters, digits and `.:_-`.
    pub(crate) fn plain(mut self, key: &'static str, text: &str) -> Self {
        self.key(key);
        self.out.push(b'"');
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'"');
        self
    }

    /// Bytes as standard base64.
    pub(crate) fn base64(self, key: &'static str, bytes: &[u8]) -> Self {
        self.prefixed_base64(key, "", bytes)
    }

    /// Bytes as standard base64 after a text that needs no escaping.
    pub(crate) fn prefixed_base64(
        mut self,
        key: &'static str,
        prefix: &'static str,
        bytes: &[u8],
    ) -> Self {
        self.key(key);
        self.out.push(b'"');
        self.out.extend_from_slice(prefix.as_bytes());
        STANDARD.encode_append(bytes, self.out);
        self.out.push(b'"');
        self
    }

    /// Ends the object.
    pub(crate) fn end(self) {
        self.out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn objects_are_read_as_they_were_written() {
        let texts = ["", "arn:aws:kms:r:1:key/a", "a\"b\\c\n\u{1}\u{e4}\u{1f600}", "<&>'\u{7f}"];
        for text in texts {
            let mut out = b"before".to_vec();
            let object = Object::start(&mut out, 0).base64("a", text.as_bytes()).text("b", text);
            object.prefixed_base64("c", "kp:", b"\xff\xfe").plain("d", "orders-2").end();
            let read: Value = serde_json::from_slice(&out["before".len()..]).unwrap();
            let base64 = STANDARD.encode_to_string(text);
            assert_eq!(read, json!({"a": base64, "b": text, "c": "kp://4=", "d": "orders-2"}));
        }
        let mut out = Vec::new();
        Object::start(&mut out, 0).end();
        assert_eq!(out, b"{}");
    }
}
