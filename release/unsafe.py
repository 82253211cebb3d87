#!/usr/bin/env python3
"""Lists the crates in the program whose sources contain `unsafe`, with the number of places and who keeps each crate.

Counts the keyword outside of comments and literals, in the files of the library of each crate that is linked into the
program on this platform. A place counts whether or not a feature or a platform leaves it out, so the numbers are upper
bounds. Crates that only run while the program is compiled are not in the list.
"""

import json
import pathlib
import re
import subprocess
import sys

# What is skipped, longest first: comments, raw strings, strings, characters. Block comments nest in Rust; the first end
# is taken, which counts a word in the rest of such a comment, and so never too little.
SKIPPED = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | b?r(\#*)".*?"\1 | b?"(?:\\.|[^"\\])*" | b?'(?:\\[^\n]{1,10}?|[^'\\\n])'""",
    re.DOTALL | re.VERBOSE,
)
KEYWORD = re.compile(r"\bunsafe\b")


def cargo(*arguments: str) -> str:
    return subprocess.run(["cargo", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def linked(target: str) -> set[tuple[str, str]]:
    """Names and versions of the crates in the program."""
    tree = cargo("tree", "--locked", "--edges", "normal,no-proc-macro", "--target", target, "--prefix", "none")
    return {tuple(line.split()[:2]) for line in tree.splitlines() if line}


def places(sources: pathlib.Path) -> int:
    texts = (path.read_text(errors="replace") for path in sorted(sources.rglob("*.rs")))
    return sum(len(KEYWORD.findall(SKIPPED.sub(" ", text))) for text in texts)


def main() -> None:
    version = subprocess.run(["rustc", "-vV"], check=True, stdout=subprocess.PIPE, text=True).stdout
    target = re.search("^host: (.*)$", version, re.MULTILINE).group(1)
    packages = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", target))["packages"]
    in_program = linked(target)
    names = {name for name, _ in in_program}
    rows = []
    for package in packages:
        if (package["name"], "v" + package["version"]) not in in_program:
            continue
        library = [each["src_path"] for each in package["targets"] if {"lib", "rlib"} & set(each["kind"])]
        count = places(pathlib.Path(library[0]).parent) if library else 0
        owner = package["repository"] or ", ".join(package["authors"]) or "not stated"
        rows.append((count, package["name"], package["version"], owner.removesuffix(".git")))
    if len(rows) != len(in_program):
        sys.exit(f"{len(in_program)} crates are in the program, and {len(rows)} were found")
    rows.sort(key=lambda row: (-row[0], row[1]))
    with_unsafe = [row for row in rows if row[0]]
    print(f"{len(with_unsafe)} of {len(rows)} crates contain `unsafe`, {sum(row[0] for row in rows):,} places in all.\n")
    print("| crate | places | kept at |\n| --- | ---: | --- |")
    for count, name, version, owner in with_unsafe:
        print(f"| {name} {version} | {count:,} | {owner} |")
    native = sorted(package["name"] for package in packages if package["links"] and package["name"] in names)
    print(f"\nLink code that is not Rust: {', '.join(native)}.")


if __name__ == "__main__":
    main()
