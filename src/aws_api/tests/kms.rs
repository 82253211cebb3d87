//! A stand-in for KMS: it decrypts its own blobs, counts its calls, and fails on request.

use std::sync::Mutex;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::base64;
use crate::root::Error;
use crate::root::forward::{Kms, Response};

pub(super) struct FakeKms {
    calls: Mutex<Vec<(String, Value)>>,
    failure: Mutex<Option<Failure>>,
    held: watch::Sender<Held>,
}

/// The calls that wait.
enum Held {
    Nothing,
    All,
    /// Those with this ciphertext.
    Blob(Value),
}

#[derive(Clone)]
pub(super) enum Failure {
    /// An error of KMS: its name and its message.
    Error(&'static str, String),
    /// A response with this status and text.
    Text(u16, &'static str),
    /// KMS does not respond.
    Away,
}

impl Default for FakeKms {
    fn default() -> Self {
        let held = watch::Sender::new(Held::Nothing);
        Self { calls: Mutex::default(), failure: Mutex::default(), held }
    }
}

/// A ciphertext of the key with this ARN, in base64.
pub(super) fn blob(key: &str, context: &Value, plaintext: &[u8]) -> String {
    let text = json!({ "key": key, "context": context, "plaintext": base64(plaintext) });
    base64([&[1], text.to_string().as_bytes()].concat())
}

impl FakeKms {
    /// The calls so far: the operation and the body of each.
    pub(super) fn calls(&self) -> Vec<(String, Value)> {
        self.calls.lock().unwrap().clone()
    }

    /// The number of calls so far.
    pub(super) fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// How calls fail from now on; `None` if they do not.
    pub(super) fn fail(&self, failure: Option<Failure>) {
        *self.failure.lock().unwrap() = failure;
    }

    /// Whether calls end, or wait.
    pub(super) fn open(&self, is_open: bool) {
        self.held.send_replace(if is_open { Held::Nothing } else { Held::All });
    }

    /// Calls with this ciphertext wait until all are let through.
    pub(super) fn hold(&self, blob: &Value) {
        self.held.send_replace(Held::Blob(blob.clone()));
    }

    fn respond(&self, operation: &str, body: &Value) -> Result<(u16, String), Error> {
        let error = |code: &str, message: &str| {
            let code = format!("com.amazonaws.kms#{code}");
            Ok((400, json!({ "__type": code, "message": message }).to_string()))
        };
        match self.failure.lock().unwrap().clone() {
            Some(Failure::Error(code, message)) => return error(code, &message),
            Some(Failure::Text(status, text)) => return Ok((status, text.to_owned())),
            Some(Failure::Away) => return Err(Error::Away("planted".to_owned())),
            None => {}
        }
        if operation != "Decrypt" {
            return Ok((200, json!({ "Done": operation }).to_string()));
        }
        let blob = super::bytes(&body["CiphertextBlob"]);
        let blob = blob.strip_prefix(&[1]).and_then(|text| serde_json::from_slice(text).ok());
        let Some(blob): Option<Value> = blob else {
            return error("InvalidCiphertextException", "");
        };
        if body.get("KeyId").is_some_and(|key| *key != blob["key"]) {
            return error("IncorrectKeyException", "");
        }
        if body["EncryptionContext"] != blob["context"] {
            return error("InvalidCiphertextException", "");
        }
        let (plaintext, key) = (&blob["plaintext"], &blob["key"]);
        Ok((200, json!({ "Plaintext": plaintext, "KeyId": key }).to_string()))
    }
}

#[async_trait]
impl Kms for FakeKms {
    async fn call(&self, operation: &str, body: Zeroizing<Vec<u8>>) -> Result<Response, Error> {
        let body: Value = serde_json::from_slice(&body).unwrap();
        self.calls.lock().unwrap().push((operation.to_owned(), body.clone()));
        let is_let_through = |held: &Held| match held {
            Held::Nothing => true,
            Held::All => false,
            Held::Blob(blob) => body["CiphertextBlob"] != *blob,
        };
        self.held.subscribe().wait_for(is_let_through).await.unwrap();
        let (status, text) = self.respond(operation, &body)?;
        Ok(Response { status, body: Zeroizing::new(text.into_bytes()) })
    }
}
