//! `--output`: where a command writes its data. A file appears when it is complete, and never
//! replaces another one; stdout has what was written, also when the command fails.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kms_proxy::files::{self, NewFile};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, Result};

#[derive(clap::Args)]
pub(super) struct OutputArgs {
    /// Write to a new file, which appears when it is complete [default: stdout]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The mode of a file that holds a ciphertext; the umask takes some of it.
pub(super) const CIPHERTEXT: u32 = 0o666;
/// The mode of a file that holds a plaintext.
pub(super) const PLAINTEXT: u32 = files::PRIVATE;

/// Where data is written.
pub(super) enum Output {
    /// Unbuffered.
    Stdout(File),
    File {
        file: NewFile,
        path: PathBuf,
    },
}

/// Removes the temporary file of an output if a signal ends the process.
pub(super) struct Guard(Option<(PathBuf, Signals)>);

/// The signals that people and programs end a process with. They no longer end it by themselves.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    /// `None` if it is ignored, as by `nohup`.
    hangup: Option<Signal>,
}

impl OutputArgs {
    /// Whether data goes to stdout.
    pub(super) fn is_stdout(&self) -> bool {
        self.path().is_none()
    }

    /// The file; `-` is stdout.
    fn path(&self) -> Option<&Path> {
        self.output.as_deref().filter(|path| path.as_os_str() != "-")
    }

    /// Fails if binary data would go to a terminal.
    pub(super) fn refuse_terminal(&self) -> Result {
        if self.is_stdout() && io::stdout().is_terminal() {
            let message = "the output is binary: redirect stdout, or use --output FILE";
            return Err(Failure::Usage(message.to_owned()));
        }
        Ok(())
    }

    /// Begins the output. A new file gets `mode`. All that happens until [`Output::finish`] belongs
    /// into [`Guard::run`].
    pub(super) fn open(&self, mode: u32) -> Result<(Output, Guard)> {
        let Some(path) = self.path() else {
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            let stdout = stdout.map_err(|error| write_failed("stdout", &error))?;
            return Ok((Output::Stdout(stdout.into()), Guard(None)));
        };
        let wrong = |error: &io::Error| write_failed(&path.display().to_string(), error);
        // Checked again at the end; an early error saves the work.
        if path.try_exists().map_err(|error| wrong(&error))? {
            return Err(exists(path));
        }
        // Before there is anything to remove.
        let signals = Signals::listen().map_err(|error| wrong(&error))?;
        let file = NewFile::create_with(path, mode).map_err(|error| wrong(&error))?;
        let temporary = file.temporary().to_owned();
        let output = Output::File { file, path: path.to_owned() };
        Ok((output, Guard(Some((temporary, signals)))))
    }
}

impl Output {
    /// The failure to write to it.
    pub(super) fn failure(&self, error: &io::Error) -> Failure {
        match self {
            // A reader such as `head` may stop early.
            Self::Stdout(_) if error.kind() == ErrorKind::BrokenPipe => Failure::Silent,
            Self::Stdout(_) => write_failed("stdout", error),
            Self::File { path, .. } => write_failed(&path.display().to_string(), error),
        }
    }

    /// What became of an output that is incomplete, for the end of a message.
    pub(super) fn remains(&self) -> String {
        match self {
            Self::Stdout(_) => "what was written before is authentic, but not complete".to_owned(),
            Self::File { path, .. } => format!("{} was not written", path.display()),
        }
    }

    /// Writes all of `data`, and completes the output.
    pub(super) fn write_last(mut self, data: &[u8]) -> Result {
        self.write_all(data).map_err(|error| self.failure(&error))?;
        self.finish()
    }

    /// Completes it: a file is made durable, and gets its name.
    pub(super) fn finish(self) -> Result {
        let Self::File { file, path } = self else { return Ok(()) };
        match file.place() {
            Ok(true) => Ok(()),
            Ok(false) => Err(exists(&path)),
            Err(error) => Err(write_failed(&path.display().to_string(), &error)),
        }
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write(data),
            Self::File { file, .. } => file.as_file().write(data),
        }
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write_vectored(data),
            Self::File { file, .. } => file.as_file().write_vectored(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Guard {
    /// Runs `work`, which must not block the thread. SIGINT, SIGTERM, SIGQUIT and SIGHUP remove the
    /// temporary file and end the process.
    pub(super) async fn run<T>(self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Some((temporary, mut signals)) = self.0 else { return work.await };
        tokio::select! {
            done = work => done,
            code = signals.next() => {
                _ = std::fs::remove_file(temporary);
                std::process::exit(code)
            }
        }
    }
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hangup: (!is_hangup_ignored()).then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// The exit code for the next signal: that of a shell.
    async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.quit.recv() => SignalKind::quit(),
            Some(_) = async { self.hangup.as_mut()?.recv().await } => SignalKind::hangup(),
        };
        128 + kind.as_raw_value()
    }
}

/// Whether the process was started so that SIGHUP does not end it. Linux shows that in proc(5).
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 << (SignalKind::hangup().as_raw_value() - 1) != 0)
}

fn exists(path: &Path) -> Failure {
    Failure::refused(format!("{} exists already, and is not replaced", path.display()))
}

fn write_failed(name: &str, error: &io::Error) -> Failure {
    Failure::refused(format!("can't write to {name}: {error}"))
}
