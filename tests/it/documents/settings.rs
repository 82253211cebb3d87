//! docs/configuration.md and the binary have the same settings. The settings of the binary are
//! found by unknown ones: the error lists those that exist.

use std::collections::BTreeSet;

use crate::support::{Setup, root};

/// The settings or values that the error for an unknown one lists.
fn expected(variables: &[(&str, &str)]) -> Option<BTreeSet<String>> {
    let mut setup = Setup::new();
    for (key, value) in variables {
        setup = setup.set(&key.to_uppercase().replace('.', "__"), value);
    }
    let said = String::from_utf8(setup.run(&["check-config"]).stderr).unwrap();
    let (_, list) = said.trim_end().rsplit_once("expected ")?;
    let list = list.strip_prefix("one of ").unwrap_or(list);
    Some(list.split(", ").flat_map(|some| some.split(" or ")).map(str::to_owned).collect())
}

/// Every setting that the binary knows, as the document writes it: `root.N.kind`.
fn known(documented: &BTreeSet<String>) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for section in expected(&[("no_such_section", "1")]).expect("a list of sections") {
        let is_list = documented.iter().any(|key| key.starts_with(&format!("{section}.N.")));
        let place = |index: &str| {
            if is_list { format!("{section}.{index}") } else { section.clone() }
        };
        let kind = format!("{}.kind", place("0"));
        let kinds = expected(&[(&kind, "no-such-kind"), (&format!("{}.name", place("0")), "a")]);
        let kinds: Vec<_> = match kinds {
            Some(kinds) if documented.contains(&format!("{}.kind", place("N"))) => {
                kinds.into_iter().map(Some).collect()
            }
            _ => vec![None],
        };
        for value in kinds {
            let base: Vec<_> = value.iter().map(|value| (&*kind, &**value)).collect();
            let unknown = format!("{}.no_such_key", place("0"));
            let keys = expected(&[&base[..], &[(&*unknown, "1")]].concat());
            for key in keys.unwrap_or_else(|| panic!("no list for {unknown} {value:?}")) {
                let shown = format!("{}.{key}", place("N"));
                // A table is documented by its keys.
                // A list of tables is documented with their number.
                let is_list = documented.iter().any(|key| key.starts_with(&format!("{shown}.N.")));
                let (number, shown) = match is_list {
                    true => (".0", format!("{shown}.N")),
                    false => ("", shown),
                };
                if documented.iter().any(|key| key.starts_with(&format!("{shown}."))) {
                    let inner = format!("{}.{key}{number}.no_such_key", place("0"));
                    let keys = expected(&[&base[..], &[(&*inner, "1")]].concat()).expect("keys");
                    // The list also has the tag of the table around it.
                    let keys = keys.into_iter().filter(|key| key != "kind");
                    known.extend(keys.map(|key| format!("{shown}.{key}")));
                } else {
                    known.insert(shown);
                }
            }
        }
    }
    known
}

/// The settings in the first cells of the document's tables.
fn documented() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let keys = cells.flat_map(|cell| cell.split('`').step_by(2));
    let is_key = |key: &&str| {
        key.contains('.')
            && key.chars().all(|c| {
                c == 'N' || ".-_".contains(c) || c.is_ascii_lowercase() || c.is_ascii_digit()
            })
    };
    keys.filter(is_key).map(str::to_owned).collect()
}

/// Whether a setting names a file that exists before the service does.
fn names_a_file(key: &str) -> bool {
    let of_tls = key.contains("tls.") && (key.ends_with(".cert") || key.ends_with(".key"));
    of_tls || ["_file", "_ca", ".ca", ".module"].iter().any(|end| key.ends_with(end))
}

#[test]
fn the_document_states_for_every_file_when_it_is_read_again() {
    let text = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let (_, section) = text.split_once("\n## When files are read again\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let files: Vec<_> = documented().into_iter().filter(|key| names_a_file(key)).collect();
    assert!(files.len() > 10, "{files:?}");
    for key in files {
        let has = section.lines().any(|line| {
            line.split(" | ").next().is_some_and(|cell| cell.contains(&format!("`{key}`")))
        });
        assert!(has, "{key} is not in the table of files");
    }
}

#[test]
fn every_setting_is_documented_and_every_documented_one_exists() {
    let documented = documented();
    let known = known(&documented);
    assert!(known.len() > 50, "{known:?}");
    let missing: Vec<_> = known.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/configuration.md does not have {missing:?}");
    let gone: Vec<_> = documented.difference(&known).collect();
    assert!(gone.is_empty(), "docs/configuration.md has {gone:?}, which do not exist");
}
