//! The six questions: their texts and flags, and the loop that asks until each answer is valid.

use std::io::{self, BufRead as _, Read as _, Write as _};

use super::plan::{Plan, Topic};
use crate::cli::{Failure, Result};

/// The answers that flags give.
#[derive(clap::Args)]
pub(super) struct Answers {
    /// The root key: aws-kms:KEY_ID, azure-key-vault:URL, gcp-kms:KEY,
    /// vault-transit:URL,KEY,TOKEN_FILE, pkcs11:MODULE,TOKEN,KEY,PIN_FILE, passphrase:FILE,
    /// or local
    #[arg(long, value_name = "ROOT")]
    root: Option<String>,
    /// The store: etcd:URL,URL,.., file:DIR, or inline
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// The archive: s3://BUCKET/PREFIX, gs://.., az://.., dir:PATH, or none
    #[arg(long, value_name = "ARCHIVE")]
    archive: Option<String>,
    /// HTTPS: CERT,KEY or CERT,KEY,CLIENT_CA (PEM files), or none
    #[arg(long, value_name = "FILES")]
    tls: Option<String>,
    /// The callers: token, jwt:ISSUER,AUDIENCE,SUBJECT,JWKS, certificate:NAME, or none
    #[arg(long, value_name = "IDENTITIES")]
    identities: Option<String>,
    /// The audit log: FILE, stdout, unix:SOCKET, or none
    #[arg(long, value_name = "TARGET")]
    audit: Option<String>,
}

struct Question {
    topic: Topic,
    /// The name of the flag.
    flag: &'static str,
    text: &'static str,
    /// The answer of an empty line.
    default: &'static str,
}

const QUESTIONS: [Question; 6] = [
    Question {
        topic: Topic::Root,
        flag: "root",
        text: "\
Which root key wraps the KEKs?
  aws-kms:KEY_ID                        AWS KMS: an ARN, an id or alias/NAME
  azure-key-vault:URL                   Azure Key Vault: https://../keys/NAME
  gcp-kms:KEY                           Google Cloud KMS: projects/../cryptoKeys/NAME
  vault-transit:URL,KEY,TOKEN_FILE      the transit engine of Vault or OpenBao
  pkcs11:MODULE,TOKEN,KEY,PIN_FILE      an HSM, by the labels of token and key
  passphrase:FILE                       a passphrase; a missing file is generated
  local                                 a key file, for development",
        default: "aws-kms:alias/kms-proxy",
    },
    Question {
        topic: Topic::Store,
        flag: "store",
        text: "\
Where are the wrapped KEKs stored?
  etcd:URL,URL,URL                      a cluster that replicas share
  file:DIR                              a directory, for one process
  inline                                in each envelope, and nowhere else: processes share
                                        only the root, and no KEK can be disabled",
        default: "file:/var/lib/kms-proxy",
    },
    Question {
        topic: Topic::Archive,
        flag: "archive",
        text: "\
Which archive keeps a copy of the wrapped KEKs?
  s3://BUCKET/PREFIX                    also gs://BUCKET/PREFIX, az://CONTAINER/PREFIX
  dir:PATH                              a directory on another disk
  none                                  make backups instead",
        default: "none",
    },
    Question {
        topic: Topic::Tls,
        flag: "tls",
        text: "\
Which certificate does the service have? (PEM files)
  CERT,KEY                              HTTPS
  CERT,KEY,CLIENT_CA                    the same, and CLIENT_CA signs certificates of clients
  none                                  plain HTTP, on this machine alone",
        default: "none",
    },
    Question {
        topic: Topic::Identities,
        flag: "identities",
        text: "\
How do applications authenticate?
  token                                 a bearer token, which is generated now
  jwt:ISSUER,AUDIENCE,SUBJECT,JWKS      JWTs; JWKS is the URL or the file of its keys
  certificate:NAME                      a client certificate with this alternative name
  none                                  not at all: anyone on this machine may do everything",
        default: "token",
    },
    Question {
        topic: Topic::Audit,
        flag: "audit",
        text: "\
Where does the audit log go?
  FILE                                  a file
  stdout, unix:SOCKET                   a program that collects it
  none                                  no audit log",
        default: "/var/log/kms-proxy/audit.jsonl",
    },
];

/// Where answers come from: flags, then stdin.
pub(super) struct Session<'a> {
    answers: &'a Answers,
}

impl<'a> Session<'a> {
    /// Fails if nothing may be asked and an answer is missing.
    pub(super) fn new(answers: &'a Answers, non_interactive: bool) -> Result<Self> {
        let missing = QUESTIONS.iter().filter(|question| answers.of(question.topic).is_none());
        let missing: Vec<_> = missing.map(|question| format!("--{}", question.flag)).collect();
        if non_interactive && !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(Failure::Usage(format!("--non-interactive needs {missing} too")));
        }
        Ok(Self { answers })
    }

    /// Completes `plan`. `check` says what is wrong with the answers so far.
    pub(super) fn complete(
        &self,
        plan: &mut Plan,
        check: impl Fn(&Plan) -> std::result::Result<(), String>,
    ) -> Result {
        let attempt = |plan: &Plan, topic, answer: &str| {
            if answer.contains(char::is_control) {
                return Err(CONTROL.to_owned());
            }
            let mut next = plan.clone();
            next.set(topic, answer)?;
            check(&next).map(|()| next)
        };
        let mut has_asked = false;
        for (index, question) in QUESTIONS.iter().enumerate() {
            if let Some(answer) = self.answers.of(question.topic) {
                let next = attempt(plan, question.topic, answer);
                *plan =
                    next.map_err(|why| Failure::Usage(format!("--{}: {why}", question.flag)))?;
                continue;
            }
            if !has_asked {
                say("An empty line takes the answer in brackets.\n");
            }
            has_asked = true;
            say(&format!("\n{}/{} {}\n", index + 1, QUESTIONS.len(), question.text));
            *plan = loop {
                say(&format!("[{}] ", question.default));
                let answer = read_line(question)?;
                let answer = if answer.is_empty() { question.default } else { &answer };
                match attempt(plan, question.topic, answer) {
                    Ok(next) => break next,
                    Err(why) => say(&format!("{why}\n")),
                }
            };
        }
        Ok(())
    }
}

impl Answers {
    fn of(&self, topic: Topic) -> Option<&str> {
        let answer = match topic {
            Topic::Root => &self.root,
            Topic::Store => &self.store,
            Topic::Archive => &self.archive,
            Topic::Tls => &self.tls,
            Topic::Identities => &self.identities,
            Topic::Audit => &self.audit,
        };
        answer.as_deref()
    }
}

/// What is wrong with a text that would change what a terminal shows.
pub(super) const CONTROL: &str = "it must not contain control characters";

/// The longest answer in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// The next line of stdin without white space around it.
fn read_line(question: &Question) -> Result<String> {
    let mut line = String::new();
    let read = io::stdin().lock().take(MAX_ANSWER).read_line(&mut line);
    // Without its newline, the last line of a file that was cut off is no answer.
    if read.is_ok() && line.ends_with('\n') {
        return Ok(line.trim().to_owned());
    }
    let why = read.err().map_or_else(|| "stdin has ended".to_owned(), |error| error.to_string());
    let flag = question.flag;
    say("\n");
    Err(Failure::refused(format!("{why} before --{flag} was answered; nothing was written")))
}

fn say(text: &str) {
    // Without stderr the question is lost, and stdin ends or answers it.
    _ = io::stderr().write_all(text.as_bytes());
}
