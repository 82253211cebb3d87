//! Whether a page is well-formed HTML without anything that could run or load.

/// Elements without an end tag.
const VOID: [&str; 1] = ["meta"];

/// Checks that all tags are closed in order, all attributes are quoted and known, and all text is
/// escaped.
///
/// # Errors
/// What is wrong.
pub(super) fn check(text: &str) -> Result<(), String> {
    let mut rest = text.strip_prefix("<!DOCTYPE html>").ok_or("no doctype")?;
    let mut open: Vec<&str> = Vec::new();
    while let Some(start) = rest.find(['<', '&', '>']) {
        let from = &rest[start..];
        if let Some(after) = from.strip_prefix('&') {
            let known = ["lt;", "gt;", "amp;", "quot;"];
            if !known.iter().any(|entity| after.starts_with(entity)) {
                return Err(format!("not escaped: {from:.40}"));
            }
            rest = after;
            continue;
        }
        let (tag, after) = from
            .strip_prefix('<')
            .and_then(|tag| tag.split_once('>'))
            .ok_or_else(|| format!("a tag that does not end: {from:.40}"))?;
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes nothing"));
            }
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        check_attributes(name, attributes)?;
        if name == "style" {
            let (style, after) = rest.split_once("</style>").ok_or("a style without an end")?;
            if style.contains("@import") || style.contains("url(") {
                return Err("the style loads something".to_owned());
            }
            rest = after;
        } else if !VOID.contains(&name) {
            open.push(name);
        }
    }
    match open[..] {
        [] => Ok(()),
        _ => Err(format!("not closed: {open:?}")),
    }
}

fn check_attributes(element: &str, attributes: &str) -> Result<(), String> {
    const ELEMENTS: [&str; 33] = [
        "html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section",
        "article", "h1", "h2", "h3", "p", "span", "time", "code", "a", "dl", "dt", "dd", "div",
        "table", "thead", "tbody", "tr", "th", "td", "svg", "rect", "path", "polyline",
    ];
    const ATTRIBUTES: [&str; 22] = [
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "href",
        "datetime",
        "scope",
        "tabindex",
        "role",
        "aria-label",
        "data-title",
        "viewBox",
        "preserveAspectRatio",
        "width",
        "height",
        "d",
        "points",
        "id",
        "colspan",
        "rowspan",
    ];
    if !ELEMENTS.contains(&element) {
        return Err(format!("an element {element}"));
    }
    let mut rest = attributes.trim();
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").ok_or_else(|| format!("not quoted: {rest}"))?;
        let (value, after) = value.split_once('"').ok_or_else(|| format!("no end: {rest}"))?;
        if !ATTRIBUTES.contains(&name) {
            return Err(format!("an attribute {name} of {element}"));
        }
        if name == "href" && (value.starts_with("javascript:") || value.starts_with("data:")) {
            return Err(format!("a link to {value}"));
        }
        rest = after.trim_start();
    }
    Ok(())
}

/// The check can fail.
#[test]
fn what_is_not_well_formed_is_noticed() {
    let page = |body: &str| format!("<!DOCTYPE html><html><body>{body}</body></html>");
    for good in ["", "a &lt; b", "<p class=\"a\">x</p>", "<a href=\"status\">x</a>"] {
        assert_eq!(check(&page(good)), Ok(()), "{good}");
    }
    for bad in [
        "<p>",
        "</p>",
        "<p><span></p></span>",
        "a & b",
        "a > b < c",
        "<p class=a>x</p>",
        "<p onclick=\"x\">x</p>",
        "<p style=\"x\">x</p>",
        "<script>x</script>",
        "<img src=\"x\">",
        "<a href=\"javascript:x\">x</a>",
        "<style>a{background:url(x)}</style>",
    ] {
        assert!(check(&page(bad)).is_err(), "{bad}");
    }
    assert!(check("<html></html>").is_err());
}
