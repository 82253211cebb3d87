//! Tables of a benchmark: printed, and written with the machine and the date to a file that
//! `benches/plot.py` reads. It measures nothing.
//!
//! The benchmarks are several programs, so each adds its tables to the file of this machine and
//! day. A file holds figures of one commit: those of another one are replaced.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a benchmark is asked for on its command line.
pub(crate) struct Options {
    parts: Vec<String>,
    /// A short run that only shows that it works: its figures say little.
    pub(crate) is_quick: bool,
    /// How often servers are started again, if it is given.
    sets: Option<usize>,
    directory: Option<PathBuf>,
}

impl Options {
    /// Reads the command line: `--NAME` of each of `parts` (all of them by default), `--quick`,
    /// `--sets N`, and `--results DIR`. A quick run writes no file without `--results`.
    pub(crate) fn read(parts: &[&str]) -> std::io::Result<Self> {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
        let mut options = Self { parts: Vec::new(), is_quick: false, sets: None, directory: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--") {
                // `cargo bench` passes it.
                Some("bench") => (),
                Some("quick") => options.is_quick = true,
                Some("sets") => {
                    let sets = arguments.next().and_then(|sets| sets.parse().ok());
                    let missing = || std::io::Error::other("--sets needs a number");
                    options.sets = Some(sets.filter(|sets| *sets > 0).ok_or_else(missing)?);
                }
                Some("results") => {
                    let directory = arguments.next().map(PathBuf::from);
                    let missing = || std::io::Error::other("--results needs a directory");
                    options.directory = Some(directory.ok_or_else(missing)?);
                }
                Some(part) if parts.contains(&part) => options.parts.push(part.to_owned()),
                _ => {
                    let error = format!("unknown argument {argument}; the parts are {parts:?}");
                    return Err(std::io::Error::other(error));
                }
            }
        }
        if !options.is_quick {
            options.directory.get_or_insert(default);
        }
        Ok(options)
    }

    /// Whether a part is to be measured.
    pub(crate) fn asks(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|asked| asked == part)
    }

    /// How often servers are started again: `full`, or what was asked for, or 1 in a quick run.
    pub(crate) fn times(&self, full: usize) -> usize {
        if self.is_quick { 1 } else { self.sets.unwrap_or(full) }
    }

    /// Prints a table, and writes it to the file.
    pub(crate) fn show(&self, table: &Table) -> std::io::Result<()> {
        table.print();
        let Some(directory) = &self.directory else { return Ok(()) };
        let mut fresh = Results::of_this_machine(self.is_quick);
        let path = directory.join(fresh.file_name());
        std::fs::create_dir_all(directory)?;
        let old = std::fs::read_to_string(&path).ok();
        if let Some(old) = old.and_then(|old| serde_json::from_str::<Results>(&old).ok())
            && (Results { tables: Vec::new(), ..old.clone() }) == fresh
        {
            fresh.tables = old.tables;
        }
        let name = Value::from(table.name);
        let index = fresh.tables.iter().position(|old| old.get("name") == Some(&name));
        match index.and_then(|index| fresh.tables.get_mut(index)) {
            Some(old) => *old = table.to_json(),
            None => fresh.tables.push(table.to_json()),
        }
        std::fs::write(&path, fresh.text())?;
        println!("written to {}", path.display());
        Ok(())
    }
}

/// A column: its key in the file, its title, and how many digits a number has after the point.
pub(crate) type Column = (&'static str, &'static str, usize);

/// What one comparison measured.
pub(crate) struct Table {
    name: &'static str,
    /// What was measured, in a sentence or two.
    about: String,
    columns: &'static [Column],
    rows: Vec<Vec<Value>>,
}

/// A row of a table: texts and numbers.
macro_rules! row {
    ($($cell:expr),+ $(,)?) => { vec![$(serde_json::Value::from($cell)),+] };
}
pub(crate) use row;

impl Table {
    pub(crate) fn new(name: &'static str, about: String, columns: &'static [Column]) -> Self {
        Self { name, about, columns, rows: Vec::new() }
    }

    /// Adds a row, with a cell for each column.
    pub(crate) fn push(&mut self, row: Vec<Value>) {
        assert_eq!(row.len(), self.columns.len(), "a cell for each column of {}", self.name);
        self.rows.push(row);
    }

    fn print(&self) {
        let titles = self.columns.iter().map(|(_, title, _)| (*title).to_owned()).collect();
        let mut lines: Vec<Vec<String>> = vec![titles];
        for row in &self.rows {
            let cells = row.iter().zip(self.columns);
            lines.push(cells.map(|(cell, (.., digits))| text(cell, *digits)).collect());
        }
        let mut widths = vec![0; self.columns.len()];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = cell.chars().count().max(*width);
            }
        }
        println!("\n{}: {}\n", self.name, self.about);
        for line in lines {
            let cells = line.iter().zip(&widths);
            let cells: Vec<_> = cells.map(|(cell, width)| format!("{cell:>width$}")).collect();
            println!("{}", cells.join("  "));
        }
    }

    fn to_json(&self) -> Value {
        let columns = self.columns.iter().map(|(key, title, digits)| {
            serde_json::json!({"key": key, "title": title, "digits": digits})
        });
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(row);
            cells.map(|((key, ..), cell)| ((*key).to_owned(), rounded(cell))).collect::<Map<_, _>>()
        });
        serde_json::json!({
            "name": self.name,
            "about": self.about,
            "columns": columns.collect::<Vec<_>>(),
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}

fn text(cell: &Value, digits: usize) -> String {
    match cell {
        Value::String(text) => text.clone(),
        other => other.as_f64().map_or("-".to_owned(), |number| format!("{number:.digits$}")),
    }
}

/// A size in bytes, as tables show it.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        0x10_0000.. => format!("{} MiB", bytes >> 20),
        0x400.. => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

/// A number with four significant digits: more would only be noise.
fn rounded(cell: &Value) -> Value {
    match cell.as_f64() {
        Some(number) if cell.is_f64() => format!("{number:.3e}").parse().unwrap_or(number).into(),
        _ => cell.clone(),
    }
}

/// A file of results.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Results {
    date: String,
    /// Of the sources; with a `+` if they were changed since.
    commit: Option<String>,
    version: String,
    is_quick: bool,
    machine: Machine,
    tables: Vec<Value>,
}

/// What the figures depend on, and nothing that would identify the machine.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Machine {
    processor: String,
    cores: usize,
    /// Extensions for vectors and AES that it has.
    extensions: Vec<String>,
    kernel: String,
    compiler: String,
}

impl Results {
    fn of_this_machine(is_quick: bool) -> Self {
        Self {
            date: output("date", &["-u", "+%Y-%m-%d"]).unwrap_or_default(),
            commit: commit(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            is_quick,
            machine: Machine::this(),
            tables: Vec::new(),
        }
    }

    /// Date and processor, such as `2026-11-29-amd-epyc.json`.
    fn file_name(&self) -> String {
        let processor = self.machine.processor.to_lowercase();
        let words = processor.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        format!("{}-{}.json", self.date, words.join("-"))
    }

    /// JSON with a line for each row.
    fn text(&self) -> String {
        let bare = Self { tables: Vec::new(), ..self.clone() };
        let head = serde_json::to_string_pretty(&bare).unwrap_or_default();
        let mut text = head.trim_end_matches("[]\n}").to_owned() + "[";
        for (index, table) in self.tables.iter().enumerate() {
            let lines = |key| {
                let values = table.get(key).and_then(Value::as_array).into_iter().flatten();
                let values: Vec<_> = values.map(|value| format!("        {value}")).collect();
                values.join(",\n")
            };
            let comma = if index == 0 { "" } else { "," };
            text += &format!(
                "{comma}\n    {{\n      \"name\": {},\n      \"about\": {},\n      \"columns\": [\n{}\n      ],\n      \"rows\": [\n{}\n      ]\n    }}",
                table.get("name").unwrap_or(&Value::Null),
                table.get("about").unwrap_or(&Value::Null),
                lines("columns"),
                lines("rows"),
            );
        }
        text + "\n  ]\n}\n"
    }
}

impl Machine {
    fn this() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            let found = lines.find(|(key, _)| key.trim() == name);
            found.map(|(_, value)| value.trim()).unwrap_or_default()
        };
        // "Intel(R) Xeon(R) Processor @ 2.10GHz" is "Intel Xeon".
        let name = field("model name").replace("(R)", "").replace("(TM)", "");
        let words = name.split('@').next().unwrap_or_default().split_whitespace();
        let words: Vec<_> = words.filter(|word| !["CPU", "Processor"].contains(word)).collect();
        let extensions = ["aes", "avx2", "vaes", "avx512f"];
        let has = |name: &&str| field("flags").split(' ').any(|flag| flag == *name);
        // What follows the numbers may be a name that the machine's owner gave.
        let kernel = output("uname", &["-r"]).unwrap_or_default();
        let end = kernel.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(kernel.len());
        Self {
            processor: words.join(" "),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            extensions: extensions
                .iter()
                .filter(|name| has(name))
                .map(ToString::to_string)
                .collect(),
            kernel: kernel.get(..end).unwrap_or_default().to_owned(),
            compiler: output("rustc", &["-V"]).unwrap_or_default(),
        }
    }
}

fn commit() -> Option<String> {
    let commit = output("git", &["rev-parse", "--short=10", "HEAD"])?;
    let sources =
        ["status", "--porcelain", "--", "src", "benches/*.rs", "Cargo.toml", "Cargo.lock"];
    let is_changed = !output("git", &sources)?.is_empty();
    Some(if is_changed { commit + "+" } else { commit })
}

/// What a command prints, if there is such a command and it succeeds.
fn output(command: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(command);
    let output = command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
