//! Words that must not return: the text of this project is plain technical English, and these read as
//! translated. What to write instead stands beside each.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::support::root;

/// Words, in lower case, and what to write instead. A word is found whole, wherever it stands.
const WORDS: &str = "
    whoever           anyone who; the caller
    whomever          anyone
    said of           name the thing
    is none           does not exist; is not a
    hears             receives
    is told           is reported; receives
    are told          are reported; receive
    tell apart        distinguish
    told apart        distinguished
    anew              again; re-
    in vain           without success; wasted
    made-up           forged
    travels along     inline
    travel along      inline
    travelled along   inline
    traveller         inline KEK
    for ever          permanently
    goes on           continues
    go on             continue
    put back          restored
    puts back         restores
    says no           refuses; denies access
    stands in         is in
    at once           immediately; concurrently
    he                it; they
    his               its; their
    one of its own    its own; a dedicated
";

#[test]
fn words_that_read_as_translated_do_not_return() {
    let words = words();
    let mut found = String::new();
    for path in pages() {
        let text = std::fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root()).unwrap().display();
        for (number, word) in offences(&text, &words) {
            let instead = words.iter().find(|(bad, _)| *bad == word).unwrap().1;
            let _ = writeln!(found, "{path}:{number}: {word}: write {instead}");
        }
    }
    assert!(found.is_empty(), "\n{found}");
}

#[test]
fn lines_of_code_end_at_column_100() {
    let mut found = String::new();
    for path in pages().into_iter().filter(|path| path.extension().is_some_and(|it| it == "rs")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root()).unwrap().display();
        let long = text.lines().enumerate().filter(|(_, line)| line.chars().count() > 100);
        long.for_each(|(index, _)| _ = writeln!(found, "{path}:{}", index + 1));
    }
    assert!(found.is_empty(), "\n{found}");
}

/// The check can fail, also where a line ends within a word of two parts.
#[test]
fn a_word_is_found_whole_and_across_lines() {
    let words = words();
    let found = |text: &str| -> Vec<_> {
        offences(text, &words).into_iter().map(|(_, word)| word).collect()
    };
    let none: [&str; 0] = [];
    assert_eq!(found("/// It is made anew."), ["anew"]);
    assert_eq!(found("Whoever reads it"), ["whoever"]);
    assert_eq!(found("/// kept for\n    /// ever"), ["for ever"]);
    assert_eq!(found("that the cache, the others, anewer"), none);
    assert_eq!(found("`he`: where he goes"), ["he", "he"]);
    assert_eq!(found("it says: no word is `none`; at first, once"), none);
}

fn words() -> Vec<(&'static str, &'static str)> {
    let lines = WORDS.lines().map(str::trim).filter(|line| !line.is_empty());
    let word = |line: &'static str| {
        let (word, instead) = line.split_once("  ").unwrap();
        (word.trim(), instead.trim())
    };
    let words: Vec<_> = lines.map(word).collect();
    assert!(words.len() > 20);
    words
}

/// The words that `text` has, each with the number of its line.
fn offences<'a>(text: &str, words: &[(&'a str, &str)]) -> Vec<(usize, &'a str)> {
    // A space between two words, also where a comment is broken between them; a dot for any other
    // character, so that no phrase runs over it.
    let (mut plain, mut lines) = (String::from("."), vec![1]);
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start().trim_start_matches(['/', '!', '#', '>', '*']).trim();
        for character in line.to_lowercase().chars().chain([' ']) {
            let character = match character {
                ' ' if plain.ends_with(' ') => continue,
                ' ' | '-' | '\'' | '_' => character,
                word if word.is_alphanumeric() => word,
                _ => '.',
            };
            plain.push(character);
            lines.extend(std::iter::repeat_n(index + 1, character.len_utf8()));
        }
    }
    let is_end = |text: Option<char>| matches!(text, Some(' ' | '.') | None);
    let mut found = Vec::new();
    for (word, _) in words {
        for (at, _) in plain.match_indices(word) {
            let (before, after) = (&plain[..at], &plain[at + word.len()..]);
            if is_end(before.chars().next_back()) && is_end(after.chars().next()) {
                found.push((lines[at], *word));
            }
        }
    }
    found.sort_unstable();
    found
}

/// What people read: the code, the documents, and the files of deployments.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<_> =
        ["Makefile", "docker-compose.yml", ".ci/run"].map(|file| root().join(file)).into();
    let directories = ["src", "docs", "helm", "deploy", "tests/deploy"];
    let mut directories: Vec<_> = directories.map(|name| root().join(name)).into();
    directories.push(root().to_path_buf());
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
            let is_page = ["rs", "md", "yaml", "tpl", "txt", "sh", "service"].contains(&kind);
            if path.is_dir() && directory != root() {
                directories.push(path);
            } else if is_page && !path.is_dir() {
                pages.push(path);
            }
        }
    }
    assert!(pages.iter().any(|page| page.ends_with("README.md")) && pages.len() > 100);
    assert!(pages.iter().all(|page| Path::new(page).is_file()));
    pages.sort();
    pages
}
