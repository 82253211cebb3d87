//! The text of an error and of the errors behind it.
//!
//! A leaf. Some texts name what must not be shown, such as a URL with its query: the caller decides
//! which part of the chain is fit for a message.

use std::error::Error;

/// The errors behind `error`, the outermost first, without `error` itself.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

/// The last error behind `error`, or `error` itself.
#[must_use]
pub fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    causes(error).last().unwrap_or(error)
}

/// `error` and its causes in one line. A cause whose text is already in the line is left out.
pub(crate) fn to_text(error: &(dyn Error + 'static)) -> String {
    with_causes(error.to_string(), error)
}

/// `text` in place of that of `error`, and the causes of `error`, as [`to_text`] has them.
pub(crate) fn with_causes(text: String, error: &(dyn Error + 'static)) -> String {
    causes(error).fold(text, |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let inner =
            texts.iter().rev().fold(None, |source, text| Some(Box::new(Layer { text, source })));
        *inner.unwrap()
    }

    #[test]
    fn each_text_is_in_the_line_once() {
        let error = layers(&["request failed: refused", "refused", "no route"]);
        assert_eq!(to_text(&error), "request failed: refused: no route");
        assert_eq!(innermost(&error).to_string(), "no route");
        assert_eq!(causes(&error).count(), 2);
        let alone = layers(&["refused"]);
        assert_eq!(
            (to_text(&alone), innermost(&alone).to_string()),
            ("refused".into(), "refused".into())
        );
    }
}
