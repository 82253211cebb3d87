//! Pages of lists, by Marker and Limit as in KMS. A marker is the name of the last item before it.

use serde_json::{Value, json};

use super::error::{Code, Error};
use super::request::Look;

/// A page of a list.
pub(super) struct Page {
    items: Vec<Value>,
    next: Option<String>,
}

impl Page {
    /// The page of `items`, each with its name, that a caller asks for: `default` items if they set
    /// no limit, and `most` at most.
    ///
    /// # Errors
    /// ValidationException, InvalidMarkerException.
    pub(super) fn of(
        look: &Look<'_>,
        default: usize,
        most: usize,
        mut items: Vec<(String, Value)>,
    ) -> Result<Self, Error> {
        let limit = look.limit(default, most)?;
        items.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let start = match look.marker()? {
            None => 0,
            // The item may have been removed since; any other text is not a marker of such a list.
            Some(marker) if items.iter().any(|(name, _)| is_alike(name, marker)) => {
                items.partition_point(|(name, _)| name.as_str() <= marker)
            }
            Some(_) => return Err(Error::new(Code::InvalidMarker, "Marker is not valid")),
        };
        let mut page: Vec<_> = items.into_iter().skip(start).take(limit + 1).collect();
        let is_more = page.len() > limit;
        page.truncate(limit);
        let next = page.last().filter(|_| is_more).map(|(name, _)| name.clone());
        Ok(Self { items: page.into_iter().map(|(_, item)| item).collect(), next })
    }

    /// The response, with the items under `member`.
    pub(super) fn json(self, member: &str) -> Value {
        let mut page = json!({ member: self.items, "Truncated": self.next.is_some() });
        if let (Some(next), Some(members)) = (self.next, page.as_object_mut()) {
            members.insert("NextMarker".to_owned(), next.into());
        }
        page
    }
}

/// Whether two names have the same form: they are ARNs, or not.
fn is_alike(name: &str, marker: &str) -> bool {
    name.starts_with("arn:") == marker.starts_with("arn:")
}

#[cfg(test)]
mod tests {
    use super::super::request;
    use super::*;

    fn page(look: &str, names: &[&str]) -> Result<Value, Error> {
        let items = names.iter().map(|name| ((*name).to_owned(), json!(name))).collect();
        Ok(Page::of(&request::parse(look.as_bytes())?, 2, 3, items)?.json("Items"))
    }

    #[test]
    fn pages_follow_each_other_and_the_last_has_no_marker() {
        let names = ["c", "a", "d", "b"];
        let first = page("{}", &names).unwrap();
        assert_eq!(first, json!({"Items": ["a", "b"], "Truncated": true, "NextMarker": "b"}));
        let rest = page(r#"{"Marker":"b","Limit":3}"#, &names).unwrap();
        assert_eq!(rest, json!({"Items": ["c", "d"], "Truncated": false}));
        // The item of a marker may be gone.
        let rest = page(r#"{"Marker":"b"}"#, &["a", "c"]).unwrap();
        assert_eq!(rest, json!({"Items": ["c"], "Truncated": false}));
        assert_eq!(page("{}", &[]).unwrap(), json!({"Items": [], "Truncated": false}));
    }

    #[test]
    fn a_text_that_is_no_marker_of_the_list_and_other_limits_are_refused() {
        for (look, code) in [
            (r#"{"Marker":"arn:x"}"#, Code::InvalidMarker),
            (r#"{"Limit":4}"#, Code::Validation),
            (r#"{"Limit":0}"#, Code::Validation),
        ] {
            assert_eq!(page(look, &["a"]).unwrap_err().code, code, "{look}");
        }
        assert_eq!(page(r#"{"Marker":"a"}"#, &[]).unwrap_err().code, Code::InvalidMarker);
    }
}
