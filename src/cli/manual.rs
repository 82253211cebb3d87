//! Generates completions, man pages and docs/command-line.md from the definition of the command
//! line.

use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::stdio::print;
use super::{Cli, Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kms-proxy man | man -l -
  kms-proxy man --out /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Write one page per command into this directory, instead of the page of kms-proxy to stdout
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the completions for a shell.
pub(super) fn completions(shell: Shell) -> Result {
    // The generator panics if it can't write, so it writes to memory first.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "kms-proxy", &mut script);
    if shell == Shell::Bash {
        // It writes a name with a hyphen in two forms, but looks up only one of them.
        let text = String::from_utf8_lossy(&script).replace("kms__subcmd__proxy", "kms__proxy");
        script = text.into_bytes();
    }
    print(&script)
}

/// The command line without hidden parts, which the generator would include.
fn visible() -> Command {
    let whole = Cli::command();
    let arguments = whole.get_arguments().filter(|argument| !argument.is_hide_set());
    let commands = whole.get_subcommands().filter(|command| !command.is_hide_set());
    let about = whole.get_about().cloned().unwrap_or_default();
    let visible = Command::new("kms-proxy").about(about).version(env!("CARGO_PKG_VERSION"));
    visible.args(arguments.cloned()).subcommands(commands.cloned())
}

/// Prints a man page, or writes all of them.
pub(super) fn man(args: ManArgs) -> Result {
    if let Some(directory) = args.out {
        return write_pages(&directory).map_err(|error| {
            Failure::refused(format!("can't write into {}: {error}", directory.display()))
        });
    }
    let mut page = Vec::new();
    let rendered = Man::new(Cli::command()).render(&mut page);
    rendered.map_err(|error| Failure::refused(format!("can't generate the page: {error}")))?;
    print(&page)
}

fn write_pages(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)
}

const PREFACE: &str = "\
# The command line

<!-- Made from the command line's own definition by `make documents`: don't edit it here. -->

Data goes to stdout, messages to stderr. `kms-proxy completions SHELL` prints completions, \
`kms-proxy man` man pages.
";

/// Prints docs/command-line.md.
pub(super) fn reference() -> Result {
    let mut command = Cli::command().term_width(100).disable_help_subcommand(true);
    command.build();
    let mut text = PREFACE.to_owned();
    describe(&mut command, &mut text);
    print(text.as_bytes())
}

fn describe(command: &mut Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or("kms-proxy").to_owned();
    let help = command.render_help().to_string();
    let help: Vec<_> = help.lines().map(str::trim_end).collect();
    text.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end()));
    for command in command.get_subcommands_mut().filter(|command| !command.is_hide_set()) {
        describe(command, text);
    }
}
