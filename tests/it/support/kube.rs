//! kube-apiserver's part, played by a client that shares no code with the service: grpcio in Python,
//! with stubs that are made from the public definition. `tests/kubernetes/client.py` says what it
//! can be told.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use super::root;

/// A client with its connections. Dropping it kills the process.
pub(crate) struct Client {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Client {
    /// A client of the plugins at `sockets`, as kube-apiserver is from 1.32 on.
    pub(crate) fn of(sockets: &[&Path]) -> Self {
        let targets: Vec<_> =
            sockets.iter().map(|socket| format!("unix:{}", socket.display())).collect();
        Self::start(&targets.join(","), "localhost")
    }

    /// A client of a target of grpcio's, with an authority of the test's choice.
    pub(crate) fn start(target: &str, authority: &str) -> Self {
        let python = root().join("target/test-env/bin/python3");
        let mut command = Command::new(&python);
        command.arg(root().join("tests/kubernetes/client.py")).args([target, authority]);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned
            .unwrap_or_else(|error| panic!("{}: {error}; run `make test-env`", python.display()));
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    /// Does what `command` says; a call that failed is an answer too.
    pub(crate) fn tell(&mut self, command: &Value) -> Value {
        writeln!(self.stdin, "{command}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("{command}: {line:?} ({error}); is grpcio there? run `make test-env`")
        })
    }

    /// The same; it must go well.
    pub(crate) fn good(&mut self, command: &Value) -> Value {
        let answer = self.tell(command);
        assert_eq!(answer.get("error"), None, "{command}: {answer}");
        answer
    }

    /// The key id of `Status`, which must say that all is well.
    pub(crate) fn key_id(&mut self) -> String {
        let status = self.good(&json!({"do": "status"}));
        assert_eq!((&status["version"], &status["healthz"]), (&json!("v2"), &json!("ok")));
        status["key_id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn encrypt(&mut self, plaintext: &[u8]) -> Value {
        let command = json!({"do": "encrypt", "plaintext": hex(plaintext), "uid": "test"});
        self.tell(&command)
    }

    /// Decrypts what [`encrypt`](Self::encrypt) gave, with `changes` in it.
    pub(crate) fn decrypt(&mut self, made: &Value, changes: &[(&str, Value)]) -> Value {
        let mut command = made.clone();
        command["do"] = json!("decrypt");
        command["uid"] = json!("test");
        for (key, value) in changes {
            command[key] = value.clone();
        }
        self.tell(&command)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
