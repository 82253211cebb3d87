//! Import circles among the files of `src/`: none, except between a file and the files below it.
//!
//! A file that imports nothing which imports it can be read by itself. A parent and its children
//! (`chain.rs` and `chain/waiters.rs`) are read together, so imports between them don't count.
//! An import through a re-export counts as an import of the file that is re-exported.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

/// A file by its path in the crate: `["service", "chain"]`.
type Name = Vec<String>;

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = circles(&read_files());
    assert!(circles.is_empty(), "\n{}\n", circles.join("\n"));
}

/// Without this a mistake in the reading of imports would let every circle pass.
#[test]
fn circles_are_found() {
    for (why, files) in [
        ("siblings", vec![("a/b", "use super::c::C;"), ("a/c", "use crate::a::b::B;")]),
        ("a group", vec![("a/b", "use crate::{x::Y, a::{c::C, d}};"), ("a/c", "super::b::f();")]),
        (
            "three files",
            vec![("a/b", "use super::c;"), ("a/c", "use super::d;"), ("a/d", "use super::b;")],
        ),
        (
            "a re-export",
            vec![
                ("a", "mod b;\nmod c;\npub use b::B;\nuse c::C as D;"),
                ("a/b", "use super::D;"),
                ("a/c", "use crate::a::B;"),
            ],
        ),
        (
            "an imported folder",
            vec![("a/b", "use super::c;\nfn f() { c::d::f() }"), ("a/c/d", "use crate::a::b;")],
        ),
        ("nephews", vec![("a/b/c", "use super::super::d::D;"), ("a/d", "use super::b::c::C;")]),
        (
            "tests in between",
            vec![("a/b", "#[cfg(test)]\nmod tests;\n\nuse super::c;"), ("a/c", "use super::b;")],
        ),
    ] {
        assert_eq!(circles(&made_of(&files)).len(), 1, "{why}");
    }
    for (why, files) in [
        ("parent and child", vec![("a", "use self::b::B;"), ("a/b", "use super::A;")]),
        ("parent and grandchild", vec![("a", "b::c::f();"), ("a/b/c", "use crate::a::A;")]),
        ("one direction", vec![("a/b", "use super::c::C;"), ("a/c", "use super::d;")]),
        ("a comment", vec![("a/b", "use super::c::C;"), ("a/c", "/// [`super::b::B`]")]),
        (
            "tests",
            vec![
                ("a/b", "use super::c::C;"),
                ("a/c", "#[cfg(test)]\nmod tests {\n    use super::super::b::B;\n}"),
            ],
        ),
        ("another crate's word", vec![("a/b", "use super::c::C;"), ("a/c", "use x::b::B;")]),
    ] {
        assert_eq!(circles(&made_of(&files)), [""; 0], "{why}");
    }
    let three = [("a/b", "use super::c;"), ("a/c", "use super::d;"), ("a/d", "use super::b;")];
    assert_eq!(
        circles(&made_of(&three)),
        ["3 files import each other: a/b a/c a/d; for example a/b -> a/c -> a/d -> a/b"]
    );
}

/// A line for each set of files that import each other, with the shortest way round.
fn circles(files: &Files) -> Vec<String> {
    let edges: BTreeMap<&Name, BTreeSet<Name>> =
        files.0.iter().map(|(name, file)| (name, files.imports(name, file))).collect();
    let reached: BTreeMap<&Name, BTreeSet<Name>> =
        edges.keys().map(|&name| (name, reach(&edges, name).into_keys().collect())).collect();
    let (mut lines, mut seen) = (Vec::new(), BTreeSet::new());
    for (&name, far) in &reached {
        if !far.contains(name) || seen.contains(name) {
            continue;
        }
        let circle: Vec<_> = far.iter().filter(|other| reached[*other].contains(name)).collect();
        seen.extend(circle.iter().copied().cloned());
        let members: Vec<_> = circle.iter().map(|name| name.join("/")).collect();
        lines.push(format!(
            "{} files import each other: {}; for example {}",
            members.len(),
            members.join(" "),
            way_round(&edges, name)
        ));
    }
    lines
}

/// The shortest way from `name` back to it, as text.
fn way_round(edges: &BTreeMap<&Name, BTreeSet<Name>>, name: &Name) -> String {
    let from = reach(edges, name);
    let mut way = vec![name.join("/")];
    let mut at = name;
    loop {
        at = &from[at];
        way.push(at.join("/"));
        if at == name {
            way.reverse();
            return way.join(" -> ");
        }
    }
}

/// The files that `start` imports, directly or not, each with the file that imports it.
fn reach(edges: &BTreeMap<&Name, BTreeSet<Name>>, start: &Name) -> BTreeMap<Name, Name> {
    let (mut from, mut queue) = (BTreeMap::new(), VecDeque::from([start.clone()]));
    while let Some(name) = queue.pop_front() {
        for next in edges.get(&name).into_iter().flatten() {
            if !from.contains_key(next) {
                from.insert(next.clone(), name.clone());
                queue.push_back(next.clone());
            }
        }
    }
    from
}

/// All production files, each with its code.
struct Files(BTreeMap<Name, File>);

struct File {
    /// What its `use` declarations make visible, by the name that they give.
    aliases: BTreeMap<String, Vec<String>>,
    /// All paths in it, of `use` declarations and of expressions.
    paths: BTreeSet<Vec<String>>,
}

impl File {
    fn new(source: &str) -> Self {
        let code = super::code(source);
        let (mut aliases, mut paths) = (BTreeMap::new(), BTreeSet::new());
        for (at, _) in code.match_indices("::") {
            let before = &code[..at];
            let start = before.rfind(|c| !super::is_word(c)).map_or(0, |at| at + 1);
            // Only the start of a path: `b` of `a::b::c` is not one.
            if start == at || before[..start].trim_end().ends_with("::") {
                continue;
            }
            let declares = before[..start].trim_end().ends_with("use");
            for (alias, path) in leaves(&code[start..]) {
                if declares {
                    aliases.insert(alias, path.clone());
                }
                paths.insert(path);
            }
        }
        Self { aliases, paths }
    }
}

impl Files {
    /// The files that a file imports, without the files above and below it.
    fn imports(&self, name: &Name, file: &File) -> BTreeSet<Name> {
        let related = |other: &Name| other.starts_with(name) || name.starts_with(other);
        let found = file.paths.iter().filter_map(|path| self.resolve(name, path, 0));
        found.filter(|other| self.0.contains_key(other) && !related(other)).collect()
    }

    /// The deepest file or folder that a path in the file `name` leads to.
    fn resolve(&self, name: &Name, path: &[String], depth: usize) -> Option<Name> {
        let (first, rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Name::new(),
            "self" => name.clone(),
            "super" => name[..name.len().checked_sub(1)?].to_vec(),
            _ => self.step(name, first, depth)?,
        };
        for segment in rest {
            if segment == "super" {
                at.pop();
            } else if let Some(next) = self.step(&at, segment, depth) {
                at = next;
            } else {
                break;
            }
        }
        Some(at)
    }

    /// What `segment` means in the file `at`: a file below it, or something it imports.
    fn step(&self, at: &Name, segment: &str, depth: usize) -> Option<Name> {
        let below: Name = at.iter().cloned().chain([segment.to_owned()]).collect();
        if self.0.keys().any(|name| name.starts_with(&below)) {
            return Some(below);
        }
        let alias = self.0.get(at)?.aliases.get(segment)?;
        // `use a;` and `use self::a as a` could otherwise lead back here.
        if depth > 8 {
            return None;
        }
        self.resolve(at, alias, depth + 1)
    }
}

/// The paths of a use tree, or of a path in an expression, at the start of `text`, each with the
/// name that it gets.
fn leaves(text: &str) -> Vec<(String, Vec<String>)> {
    let (mut prefix, mut rest) = (Vec::new(), text);
    loop {
        rest = rest.trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            let members = members(group).into_iter().flat_map(leaves);
            return members.map(|(alias, path)| (alias, [&*prefix, &*path].concat())).collect();
        }
        let word = super::first_word(rest);
        rest = rest[word.len()..].trim_start();
        if !word.is_empty() {
            prefix.push(word.to_owned());
        }
        match rest.strip_prefix("::") {
            Some(more) if !word.is_empty() => rest = more,
            _ => break,
        }
    }
    if prefix.last().is_some_and(|word| word == "self") && prefix.len() > 1 {
        prefix.pop();
    }
    let renamed = rest.strip_prefix("as ").map(super::first_word);
    let alias = renamed.or(prefix.last().map(String::as_str)).unwrap_or_default().to_owned();
    if prefix.is_empty() { Vec::new() } else { vec![(alias, prefix)] }
}

/// The members of a group, whose opening brace is gone.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut members) = (0, 0, Vec::new());
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                members.push(group[start..at].trim());
                start = at + 1;
                if character == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    members
}

fn read_files() -> Files {
    let files = super::sources().into_iter().filter(|path| super::module(path).is_some());
    Files(files.map(|path| (name(&path), File::new(&super::read(&path)))).collect())
}

fn made_of(files: &[(&str, &str)]) -> Files {
    let name = |path: &str| path.split('/').map(str::to_owned).collect();
    Files(files.iter().map(|(path, source)| (name(path), File::new(source))).collect())
}

fn name(path: &Path) -> Name {
    let inside = path.strip_prefix(super::src()).unwrap().with_extension("");
    inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect()
}
