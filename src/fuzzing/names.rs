//! Names, ids, keys of records and other short texts: there is one text for each value.

use crate::archive::object;
use crate::auth::token::TokenDigest;
use crate::human_units::size;
use crate::id::{ChainName, KekId, RootName, Suite};
use crate::store::record::{self, Part};
use crate::trace_context::TraceContext;

/// A text of any of these kinds.
pub fn names(bytes: &[u8]) {
    if let Some(trace) = TraceContext::parse(bytes) {
        assert_eq!(trace.trace_id().as_str().as_bytes(), &bytes[3..35]);
        assert_ne!(trace.parent_id(), [0; 8]);
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(name) = ChainName::new(text) {
        assert_eq!(name.as_str(), text);
        assert!((1..=ChainName::MAX_LEN).contains(&text.len()) && !text.contains('/'));
        let key = record::head_key(&name);
        assert_eq!(record::parse_key(&key), Some((name, Part::Head)));
    }
    if let Ok(name) = RootName::new(text) {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(id) = text.parse::<KekId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(suite) = text.parse::<Suite>() {
        assert_eq!(suite.as_str(), text);
        assert_eq!(Suite::from_code(suite.code()), Some(suite));
    }
    if let Some((chain, part)) = record::parse_key(text) {
        let key = match part {
            Part::Head => record::head_key(&chain),
            Part::Kek(id) => record::kek_key(&chain, id),
            Part::Uses(id) => record::uses_key(&chain, id),
            Part::Claim => record::claim_key(&chain),
        };
        assert_eq!(key, text);
    }
    if let Some((chain, part)) = object::parse_key(text) {
        let key = match part {
            object::Part::Chain => object::chain_key(&chain),
            object::Part::Kek(id) => object::kek_key(&chain, id),
        };
        assert_eq!(key, text);
    }
    if let Some((root, owner)) = record::root_user(text) {
        assert_eq!(record::root_user(&record::root_user_key(root, owner)), Some((root, owner)));
    }
    if let Ok(digest) = TokenDigest::try_from(text.to_owned()) {
        assert_eq!(digest.to_string(), text.to_ascii_lowercase());
    }
    if let Some(bytes) = size::parse(text) {
        assert_eq!(size::parse(&bytes.to_string()), Some(bytes));
    }
}
