//! The trace that a request belongs to, as the header `traceparent` names it.
//!
//! A leaf: it reads the text of the header, and knows neither HTTP nor logs. The format is that of
//! W3C Trace Context, section 3.2 (<https://www.w3.org/TR/trace-context/>).

use std::fmt;

/// The length of a header of version 00, in bytes. Later versions begin in the same way.
const LEN: usize = 55;

/// The trace that a request belongs to, and the span of the caller that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: TraceId,
    parent_id: [u8; 8],
    is_sampled: bool,
}

impl TraceContext {
    /// Reads the value of a `traceparent` header; `None` if it is invalid. The standard asks that
    /// an invalid header is ignored.
    #[must_use]
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (known, rest) = header.split_at_checked(LEN)?;
        let mut fields = known.split(|&byte| byte == b'-');
        let version: [u8; 1] = bytes_of(fields.next()?)?;
        let trace_id: [u8; 16] = bytes_of(fields.next()?)?;
        let parent_id: [u8; 8] = bytes_of(fields.next()?)?;
        let [flags] = bytes_of(fields.next()?)?;
        let is_of_version = match version {
            [0] => rest.is_empty(),
            [0xff] => false,
            _ => rest.is_empty() || rest.starts_with(b"-"),
        };
        let is_valid = is_of_version && trace_id != [0; 16] && parent_id != [0; 8];
        let trace_id = TraceId::new(trace_id);
        is_valid.then_some(Self { trace_id, parent_id, is_sampled: flags & 1 == 1 })
    }

    /// The trace.
    #[must_use]
    pub const fn trace_id(&self) -> &TraceId {
        &self.trace_id
    }

    /// The span of the caller.
    #[must_use]
    pub const fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Whether the caller records its part of the trace.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.is_sampled
    }
}

/// The id of a trace: 16 bytes, kept as their 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceId([u8; 32]);

impl TraceId {
    /// The trace with the id `bytes`.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        let mut digits = [0; 32];
        // There is room for all digits.
        _ = base16ct::lower::encode(&bytes, &mut digits);
        Self(digits)
    }

    /// Its digits, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The bytes that lower-case hexadecimal digits represent.
fn bytes_of<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let read = base16ct::lower::decode(digits, &mut bytes).ok()?;
    (read.len() == N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn a_valid_header_names_a_trace() {
        for (version, flags, more, is_sampled) in [
            ("00", "01", "", true),
            ("00", "00", "", false),
            // Unknown flags and fields of later versions are ignored.
            ("00", "fe", "", false),
            ("01", "03", "", true),
            ("cc", "01", "-what the future holds", true),
        ] {
            let header = format!("{version}-{TRACE}-{PARENT}-{flags}{more}");
            let context = TraceContext::parse(header.as_bytes()).expect(&header);
            assert_eq!(context.trace_id().as_str(), TRACE);
            assert_eq!(context.parent_id(), [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
            assert_eq!(context.is_sampled(), is_sampled, "{header}");
        }
    }

    #[test]
    fn an_invalid_header_is_ignored() {
        let upper = TRACE.to_uppercase();
        let zeros = "0".repeat(32);
        for header in [
            String::new(),
            "00".into(),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("0x-{TRACE}-{PARENT}-01"),
            format!("FF-{TRACE}-{PARENT}-01"),
            format!("00-{upper}-{PARENT}-01"),
            format!("00-{zeros}-{PARENT}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{TRACE}-{PARENT}-1"),
            format!("00-{TRACE}-{PARENT}-zz"),
            format!("00-{TRACE}-{PARENT}-01-"),
            format!("00-{TRACE}-{PARENT}-01-x"),
            format!("01-{TRACE}-{PARENT}-01x"),
            format!("00-{TRACE}_{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}é01"),
            format!("00-{}-{PARENT}0-01", &TRACE[1..]),
            format!(" 00-{TRACE}-{PARENT}-01"),
        ] {
            assert_eq!(TraceContext::parse(header.as_bytes()), None, "{header:?}");
        }
    }
}
