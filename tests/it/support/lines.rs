//! A child process that reads commands from stdin, a JSON object a line, and answers each with one
//! on stdout. It does not know what the commands mean.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// The process. Dropping it kills the process.
pub(crate) struct Lines {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Lines {
    pub(crate) fn start(mut command: Command) -> Self {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child =
            spawned.unwrap_or_else(|error| panic!("{command:?}: {error}; run `make test-env`"));
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    /// The response to a command; a failed call is a response too.
    pub(crate) fn tell(&mut self, command: &Value) -> Value {
        writeln!(self.stdin, "{command}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{command}: {line:?} ({error}); run `make test-env`"))
    }

    /// The response to a command, which must not fail.
    pub(crate) fn good(&mut self, command: &Value) -> Value {
        let answer = self.tell(command);
        assert_eq!(answer.get("error"), None, "{command}: {answer}");
        answer
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Bytes as lower-case hex, which JSON can hold.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
