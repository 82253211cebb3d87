//! No import circle among the files of `src/`: so each file can be understood with those that it
//! imports, and without the others. A parent and its child may know each other.

use std::collections::{BTreeMap, BTreeSet};

use super::{code, is_word, read, sources, src};

/// A module, as the names from the crate's root down to it.
type Module = Vec<String>;
/// The modules that each module imports, parents and children aside.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = circles(&imports(&files()));
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

/// The check can fail: each form of an import is seen.
#[test]
fn circles_are_found() {
    let circles = |sources: &[(&str, &str)]| {
        let files = sources.iter().map(|(path, source)| (module(path), code(source))).collect();
        circles(&imports(&files))
    };
    for back in [
        "use crate::a;",
        "use super::a::Thing;",
        "use crate::{b, a::Thing};",
        "use crate::{\n    b,\n    a::{One, Two},\n};",
        "fn f() { super::a::call(); }",
    ] {
        let found = circles(&[("a", "use crate::b::Other;"), ("b", back)]);
        assert_eq!(found, ["a -> b -> a"], "{back}");
    }
    let three = [("x/a", "use super::b;"), ("x/b", "use super::c;"), ("x/c", "use super::a;")];
    assert_eq!(circles(&three), ["x/a -> x/b -> x/c -> x/a"]);
    let across =
        [("x", ""), ("y", ""), ("x/a", "use crate::y::b;"), ("y/b", "use crate::x::a::{self, T};")];
    assert_eq!(circles(&across).len(), 1);

    for fine in [
        // A parent and its child, a file of tests, a comment, and a child of the other file.
        [("x", "mod a;\nuse a::T;"), ("x/a", "use super::U;")],
        [("a", "use crate::b;"), ("b", "#[cfg(test)]\nmod tests {\n    use crate::a;\n}")],
        [("a", "use crate::b;"), ("b", "/// See [`crate::a`].\n// use crate::a;")],
        [("a", "use crate::b;"), ("b", "use std::any; let super_a = 1;")],
    ] {
        assert!(circles(&fine).is_empty(), "{fine:?}");
    }
}

fn files() -> BTreeMap<Module, String> {
    let inside = |path: &std::path::Path| {
        let inside = path.strip_prefix(src()).unwrap().with_extension("");
        module(inside.to_str().unwrap())
    };
    let is_test = |module: &Module| module.iter().any(|part| part == "tests");
    let files = sources().into_iter().map(|path| (inside(&path), code(&read(&path))));
    files
        .filter(|(module, _)| !is_test(module) && module != &["lib"] && module != &["main"])
        .collect()
}

fn module(path: &str) -> Module {
    path.split('/').map(str::to_owned).collect()
}

fn imports(files: &BTreeMap<Module, String>) -> Imports {
    let of = |module: &Module, code: &str| {
        let used = paths(code).into_iter().filter_map(|path| resolve(files, module, &path));
        used.filter(|used| !used.starts_with(module) && !module.starts_with(used)).collect()
    };
    files.iter().map(|(module, code)| (module.clone(), of(module, code))).collect()
}

/// All paths in `code` that begin in the crate.
fn paths(code: &str) -> Vec<Vec<&str>> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|before| is_word(before) || before == ':') {
                paths.extend(members(&code[at..]).0);
            }
        }
    }
    // A child may be named without a prefix.
    for (at, _) in code.match_indices("::") {
        let first = code[..at].rsplit(|c| !is_word(c)).next().unwrap_or_default();
        paths.push(vec![first]);
    }
    paths
}

/// The paths of a use tree, and what follows it.
fn members(text: &str) -> (Vec<Vec<&str>>, &str) {
    let text = text.trim_start();
    let Some(group) = text.strip_prefix('{') else {
        let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        let Some(below) = rest.strip_prefix("::") else { return (vec![vec![word]], rest) };
        let (paths, rest) = members(below);
        let paths = paths.into_iter().map(|path| [vec![word], path].concat());
        return (paths.collect(), rest);
    };
    let (mut paths, mut rest) = (Vec::new(), group);
    loop {
        rest = rest.trim_start_matches([',', ' ', '\n']);
        if rest.is_empty() || rest.starts_with('}') {
            return (paths, rest.get(1..).unwrap_or_default());
        }
        let (members, after) = members(rest);
        paths.extend(members);
        // `as` and what else may follow a member.
        rest = after.trim_start_matches(|c| !matches!(c, ',' | '}'));
    }
}

/// The file that a path in `module` leads to: the longest part of it that is a module.
fn resolve(files: &BTreeMap<Module, String>, module: &Module, path: &[&str]) -> Option<Module> {
    let (mut at, mut path) = (module.clone(), path);
    match path.first() {
        Some(&"crate") => (at, path) = (Vec::new(), &path[1..]),
        Some(&"self") => path = &path[1..],
        _ => {}
    }
    while path.first() == Some(&"super") {
        at.pop();
        path = &path[1..];
    }
    let mut found = None;
    for part in path {
        at.push((*part).to_owned());
        if !files.contains_key(&at) {
            break;
        }
        found = Some(at.clone());
    }
    found
}

/// One line for each set of files that import each other: the shortest way round from its first file.
fn circles(imports: &Imports) -> Vec<String> {
    let mut told = BTreeSet::new();
    let mut lines = Vec::new();
    for start in imports.keys() {
        if told.contains(start) {
            continue;
        }
        if let Some(way) = way_back(imports, start) {
            told.extend(way.iter().cloned());
            let names: Vec<_> = way.iter().map(|module| module.join("/")).collect();
            lines.push(names.join(" -> "));
        }
    }
    lines
}

/// The shortest way from `start` to itself.
fn way_back(imports: &Imports, start: &Module) -> Option<Vec<Module>> {
    let mut ways = vec![vec![start.clone()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in imports.get(way.last()?).into_iter().flatten() {
                let longer_way = [way.clone(), vec![next.clone()]].concat();
                if next == start {
                    return Some(longer_way);
                }
                if seen.insert(next.clone()) {
                    longer.push(longer_way);
                }
            }
        }
        ways = longer;
    }
    None
}
