//! kube-apiserver's part, played by a client that shares no code with the service: grpcio in Python,
//! with stubs that are made from the public definition. `tests/kubernetes/client.py` says what it
//! can be told.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::lines::Lines;
pub(crate) use super::lines::hex;
use super::root;
use super::tools::test_env;

/// A client with its connections. Dropping it kills the process.
pub(crate) struct Client(Lines);

impl Client {
    /// A client of the plugins at `sockets`, as kube-apiserver is from 1.32 on.
    pub(crate) fn of(sockets: &[&Path]) -> Self {
        let targets: Vec<_> =
            sockets.iter().map(|socket| format!("unix:{}", socket.display())).collect();
        Self::start(&targets.join(","), "localhost")
    }

    /// A client of a target of grpcio's, with an authority of the test's choice.
    pub(crate) fn start(target: &str, authority: &str) -> Self {
        let mut command = Command::new(test_env("python3"));
        command.arg(root().join("tests/kubernetes/client.py")).args([target, authority]);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        Self(Lines::start(command))
    }

    /// The response to a command; a failed call is a response too.
    pub(crate) fn tell(&mut self, command: &Value) -> Value {
        self.0.tell(command)
    }

    /// The response to a command, which must not fail.
    pub(crate) fn good(&mut self, command: &Value) -> Value {
        self.0.good(command)
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
