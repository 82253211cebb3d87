//! The names of the checks and their sections, beside those in docs/production.md.

use std::collections::BTreeSet;

use clap::ValueEnum as _;

use super::*;

/// The checklist: the section of each item, and the names in its last cell.
fn checklist(document: &str) -> Vec<(String, Vec<String>)> {
    let rows = document.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix("| ")?.trim_end_matches(" |").split(" | ").collect();
        let [number, item, names] = cells[..] else { return None };
        number.parse::<u8>().ok()?;
        let (_, section) = item.split_once("](#")?;
        let section = section.split(')').next()?.to_owned();
        Some((section, names.split('`').skip(1).step_by(2).map(str::to_owned).collect()))
    });
    rows.collect()
}

#[test]
fn the_checklist_of_the_document_has_these_names_in_these_sections() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/production.md");
    let document = std::fs::read_to_string(path).unwrap();
    let documented = checklist(&document);
    let items = documented
        .iter()
        .flat_map(|(section, names)| names.iter().map(|name| (section.clone(), name.clone())));
    let all = Check::value_variants().iter();
    let known: Vec<_> = all.map(|check| (check.section().to_owned(), check.name())).collect();
    assert_eq!(items.collect::<Vec<_>>(), known);
    // The items are the sections of the document, in its order.
    let headings: Vec<_> = document.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let slugs: Vec<_> = headings.iter().map(|it| it.to_lowercase().replace(' ', "-")).collect();
    let of_items: Vec<_> = documented.into_iter().map(|(section, _)| section).collect();
    let others = ["before-you-start", "configuration-and-start", "before-it-opens", "clean-up"];
    let sections: Vec<_> = slugs.into_iter().filter(|it| !others.contains(&&**it)).collect();
    assert_eq!(of_items, sections);
}

#[test]
fn a_table_with_another_name_is_noticed() {
    let row = "| 1 | [Root](#root): a key | `root-local`, `root-plain` |\n";
    let names = ["root-local", "root-plain"].map(str::to_owned).to_vec();
    assert_eq!(checklist(row), [("root".to_owned(), names)]);
    assert_eq!(checklist("| | item | reports |\n| --- | --- | --- |\n"), []);
}

#[test]
fn every_name_is_one_word_with_an_advice_of_its_own() {
    let all = Check::value_variants();
    let names: BTreeSet<_> = all.iter().map(|check| check.name()).collect();
    assert_eq!(names.len(), all.len());
    for check in all {
        let name = check.name();
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
        assert!(!check.advice().is_empty() && !check.advice().ends_with('.'), "{name}");
    }
}

#[test]
fn what_is_reported_of_a_url_has_no_secret() {
    assert_eq!(
        without_path("http://user:secret@vault.example:8200/secret"),
        "http://vault.example"
    );
    for local in ["http://127.0.0.1:1", "http://localhost", "http://[::1]:2379"] {
        assert!(!is_plain(local), "{local}");
    }
    for other in ["http://10.0.0.1:2379", "http://etcd-0"] {
        assert!(is_plain(other), "{other}");
    }
    assert!(!is_plain("https://etcd-0"));
}
