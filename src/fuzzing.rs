//! The targets of the fuzzers: each takes any bytes, and asserts what must hold whatever they are.
//!
//! It is compiled for tests and for `fuzz/` alone (`--cfg fuzzing`), where libFuzzer calls the same
//! functions. Targets of private parsers stand beside them. The same bytes take the same path, but
//! for random keys; no target reads a file or the clock.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure is the result")]

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

mod audit;
mod config;
mod names;
mod records;
mod streams;
#[cfg(test)]
mod tests;
mod wire;

pub use crate::auth::fuzzing::jwt;
pub use crate::aws_api::fuzzing::aws_request;
pub use crate::cobblestone::fuzzing::chunks;
pub use crate::http::fuzzing::data_call;
pub use crate::sigv4::fuzzing::sigv4;
pub use audit::{audit_line, audit_log};
pub use config::config;
pub use names::names;
pub use records::record;
pub use streams::stream;
pub use wire::envelope;

/// A target: its name, and the function that a fuzzer calls.
pub type Target = (&'static str, fn(&[u8]));

/// All targets. `fuzz/` has a program and seeds for each of them.
pub const TARGETS: [Target; 12] = [
    ("audit_line", audit_line),
    ("audit_log", audit_log),
    ("aws_request", aws_request),
    ("chunks", chunks),
    ("config", config),
    ("data_call", data_call),
    ("envelope", envelope),
    ("jwt", jwt),
    ("names", names),
    ("record", record),
    ("sigv4", sigv4),
    ("stream", stream),
];

/// The members of a JSON object in their order, also those that occur twice; `None` if `json` is no
/// object, or no JSON. It is read without the types of the crate.
pub(crate) fn members(json: &[u8]) -> Option<Vec<(String, Value)>> {
    struct Members(Vec<(String, Value)>);

    impl<'de> Deserialize<'de> for Members {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Object;

            impl<'de> Visitor<'de> for Object {
                type Value = Members;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                    let mut members = Vec::new();
                    while let Some(member) = map.next_entry()? {
                        members.push(member);
                    }
                    Ok(Members(members))
                }
            }

            deserializer.deserialize_map(Object)
        }
    }

    serde_json::from_slice(json).ok().map(|Members(members)| members)
}

/// The value of a member; `None` if it does not occur exactly once.
pub(crate) fn only<'a>(members: &'a [(String, Value)], name: &str) -> Option<&'a Value> {
    let mut values = members.iter().filter(|(member, _)| member == name).map(|(_, value)| value);
    values.next().filter(|_| values.next().is_none())
}

/// `base` with one edit, which `edit` describes: where (two bytes), how (one byte), and the bytes.
pub(crate) fn edited(base: &[u8], edit: &[u8]) -> Vec<u8> {
    let Some((&[high, low, how], bytes)) = edit.split_first_chunk() else { return base.to_vec() };
    let at = usize::from(u16::from_be_bytes([high, low])) % (base.len() + 1);
    let end = (at + bytes.len()).min(base.len());
    let (before, behind) = base.split_at(at);
    match how % 5 {
        0 => [before, bytes, &base[end..]].concat(),
        1 => [before, bytes, behind].concat(),
        2 => [before, &base[end..]].concat(),
        3 => before.to_vec(),
        _ => {
            let mut changed = base.to_vec();
            changed[at..end].iter_mut().zip(bytes).for_each(|(byte, mask)| *byte ^= mask);
            changed
        }
    }
}
