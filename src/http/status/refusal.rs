//! The page of a request for the status that is refused: what a person sees in place of JSON.
//!
//! It knows the error alone. Every text is escaped by `maud`.

use maud::{Markup, html};

use crate::service::error::{Error, Kind};
use crate::status::DOCUMENTS;

use super::super::problem::title;
use super::layout::{REFRESH, document, sentence};

/// The page of `error`.
pub(super) fn page(error: &Error, request_id: &str) -> Markup {
    let kind = error.kind();
    let status = kind.http_status();
    let title = format!("{status} {}", title(error));
    // What passes by itself is asked for again.
    let passes = status >= 500 || kind == Kind::Overloaded;
    let (class, advice) = match kind {
        Kind::Unauthenticated => (
            "warn",
            "A browser can't send a token: use a client certificate, or the address of \
             server.admin_listen.",
        ),
        Kind::Forbidden => (
            "warn",
            "The page needs the permission read for a chain. The address of server.admin_listen \
             may show it without one.",
        ),
        _ if passes => ("bad", ""),
        _ => ("warn", ""),
    };
    let body = html! {
        header {
            h1 { "kms-proxy" }
            p.state.(class) { (title) }
        }
        main {
            section {
                h2 { "Why" }
                p { (sentence(error.detail())) }
                @if !advice.is_empty() { p { (advice) } }
                @if passes { p { "This page asks again every " (REFRESH) " seconds." } }
                p { a href={ (DOCUMENTS) "status.md#who-sees-it" } { "Who sees the status page" } }
                p.soft { "Code " code { (kind.code()) } ", request " code { (request_id) } }
            }
        }
    };
    document(&format!("kms-proxy: {title}"), passes, &body)
}
