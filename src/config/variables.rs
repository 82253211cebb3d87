//! Unknown environment variables that start with `KMS_PROXY_`.
//!
//! Such a variable is most likely a misspelt setting. Ignoring it would leave a default in force,
//! such as the root for development, so it is an error.

/// The prefix of all variables of this program.
const OURS: &str = "KMS_PROXY_";

/// The prefix of settings.
pub(super) const PREFIX: &str = "KMS_PROXY__";

/// The variables that commands read, other than settings, without the prefix.
const FLAGS: [&str; 8] =
    ["ADMIN", "CA", "CERT", "CONFIG", "DEBUGGABLE", "KEY", "SERVER", "TOKEN_FILE"];

/// The sections of the configuration.
const SECTIONS: [&str; 15] = [
    "ADMIN",
    "ARCHIVE",
    "ARCHIVE_POLICY",
    "AUDIT",
    "AUTH",
    "AWS_API",
    "CACHE",
    "CHAIN",
    "CLIENT",
    "KUBERNETES",
    "LOG",
    "ROOT",
    "SERVER",
    "STORE",
    "TRACES",
];

/// The tables within sections.
const TABLES: [(&str, &str); 3] = [("CLIENT", "JWT"), ("SERVER", "TLS"), ("STORE", "TLS")];

/// The number of letters in which a suggested name may differ.
const SLIPS: usize = 2;

/// What is wrong with a variable of this name and value; `None` if nothing is.
pub(super) fn complaint(name: &str, value: &str) -> Option<String> {
    let rest = name.strip_prefix(OURS)?;
    if rest.starts_with('_') || FLAGS.contains(&rest) || is_service_link(rest, value) {
        return None;
    }
    Some(match suggestion(rest) {
        Some(suggested) => format!("there is no such variable; is {suggested} meant?"),
        None => format!("there is no such variable; settings are {PREFIX}SECTION__KEY"),
    })
}

/// Whether Kubernetes sets the variable for a service whose name starts with `kms-proxy`: then its
/// value has the form that the name implies.
fn is_service_link(rest: &str, value: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_address = || value.parse::<std::net::IpAddr>().is_ok();
    let is_url = || ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    // The name of the service may be longer than `kms-proxy`, which precedes `rest`.
    let rest = format!("_{rest}");
    if rest.ends_with("_SERVICE_HOST") {
        return is_address();
    }
    if rest.contains("_SERVICE_PORT") {
        return is_number(value);
    }
    let Some((_, port)) = rest.split_once("_PORT") else { return false };
    match port.split('_').collect::<Vec<_>>()[..] {
        [""] => is_url(),
        ["", number, "TCP" | "UDP" | "SCTP"] => is_number(number) && is_url(),
        ["", number, "TCP" | "UDP" | "SCTP", what] => {
            let fits = match what {
                "PROTO" => matches!(value, "tcp" | "udp" | "sctp"),
                "PORT" => is_number(value),
                "ADDR" => is_address(),
                _ => false,
            };
            is_number(number) && fits
        }
        _ => false,
    }
}

/// The variable that is most likely meant.
fn suggestion(rest: &str) -> Option<String> {
    let rest = rest.to_ascii_uppercase();
    if let Some(flag) = nearest(&rest, &FLAGS) {
        return Some(format!("{OURS}{flag}"));
    }
    let words: Vec<_> = rest.split('_').filter(|word| !word.is_empty()).collect();
    // The name of a section may have two words.
    let section = |len: usize| Some((nearest(&words.get(..len)?.join("_"), &SECTIONS)?, len));
    let is_whole =
        |(name, _): &(&str, usize)| words.get(..2).is_some_and(|it| it.join("_") == *name);
    let (section, len) =
        section(2).filter(is_whole).or_else(|| section(1)).or_else(|| section(2))?;
    let mut words = words.iter().copied().skip(len).peekable();
    let mut parts = vec![section.to_owned()];
    if section == "AWS_API" && words.clone().count() > 1 {
        parts.extend(words.next_if_eq(&"KEY").map(str::to_owned));
    }
    if matches!(section, "ARCHIVE" | "CLIENT" | "ROOT") || parts.len() > 1 {
        let is_index = |word: &&str| word.bytes().all(|b| b.is_ascii_digit());
        parts.push(words.next_if(is_index).unwrap_or("0").to_owned());
    }
    // A table is part of the name when one of its settings is meant.
    if words.clone().count() > 1 {
        parts.extend(words.next_if(|word| TABLES.contains(&(section, *word))).map(str::to_owned));
    }
    let key = words.collect::<Vec<_>>().join("_");
    if key.is_empty() {
        return None;
    }
    parts.push(key);
    Some(format!("{PREFIX}{}", parts.join("__")))
}

/// The name that equals or nearly equals this word, if there is one.
fn nearest<'a>(word: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = names.iter().map(|name| (distance(word, name), *name)).min()?;
    // Two changes turn any word of three letters into nearly any other.
    let most = SLIPS.min(near.1.len() / 2);
    (near.0 <= most).then_some(near.1)
}

/// The number of letters to change, add or remove to turn one word into the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, a) in one.bytes().enumerate() {
        let mut left = index + 1;
        let mut diagonal = index;
        let cells = row.iter_mut().skip(1).zip(other.bytes());
        for (cell, b) in cells {
            let above = *cell;
            *cell = (diagonal + usize::from(a != b)).min(left + 1).min(above + 1);
            (diagonal, left) = (above, *cell);
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_changes() {
        for (one, other, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("SERVR", "SERVER", 1),
            ("SREVER", "SERVER", 2),
            ("LOG", "CHAIN", 5),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn a_slip_in_a_name_is_answered_with_the_right_name() {
        for (name, right) in [
            ("SERVER__LISTEN", "_SERVER__LISTEN"),
            ("SERVER_LISTEN", "_SERVER__LISTEN"),
            ("server__listen", "_SERVER__LISTEN"),
            ("SERVR_LISTEN", "_SERVER__LISTEN"),
            ("SERVER_TLS_CLIENT_CA", "_SERVER__TLS__CLIENT_CA"),
            ("ROOT_0_KIND", "_ROOT__0__KIND"),
            ("ROOT_KIND", "_ROOT__0__KIND"),
            ("ROOT__12__PASSPHRASE_FILE", "_ROOT__12__PASSPHRASE_FILE"),
            ("CLIENT_0_JWT_JWKS_URL", "_CLIENT__0__JWT__JWKS_URL"),
            ("LOG_LEVEL", "_LOG__LEVEL"),
            ("TOKENFILE", "TOKEN_FILE"),
            ("CONFG", "CONFIG"),
            ("Config", "CONFIG"),
        ] {
            let found = complaint(&format!("{OURS}{name}"), "x").unwrap();
            let expected = format!("; is {OURS}{right} meant?");
            assert!(found.ends_with(&expected), "{name}: {found}");
        }
        for name in ["LISTEN_ON_THIS", "", "ROOT", "X"] {
            let found = complaint(&format!("{OURS}{name}"), "x").unwrap();
            assert!(found.ends_with("settings are KMS_PROXY__SECTION__KEY"), "{name}: {found}");
        }
        for name in ["KMS_PROXY", "KMSPROXY_X", "PATH", "KMS_PROXY__SERVER__LISTEN"] {
            assert_eq!(complaint(name, "x"), None, "{name}");
        }
    }

    #[test]
    fn every_documented_setting_is_suggested_for_single_underscores() {
        let text = include_str!("../../docs/configuration.md");
        let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
        let keys = cells.flat_map(|cell| cell.split('`').step_by(2));
        let settings: Vec<_> = keys
            .filter(|key| key.contains('.') && !key.contains(' '))
            .map(|key| key.replace(".N.", ".3.").to_uppercase())
            .collect();
        assert!(settings.len() > 50);
        for setting in settings {
            let wrong = format!("{OURS}{}", setting.replace('.', "_"));
            let right = format!("{PREFIX}{}", setting.replace('.', "__"));
            let found = complaint(&wrong, "x").unwrap();
            assert!(found.ends_with(&format!("is {right} meant?")), "{wrong}: {found}");
        }
    }

    #[test]
    fn links_of_kubernetes_services_are_no_slips() {
        for (name, value) in [
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_HOST", "fd00::1"),
            ("SERVICE_PORT", "8080"),
            ("SERVICE_PORT_HTTPS", "8443"),
            ("PORT", "tcp://10.0.0.1:8080"),
            ("PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("PORT_8080_TCP_PROTO", "tcp"),
            ("PORT_8080_TCP_PORT", "8080"),
            ("PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("ADMIN_SERVICE_HOST", "10.0.0.1"),
            ("ADMIN_PORT_9090_UDP_ADDR", "10.0.0.1"),
        ] {
            assert_eq!(complaint(&format!("{OURS}{name}"), value), None, "{name}");
            assert!(complaint(&format!("{OURS}{name}"), "[::]:8443").is_some(), "{name}");
        }
    }
}
