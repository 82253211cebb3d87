//! Makes the three calls of kube-apiserver on the socket of any plugin, and checks the responses as
//! kube-apiserver does.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

use crate::error_chain::innermost;
use crate::secret::SecretBytes;

use super::config::Address;
use super::proto::{
    self, DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest,
    StatusResponse,
};
use super::{MAX_CIPHERTEXT, MAX_KEY_ID, VERSION};

/// How long kube-apiserver waits for a response by default.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The bytes of a seed, which it encrypts.
const SEED: usize = 32;
/// The most bytes of all annotations.
const MAX_ANNOTATIONS: usize = 32 << 10;

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Such as `Encrypt`.
    pub what: &'static str,
    /// The observation, or the problem.
    pub outcome: Result<String, String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, detail) = match &self.outcome {
            Ok(detail) => ("ok", detail),
            Err(detail) => ("FAILED", detail),
        };
        write!(f, "{:<10}{word:<8}{detail}", self.what)
    }
}

/// The results of all checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// In their order, up to the first one after which no more checks are possible.
    pub findings: Vec<Finding>,
    /// The conclusion as a sentence.
    pub verdict: String,
    /// Whether kube-apiserver can use the plugin.
    pub is_good: bool,
}

/// Makes the calls and checks the responses.
pub fn examine(socket: &Address) -> Pin<Box<dyn Future<Output = Diagnosis> + Send + '_>> {
    // Boxed, so that the gRPC client is compiled here, and not in each program that awaits this.
    Box::pin(make_calls(socket))
}

async fn make_calls(socket: &Address) -> Diagnosis {
    let mut examination = Examination { findings: Vec::new() };
    let is_usable = examination.all(socket).await.is_some();
    let is_good = examination.findings.iter().all(|finding| finding.outcome.is_ok());
    let verdict = match (is_usable, is_good) {
        (true, true) => "kube-apiserver can use this plugin",
        (true, false) => {
            "kube-apiserver can read and write with this plugin, but reports it as unhealthy"
        }
        (false, _) => "kube-apiserver can't use this plugin",
    };
    Diagnosis { findings: examination.findings, verdict: verdict.to_owned(), is_good }
}

struct Examination {
    findings: Vec<Finding>,
}

impl Examination {
    fn note(&mut self, what: &'static str, outcome: Result<String, String>) -> Option<()> {
        let is_good = outcome.is_ok();
        self.findings.push(Finding { what, outcome });
        is_good.then_some(())
    }

    /// All checks; `None` if one fails that kube-apiserver can't do without.
    async fn all(&mut self, socket: &Address) -> Option<()> {
        self.note("socket", check_socket(socket))?;
        let channel = match connect(socket.clone()).await {
            Ok(channel) => channel,
            Err(error) => {
                self.note("connect", Err(with_hint(error)));
                return None;
            }
        };
        let status = self.status(&channel).await?;
        let seed = SecretBytes::random(SEED);
        let Ok(seed) = seed.map_err(|error| self.note("random", Err(error.to_string()))) else {
            return None;
        };
        let made = self.encrypt(&channel, &seed, &status.key_id).await?;
        self.decrypt(&channel, &seed, &made).await?;
        self.refuse(&channel, made).await
    }

    async fn status(&mut self, channel: &Channel) -> Option<StatusResponse> {
        let asked = call::<_, StatusResponse>(channel, proto::STATUS, StatusRequest {}).await;
        let (status, took) = match asked {
            Ok(answer) => answer,
            Err(error) => {
                self.note("Status", Err(error));
                return None;
            }
        };
        self.note(
            "Status",
            match &*status.version {
                VERSION => Ok(format!("version v2, in {took}")),
                other => Err(format!("the version is {other:?}, but must be \"v2\"")),
            },
        )?;
        self.note("key_id", check_key_id(&status.key_id))?;
        // Not fatal: kube-apiserver continues.
        let _ = self.note(
            "healthz",
            match &*status.healthz {
                "ok" => Ok("ok".to_owned()),
                other => Err(other.to_owned()),
            },
        );
        Some(status)
    }

    async fn encrypt(
        &mut self,
        channel: &Channel,
        seed: &SecretBytes,
        key_id: &str,
    ) -> Option<EncryptResponse> {
        let request = EncryptRequest { plaintext: seed.expose().to_vec(), uid: uid() };
        let asked = call::<_, EncryptResponse>(channel, proto::ENCRYPT, request).await;
        let outcome = asked.and_then(|(made, took)| {
            let len = made.ciphertext.len();
            if made.key_id != key_id {
                return Err(format!("the key_id is {:?}, not that of Status", made.key_id));
            }
            if len == 0 || len > MAX_CIPHERTEXT {
                return Err(format!("the ciphertext has {len} bytes, but must have 1 to 1,024"));
            }
            check_annotations(&made.annotations)?;
            Ok((made, format!("{SEED} bytes became {len}, with the key_id of Status, in {took}")))
        });
        match outcome {
            Ok((made, detail)) => {
                self.note("Encrypt", Ok(detail))?;
                Some(made)
            }
            Err(error) => {
                self.note("Encrypt", Err(error));
                None
            }
        }
    }

    async fn decrypt(
        &mut self,
        channel: &Channel,
        seed: &SecretBytes,
        made: &EncryptResponse,
    ) -> Option<()> {
        let asked = call::<_, DecryptResponse>(channel, proto::DECRYPT, request(made)).await;
        self.note(
            "Decrypt",
            asked.and_then(|(opened, took)| {
                if opened.plaintext == seed.expose() {
                    Ok(format!("returned the plaintext, in {took}"))
                } else {
                    Err("returned another plaintext".to_owned())
                }
            }),
        )
    }

    /// A key id that was never returned must open nothing.
    async fn refuse(&mut self, channel: &Channel, made: EncryptResponse) -> Option<()> {
        let mut request = request(&made);
        request.key_id = format!("{}x", made.key_id);
        let asked = call::<_, DecryptResponse>(channel, proto::DECRYPT, request).await;
        self.note(
            "refusal",
            match asked {
                Err(_) => Ok("Decrypt refuses a key_id that was never returned".to_owned()),
                Ok(_) => Err("Decrypt accepts a key_id that was never returned".to_owned()),
            },
        )
    }
}

fn request(made: &EncryptResponse) -> DecryptRequest {
    let EncryptResponse { ciphertext, key_id, annotations } = made.clone();
    DecryptRequest { ciphertext, uid: uid(), key_id, annotations }
}

fn check_key_id(key_id: &str) -> Result<String, String> {
    match key_id.len() {
        0 => Err("it is empty".to_owned()),
        len if len > MAX_KEY_ID => Err(format!("it has {len} bytes, but must have at most 1,024")),
        _ => Ok(key_id.to_owned()),
    }
}

fn check_annotations(annotations: &HashMap<String, Vec<u8>>) -> Result<(), String> {
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_ANNOTATIONS {
        return Err(format!("the annotations have {size} bytes, but must have at most 32,768"));
    }
    match annotations.keys().find(|key| !is_fqdn(key)) {
        Some(key) => Err(format!("the annotation {key:?} is not a domain name")),
        None => Ok(()),
    }
}

/// Whether `key` is a domain name of at least two parts, as Kubernetes requires.
fn is_fqdn(key: &str) -> bool {
    let is_part = |part: &str| {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&part.len())
            && part.bytes().all(fits)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    key.len() <= 253 && key.contains('.') && key.split('.').all(is_part)
}

/// Checks that the socket exists; returns its mode and owner.
fn check_socket(socket: &Address) -> Result<String, String> {
    let Address::Path(path) = socket else {
        return Ok(format!("{socket}: an abstract socket, without a file"));
    };
    let found = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if !found.file_type().is_socket() {
        return Err(format!("{} is not a socket", path.display()));
    }
    let (mode, uid, gid) = (found.mode() & 0o7777, found.uid(), found.gid());
    Ok(format!("{}: mode {mode:04o}, user {uid}, group {gid}", path.display()))
}

async fn connect(socket: Address) -> Result<Channel, String> {
    // The authority that kube-apiserver sends since 1.32.
    let endpoint = Endpoint::from_static("http://localhost");
    let connect = endpoint.connect_with_connector(Connector(socket));
    match tokio::time::timeout(TIMEOUT, connect).await {
        Ok(connected) => connected.map_err(|error| innermost(&error).to_string()),
        Err(_) => Err("no answer in 3 s".to_owned()),
    }
}

/// Appends the likely cause to an error of the system.
fn with_hint(error: String) -> String {
    let hint = if error.starts_with("Broken pipe") || error.contains("reset") {
        ENDED
    } else if error.starts_with("Permission denied") {
        "run this as kube-apiserver's user; kubernetes.owner and socket_mode restrict access"
    } else if error.starts_with("Connection refused") {
        "nothing listens on the socket; is the plugin running?"
    } else {
        return error;
    };
    format!("{error}; {hint}")
}

/// Makes a call. Returns the response and its duration.
async fn call<Q, A>(
    channel: &Channel,
    path: &'static str,
    request: Q,
) -> Result<(A, String), String>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel.clone());
    let started = Instant::now();
    let asked = async {
        grpc.ready().await.map_err(|error| innermost(&error).to_string())?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        grpc.unary(tonic::Request::new(request), path, codec)
            .await
            .map_err(|error| describe(&error))
    };
    let answer = tokio::time::timeout(TIMEOUT, asked).await;
    let answer = answer.unwrap_or_else(|_| Err("no answer in 3 s".to_owned()))?;
    Ok((answer.into_inner(), format!("{:.1} ms", started.elapsed().as_secs_f64() * 1e3)))
}

fn describe(status: &Status) -> String {
    match status.source() {
        // tonic made this status because no response arrived.
        Some(cause) => format!("{}; {ENDED}", innermost(cause)),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// The likely cause if a connection ends without a response.
const ENDED: &str = "the plugin closes the connection: is this user in kubernetes.allowed_uids?";

/// An id for the plugin's log.
fn uid() -> String {
    let mut bytes = [0; 8];
    // Without randomness the id is not unique, which is harmless.
    let _ = crate::random::fill(&mut bytes);
    format!("doctor-{}", base16ct::lower::encode_string(&bytes))
}

/// Connects tonic to a unix socket.
struct Connector(Address);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.to_path();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotation_keys_must_be_domain_names() {
        for good in ["kek.kms-proxy.dev", "a.b", "1.io"] {
            assert!(is_fqdn(good), "{good}");
        }
        let long = format!("{}.b", "a".repeat(64));
        for bad in ["", "kek", "a.", ".a", "A.b", "a_b.c", "-a.b", "a-.b", &long] {
            assert!(!is_fqdn(bad), "{bad}");
        }
        let annotations = |len| HashMap::from([("a.b".to_owned(), vec![0; len])]);
        assert!(check_annotations(&annotations(MAX_ANNOTATIONS - 3)).is_ok());
        assert!(check_annotations(&annotations(MAX_ANNOTATIONS - 2)).is_err());
    }
}
