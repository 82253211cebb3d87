//! The three calls: the rules of kube-apiserver for a plugin, and the responses.
//!
//! The key id is part of a ciphertext's AAD. So a key id that was never returned with it opens
//! nothing, and one that any replica ever returned opens it everywhere, without a list of key ids.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;

use crate::audit::{self, Audit, Call, Peer, Request, record};
use crate::id::{ChainName, KekId};
use crate::keychain::message::Plaintext;
use crate::metrics::Operation;
use crate::service::error::{Error, Kind};
use crate::service::{Check, Decrypted, Health, KeyService};
use crate::service::{KeyState, key_id};

use super::inline;
use super::proto::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use super::{DEADLINE, MAX_CIPHERTEXT, MAX_KEY_ID, OnRootOutage, VERSION};

/// The longest plaintext whose envelope kube-apiserver accepts; in a chain of AES-256 it is 930.
const MAX_PLAINTEXT: usize = 946;
/// The longest uid in the log, in characters. Those of Kubernetes have 36.
const MAX_UID: usize = 64;
/// How often the roots are checked if an outage must stop writes within four minutes.
const CHECK_TO_ENFORCE: Duration = Duration::from_secs(60);
/// How often they are checked if an outage is only reported: 8,640 calls in 30 days.
const CHECK_TO_REPORT: Duration = Duration::from_secs(5 * 60);

/// The plugin of one chain.
pub(super) struct Plugin {
    service: Arc<KeyService>,
    chain: ChainName,
    on_root_outage: OnRootOutage,
    audit: Option<Arc<Audit>>,
    /// Why clients do not find the socket.
    socket_error: Mutex<Option<String>>,
}

impl Plugin {
    pub(super) fn new(
        service: Arc<KeyService>,
        chain: ChainName,
        on_root_outage: OnRootOutage,
        audit: Option<Arc<Audit>>,
    ) -> Self {
        Self { service, chain, on_root_outage, audit, socket_error: Mutex::default() }
    }

    /// Reports to readiness, and on a change to the log, why clients do not find the socket.
    pub(super) fn report_socket(&self, error: Option<String>) {
        let health = if error.is_some() { Health::Degraded } else { Health::Ok };
        let name = "kubernetes".to_owned();
        self.service.report(Check { name, health, detail: error.clone() });
        let mut before = self.socket_error.lock();
        match (&*before, &error) {
            (before, Some(detail)) if before.as_ref() != Some(detail) => {
                tracing::error!(detail, "kube-apiserver does not find the socket");
            }
            (Some(_), None) => tracing::info!("kube-apiserver finds the socket again"),
            _ => {}
        }
        *before = error;
    }

    /// The health of the plugin, without any I/O.
    pub(super) fn status(&self, _: StatusRequest) -> Result<StatusResponse, Status> {
        let KeyState { key_id, root_outage, last_error } = self.service.key_state(&self.chain);
        let last_error = match root_outage {
            Some(outage) if self.on_root_outage == OnRootOutage::Enforce => {
                return Err(status(&enforced(&outage)));
            }
            outage => outage.or(last_error),
        };
        let key_id = key_id.ok_or_else(|| status(&self.not_ready(last_error.as_deref())))?;
        let healthz = last_error.unwrap_or_else(|| "ok".to_owned());
        Ok(StatusResponse { version: VERSION.to_owned(), healthz, key_id })
    }

    /// Encrypts, with the key id that `status` returns now.
    pub(super) async fn encrypt(
        self: Arc<Self>,
        peer: Peer,
        request: EncryptRequest,
    ) -> Result<EncryptResponse, Status> {
        let (started, uid) = (Instant::now(), uid(&request.uid));
        let plugin = Arc::clone(&self);
        let call = self.in_time(async move { plugin.seal(&request.plaintext).await });
        let done = self.recorded(Operation::Encrypt, &uid, peer, call).await;
        self.log("encrypt", &uid, started, done.as_ref().map(|made| made.kek_id));
        let made = done.map_err(|error| status(&error))?;
        let Made { ciphertext, annotations, key_id, .. } = made;
        Ok(EncryptResponse { ciphertext, key_id, annotations })
    }

    async fn seal(&self, plaintext: &[u8]) -> Result<Made, Error> {
        if plaintext.len() > MAX_PLAINTEXT {
            return Err(self.refuse(Operation::Encrypt, too_long()));
        }
        let KeyState { key_id, root_outage, last_error } = self.service.key_state(&self.chain);
        if let Some(outage) = &root_outage
            && self.on_root_outage == OnRootOutage::Enforce
        {
            return Err(self.refuse(Operation::Encrypt, enforced(outage)));
        }
        let key_id = key_id.ok_or_else(|| {
            let why = root_outage.or(last_error);
            self.refuse(Operation::Encrypt, self.not_ready(why.as_deref()))
        })?;
        let (chain, plaintext) = (Some(self.chain.as_str()), Plaintext::from(plaintext));
        let made = self.service.encrypt(chain, plaintext, &aad(&key_id)).await?;
        let (kek_id, envelope) = (made.kek_id, made.envelope.into());
        let (ciphertext, annotations) = inline::split(envelope).ok_or_else(invalid_envelope)?;
        if ciphertext.len() > MAX_CIPHERTEXT {
            return Err(too_long());
        }
        Ok(Made { ciphertext, annotations, key_id, kek_id })
    }

    /// Decrypts a ciphertext of any replica.
    pub(super) async fn decrypt(
        self: Arc<Self>,
        peer: Peer,
        request: DecryptRequest,
    ) -> Result<DecryptResponse, Status> {
        let (started, uid) = (Instant::now(), uid(&request.uid));
        let plugin = Arc::clone(&self);
        let call = self.in_time(async move { plugin.open(request).await });
        let done = self.recorded(Operation::Decrypt, &uid, peer, call).await;
        self.log("decrypt", &uid, started, done.as_ref().map(|opened| opened.kek_id));
        let opened = done.map_err(|error| status(&error))?;
        Ok(DecryptResponse { plaintext: opened.plaintext.as_slice().to_vec() })
    }

    async fn open(&self, request: DecryptRequest) -> Result<Decrypted, Error> {
        let DecryptRequest { ciphertext, key_id, annotations, .. } = request;
        let refuse =
            |detail| self.refuse(Operation::Decrypt, Error::new(Kind::InvalidCiphertext, detail));
        if key_id.len() > MAX_KEY_ID || !key_id.starts_with(&key_id::prefix(&self.chain)) {
            return Err(refuse("this plugin never returned such a key_id"));
        }
        let fits = ciphertext.len() <= MAX_CIPHERTEXT;
        let envelope = inline::join(ciphertext, &annotations).filter(|_| fits);
        let envelope =
            envelope.ok_or_else(|| refuse("the ciphertext was not produced by this plugin"))?;
        let opened = self.service.decrypt(Some(self.chain.as_str()), envelope, &aad(&key_id)).await;
        opened.map_err(|error| match error.kind() {
            Kind::InvalidCiphertext => Error::new(
                Kind::InvalidCiphertext,
                "the ciphertext is damaged, or was not made in this chain with this key_id",
            ),
            _ => error,
        })
    }

    /// Runs a call with a deadline. A call that takes longer, because of a slow root for example,
    /// continues in the background, so that the next attempt finds the KEK in memory.
    async fn in_time<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let call = record::within(record::current(), call);
        match tokio::time::timeout(DEADLINE, tokio::spawn(call)).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                Err(Error::new(Kind::Internal, "the service failed; its log has the reason"))
            }
            Err(_) => Err(match self.awaited() {
                Kind::StoreUnavailable => {
                    Error::new(Kind::StoreUnavailable, "the store did not answer in time")
                }
                kind => Error::new(kind, "a root or the store did not answer in time"),
            }),
        }
    }

    /// Runs a call, and writes its line before it returns.
    async fn recorded<T>(
        &self,
        operation: Operation,
        uid: &str,
        peer: Peer,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let Some(audit) = &self.audit else { return call.await };
        let unavailable =
            |error: audit::Unavailable| Error::new(Kind::AuditUnavailable, error.to_string());
        let record = audit.begin("kubernetes", uid, peer, Call::default());
        record.identified(None, "socket");
        let done = match audit.is_closed() {
            true => Err(unavailable(audit::Unavailable)),
            false => record::within(Some(Arc::clone(&record)), call).await,
        };
        let ended = record.end(Request {
            operation: Some(operation),
            chain: Some(self.chain.as_str()),
            failure: done.as_ref().err().map(|error| error.kind().code()),
            is_answered_anyway: false,
        });
        ended.await.map_err(unavailable)?;
        done
    }

    fn not_ready(&self, why: Option<&str>) -> Error {
        let why = why.unwrap_or("the first one is being made");
        Error::new(self.awaited(), format!("the chain has no KEK yet: {why}"))
    }

    /// What a call that can't continue waits for: the store, if only that is known to fail,
    /// otherwise a root.
    fn awaited(&self) -> Kind {
        let root_outage = self.service.key_state(&self.chain).root_outage;
        if root_outage.is_none() && self.service.awaits_store(&self.chain) {
            Kind::StoreUnavailable
        } else {
            Kind::RootUnavailable
        }
    }

    /// Counts a call that did not reach the service.
    fn refuse(&self, operation: Operation, error: Error) -> Error {
        self.service.metrics().failed(operation, self.chain.as_str(), error.kind().code());
        error
    }

    /// Logs a call with the uid that is also in kube-apiserver's log.
    fn log(&self, call: &'static str, uid: &str, started: Instant, done: Result<KekId, &Error>) {
        // A u64, because the JSON log writes u128 as text.
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let chain = &self.chain;
        match done {
            Ok(kek_id) => {
                tracing::info!(call, uid, %chain, %kek_id, took_us, "a call of kube-apiserver");
            }
            Err(error) => tracing::warn!(
                call, uid, %chain, code = error.kind().code(), detail = error.detail(), took_us,
                "a call of kube-apiserver failed"
            ),
        }
    }
}

/// The result of an Encrypt.
struct Made {
    ciphertext: Vec<u8>,
    annotations: HashMap<String, Vec<u8>>,
    key_id: String,
    kek_id: KekId,
}

/// Checks at an interval whether the roots still open the primary KEK. For days no call of
/// kube-apiserver needs a root, so nothing else would notice an outage or a revoked key.
pub(super) async fn watch_roots(
    service: Arc<KeyService>,
    chain: ChainName,
    on_root_outage: OnRootOutage,
    mut stop: watch::Receiver<()>,
) {
    let every = match on_root_outage {
        OnRootOutage::Coast => CHECK_TO_REPORT,
        OnRootOutage::Enforce => CHECK_TO_ENFORCE,
    };
    loop {
        let check = async {
            tokio::time::sleep(every).await;
            service.check_primary(&chain).await;
        };
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = check => {}
        }
    }
}

/// The AAD of a ciphertext.
fn aad(key_id: &str) -> Vec<u8> {
    [b"kms-proxy kubernetes v1".as_slice(), key_id.as_bytes()].concat()
}

/// A uid in the form for the log.
fn uid(text: &str) -> String {
    text.chars().take(MAX_UID).collect()
}

fn too_long() -> Error {
    let detail = "a plaintext has at most 946 bytes, or 930 in a chain of AES-256: kube-apiserver \
        accepts ciphertexts of up to 1,024";
    Error::new(Kind::InvalidRequest, detail)
}

fn invalid_envelope() -> Error {
    Error::new(Kind::Internal, "the service returned an invalid envelope")
}

fn enforced(outage: &str) -> Error {
    let detail = format!("kubernetes.on_root_outage is enforce, and no root answers: {outage}");
    Error::new(Kind::RootUnavailable, detail)
}

/// The response to every call before the service is ready. Only kube-apiserver reads it, and logs
/// it.
pub(super) fn starting(error: &Error) -> Status {
    let code = tonic::Code::from_i32(error.kind().grpc_code());
    Status::new(code, format!("{}: {}", error.kind().code(), error.for_operators()))
}

/// Maps the kind of an error to a gRPC status.
fn status(error: &Error) -> Status {
    let code = tonic::Code::from_i32(error.kind().grpc_code());
    Status::new(code, format!("{}: {}", error.kind().code(), error.detail()))
}
