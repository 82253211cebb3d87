//! The rules of docs/format.md: each has vectors that break it, and each vector to refuse names the
//! first rule that it breaks. The independent reader checks that the name is right.

use std::collections::BTreeMap;

use kms_proxy::DecryptError;
use kms_proxy::envelope::{self, Envelope, Malformed};
use serde_json::Value;

use super::{files, root, unhex, vectors};

/// The rules of the document, each with the reason for a refusal.
fn rules() -> BTreeMap<String, String> {
    let document = std::fs::read_to_string(root().join("docs/format.md")).unwrap();
    let (_, section) = document.split_once("\n### The rules\n").unwrap();
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.map(|row| {
        let (name, rest) = row.split_once("` | ").unwrap();
        let (_, reason) = rest.strip_suffix(" |").unwrap().rsplit_once(" | ").unwrap();
        (name.to_owned(), reason.to_owned())
    });
    rows.collect()
}

/// Every vector of the format: of envelopes, of texts and of ciphertexts of the AWS KMS API.
fn all() -> Vec<Value> {
    let directory = root().join("tests/vectors");
    let directories = [directory.clone(), directory.join("text"), directory.join("aws")];
    let files = directories.iter().flat_map(|directory| files(directory));
    let read = |path| serde_json::from_slice::<Vec<Value>>(&std::fs::read(path).unwrap()).unwrap();
    files.flat_map(read).collect()
}

#[test]
fn every_rule_has_a_vector_and_every_refusal_a_rule() {
    let rules = rules();
    assert_eq!(rules.len(), 27, "the rules were read: {rules:?}");
    let mut seen: BTreeMap<&str, usize> = rules.keys().map(|rule| (rule.as_str(), 0)).collect();
    for vector in all() {
        let comment = &vector["comment"];
        if vector["valid"] == true {
            assert!(vector.get("rule").is_none() && vector.get("reason").is_none(), "{comment}");
            continue;
        }
        let rule = vector["rule"].as_str().unwrap_or_else(|| panic!("{comment}: no rule"));
        let count = seen.get_mut(rule).unwrap_or_else(|| panic!("{comment}: no rule is {rule}"));
        *count += 1;
        assert_eq!(vector["reason"], rules[rule], "{comment}");
    }
    let total: usize = seen.values().sum();
    println!("{total} vectors to refuse, by rule: {seen:?}");
    let document = std::fs::read_to_string(root().join("docs/assurance.md")).unwrap();
    let figures = format!(
        "{} vectors in `tests/vectors/` that [`make.py`](../tests/vectors/make.py) writes from that \
         page alone, {} open and {total} must be refused",
        all().len(),
        all().len() - total
    );
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&document).contains(&figures), "docs/assurance.md: {figures}");
    let without: Vec<_> = seen.iter().filter(|(_, count)| **count == 0).collect();
    assert!(without.is_empty(), "no vector breaks {without:?}");
}

/// What the library's parser reports for a vector that breaks this rule first.
fn malformed(rule: &str) -> Option<Malformed> {
    match rule {
        "version" => Some(Malformed::Version),
        "suite" => Some(Malformed::Suite),
        "record-length" | "header-length" | "payload-length" | "last-chunk" => {
            Some(Malformed::Truncated)
        }
        _ if rule.starts_with("record-") => Some(Malformed::Record),
        _ => None,
    }
}

#[test]
fn the_parser_refuses_by_the_rule_of_the_vector() {
    let mut malformed_ones = 0;
    for vector in vectors() {
        let expected = vector.rule.as_deref().and_then(malformed);
        let bytes = unhex(&vector.envelope);
        assert_eq!(Envelope::parse(&bytes).err(), expected, "{}", vector.comment);
        malformed_ones += usize::from(expected.is_some());
    }
    assert!(malformed_ones >= 150, "{malformed_ones}");
}

#[tokio::test]
async fn only_an_unknown_kek_has_an_error_of_its_own() {
    let (mut unknown, mut invalid, mut without_chain) = (0, 0, 0);
    for vector in vectors().into_iter().filter(|vector| !vector.valid) {
        let rule = vector.rule.as_deref().unwrap();
        let Some(chain) = vector.chain().await else {
            // There is no chain of such a name, and no KEK of such a size or with another id.
            assert!(["chain-name", "kek-size", "kek-id"].contains(&rule), "{}", vector.comment);
            without_chain += 1;
            continue;
        };
        let refused = chain.decrypt(&unhex(&vector.envelope), &unhex(&vector.aad)).map(drop);
        let is_unknown = matches!(refused, Err(DecryptError::UnknownKek(_)));
        assert!(is_unknown || refused == Err(DecryptError::Invalid), "{}", vector.comment);
        assert_eq!(is_unknown, rule == "kek-unknown", "{}", vector.comment);
        *(if is_unknown { &mut unknown } else { &mut invalid }) += 1;
    }
    assert!(unknown >= 30 && invalid >= 400 && without_chain >= 15, "{unknown} {invalid}");
}

#[test]
fn the_one_text_of_an_envelope_is_taken_and_no_other() {
    let texts = all().into_iter().filter(|vector| vector.get("text").is_some());
    let (mut taken, mut refused) = (0, 0);
    for vector in texts {
        let (comment, text) = (&vector["comment"], vector["text"].as_str().unwrap());
        if vector["valid"] == false {
            assert_eq!(envelope::from_text(text), Err(Malformed::Text), "{comment}");
            refused += 1;
            continue;
        }
        let bytes = unhex(vector["envelope"].as_str().unwrap());
        assert_eq!(envelope::from_text(text).unwrap(), bytes, "{comment}");
        assert_eq!(envelope::to_text(&bytes), text, "{comment}");
        taken += 1;
    }
    assert_eq!((taken, refused), (3, 20));
}
