//! Text of a request. It knows nothing else of the API.

use std::borrow::Cow;

use serde::Deserialize;

/// Text that is borrowed from the body unless it has escapes.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);
