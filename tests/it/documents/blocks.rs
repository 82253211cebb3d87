//! Documents taken apart into their blocks. It runs nothing.

/// A block of a document, in the order of the document.
pub(super) struct Block {
    /// The line of its fence, from 1 on.
    pub(super) line: usize,
    pub(super) kind: Kind,
    pub(super) run: Run,
    /// What stands between the fences.
    pub(super) text: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Commands, each with what it prints.
    Console(Vec<Step>),
    /// A script.
    Script,
    /// A script that readers don't see.
    Hidden,
    /// A configuration to write to a file.
    Toml(String),
    /// A configuration that is only shown.
    Settings,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Run {
    Well,
    /// The last command fails.
    Fails,
    /// It can't be run in the tests, for a reason.
    Not(String),
}

/// A command and the lines that it prints.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) command: String,
    pub(super) prints: Vec<String>,
}

impl Block {
    /// Whether a reader would type it.
    pub(super) fn is_shell(&self) -> bool {
        matches!(self.kind, Kind::Console(_) | Kind::Script)
    }

    /// All that is to be run, as one script.
    pub(super) fn script(&self) -> String {
        match &self.kind {
            Kind::Console(steps) => {
                steps.iter().map(|step| format!("{}\n", step.command)).collect()
            }
            _ => self.text.clone(),
        }
    }
}

/// The blocks of `document` that mean something here.
pub(super) fn of(document: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let opening = line.trim_start();
        let (info, end) = match opening.strip_prefix("```") {
            Some(info) => (info.trim(), "```"),
            None if opening == "<!-- run" => ("hidden", "-->"),
            None => continue,
        };
        let mut text = String::new();
        loop {
            let Some((_, line)) = lines.next() else {
                return Err(format!("line {}: the block has no end", index + 1));
            };
            if line.trim() == end {
                break;
            }
            if end == "```" && line.trim_start().starts_with(end) {
                return Err(format!("line {}: another block begins before its end", index + 1));
            }
            text.push_str(line.get(indent..).unwrap_or_default());
            text.push('\n');
        }
        let wrong = |why: String| format!("line {}: {why}", index + 1);
        if let Some((kind, run)) = understand(info, &text).map_err(wrong)? {
            blocks.push(Block { line: index + 1, kind, run, text });
        }
    }
    Ok(blocks)
}

fn understand(info: &str, text: &str) -> Result<Option<(Kind, Run)>, String> {
    let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
    let kind = match language {
        "hidden" => Kind::Hidden,
        "console" => Kind::Console(steps(text)?),
        "sh" | "bash" | "shell" => Kind::Script,
        "toml" if rest.is_empty() => Kind::Settings,
        "toml" => return Ok(Some((Kind::Toml(rest.to_owned()), Run::Well))),
        _ if text.lines().any(|line| line.starts_with("$ ")) => {
            return Err("commands are in a `console` block".to_owned());
        }
        _ => return Ok(None),
    };
    let run = match (rest, rest.strip_prefix("not run: ")) {
        ("", _) => Run::Well,
        ("fails", _) => Run::Fails,
        (_, Some(reason)) => Run::Not(reason.to_owned()),
        (other, None) => return Err(format!("what is `{other}`?")),
    };
    Ok(Some((kind, run)))
}

fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::<Step>::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), ..Step::default() });
            continue;
        }
        let step = steps.last_mut().ok_or("the block starts with no `$ `")?;
        match line.strip_prefix("> ").or((line == ">").then_some("")) {
            Some(more) if step.prints.is_empty() => {
                step.command.push('\n');
                step.command.push_str(more);
            }
            _ => step.prints.push(line.to_owned()),
        }
    }
    if steps.is_empty() { Err("there is no command".to_owned()) } else { Ok(steps) }
}
