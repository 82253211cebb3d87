//! A program that uses AWS KMS: boto3 and the AWS Encryption SDK in Python, the SDK for Node.js, and
//! the command line. `tests/aws/client.py` describes the commands. Everything it knows of the service is in its
//! environment.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::kms::REGION;
use super::lines::{Lines, hex};
use super::root;
use super::tools::{node, printed, test_env};

/// The variables of a program that uses the KMS at `url`.
pub(crate) fn environment(url: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL_KMS", url.to_owned()),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_DEFAULT_REGION", REGION.to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        // A failure is reported by the first response.
        ("AWS_MAX_ATTEMPTS", "1".to_owned()),
    ]
}

/// What a program is written in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Language {
    Python,
    Node,
}

impl Language {
    pub(crate) const ALL: [Self; 2] = [Self::Python, Self::Node];

    fn command(self) -> Command {
        let (program, file) = match self {
            Self::Python => (test_env("python"), "client.py"),
            Self::Node => (node(), "client.cjs"),
        };
        let mut command = Command::new(program);
        command.arg(root().join("tests/aws").join(file)).env_clear();
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("NODE_PATH", test_env("../node/node_modules"));
        command
    }
}

/// The program. Dropping it kills the process.
pub(crate) struct Program(Lines);

impl Program {
    pub(crate) fn start(language: Language, environment: Vec<(&'static str, String)>) -> Self {
        let mut command = language.command();
        command.envs(environment);
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

    /// A call of the SDK that must not fail, such as `encrypt`.
    pub(crate) fn call(&mut self, operation: &str, args: Value) -> Value {
        self.good(&json!({"call": operation, "args": args}))
    }

    /// The code and the message of a call of the SDK that must fail.
    pub(crate) fn refused(&mut self, operation: &str, args: Value) -> (String, String) {
        let answer = self.tell(&json!({"call": operation, "args": args}));
        let text = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("{answer}"));
        (text("error").to_owned(), text("message").to_owned())
    }
}

/// What `aws kms` prints, as JSON; it must not fail.
pub(crate) fn aws_kms(environment: &[(&'static str, String)], args: &[&str]) -> Value {
    let mut command = Command::new(test_env("aws"));
    command.args(["kms", "--output", "json"]).args(args);
    command.env_clear().envs(environment.iter().cloned()).stdin(Stdio::null());
    serde_json::from_str(&printed(command.output().unwrap())).unwrap()
}

/// Bytes as the program reads and writes them.
pub(crate) fn bytes(bytes: &[u8]) -> Value {
    json!({"hex": hex(bytes)})
}
