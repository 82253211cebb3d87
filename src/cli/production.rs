//! `check-config --production`: what a configuration lacks of the checklist in docs/production.md.
//!
//! It looks at settings and at files of this machine, and calls nothing. A test compares the names
//! with the document.

use std::collections::BTreeSet;
use std::fmt;

use kms_proxy::config::{Config, NamedFile};
use kms_proxy::loopback::is_loopback;
use kms_proxy::status::DOCUMENTS;
use kms_proxy::{archive, audit, auth, files, root, store, telemetry, tls};

use super::certificates;

mod checklist;
mod secrets;

pub(super) use checklist::Check;

/// A thing that is missing.
pub(super) struct Finding {
    pub(super) check: Check,
    /// What was found.
    detail: String,
}

impl fmt::Display for Finding {
    /// One line, and the link to the document in the next.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, advice) = (self.check.name(), self.check.advice());
        writeln!(f, "{name}: {}: {advice}", self.detail)?;
        writeln!(f, "  {DOCUMENTS}production.md#{}", self.check.section())
    }
}

/// What `config` lacks, in the order of the document. `now` is in seconds since the Unix epoch.
pub(super) fn findings(config: &Config, now: u64) -> Vec<Finding> {
    let mut found = Found(Vec::new());
    config.roots.iter().for_each(|root| of_root(root, &mut found));
    of_store(config, &mut found);
    of_listener(config, now, &mut found);
    of_clients(config, &mut found);
    of_audit(&config.audit, &mut found);
    of_traces(&config.traces, &mut found);
    for NamedFile { setting, path, .. } in secrets::files(config) {
        // A file that can't be read is an error of `check-config` itself, or appears later.
        if let Ok(Some(mode)) = files::mode_for_others(&path) {
            let path = path.display();
            let detail = format!("{setting}: other users can read {path} (mode {mode:04o})");
            found.add(Check::SecretReadable, detail);
        }
    }
    found.0.sort_by_key(|finding| finding.check);
    found.0
}

struct Found(Vec<Finding>);

impl Found {
    fn add(&mut self, check: Check, detail: impl Into<String>) {
        self.0.push(Finding { check, detail: detail.into() });
    }
}

fn of_root(root: &root::Config, found: &mut Found) {
    let name = root.name();
    let plain =
        |url: &str| format!("root {name}: KEKs are sent in the clear to {}", without_path(url));
    match root {
        root::Config::Local(_) => {
            let why = "anyone who copies its key file can open every KEK";
            found.add(Check::RootLocal, format!("root {name}: {why}"));
        }
        root::Config::Passphrase(_) => {
            let why = "anyone who copies its passphrase can open every KEK";
            found.add(Check::RootPassphrase, format!("root {name}: {why}"));
        }
        root::Config::AwsKms(aws) => {
            if let Some(url) = aws.endpoint.as_deref().filter(|url| is_plain(url)) {
                found.add(Check::RootPlain, plain(url));
            }
        }
        root::Config::AzureKeyVault(azure) => {
            if is_plain(&azure.key_id) {
                found.add(Check::RootPlain, plain(&azure.key_id));
            }
            if !azure.algorithm.is_authenticated() {
                let why = "anyone who can read its public key can make a wrap that it opens";
                found.add(Check::RootForgeable, format!("root {name}: {why}"));
            }
        }
        root::Config::GcpKms(gcp) => {
            if let Some(url) = gcp.endpoint.as_deref().filter(|url| is_plain(url)) {
                found.add(Check::RootPlain, plain(url));
            }
        }
        root::Config::VaultTransit(vault) => {
            if is_plain(&vault.address) {
                found.add(Check::RootPlain, plain(&vault.address));
            }
            if vault.token.is_some() {
                let why = "its token comes from the environment, and nothing renews it there";
                found.add(Check::RootToken, format!("root {name}: {why}"));
            }
        }
        _ => {}
    }
}

fn of_store(config: &Config, found: &mut Found) {
    let has_records = !matches!(config.store, store::Config::Inline(_));
    match &config.store {
        store::Config::File(file) => {
            let path = file.path.display();
            let why = "it is for one process, and nothing takes over when its machine fails";
            found.add(Check::StoreSingle, format!("the store is the directory {path}: {why}"));
        }
        store::Config::Etcd(etcd) => {
            let is_remote = etcd.endpoints.iter().any(|url| !is_local(url));
            let members: BTreeSet<_> = etcd.endpoints.iter().map(|url| member(url)).collect();
            // The member beside a replica is enough for it: the next machine has both too.
            if is_remote && members.len() == 1 {
                let detail = "store.endpoints has one member, and all replicas fail with it";
                found.add(Check::StoreSingle, detail);
            }
            if members.len() < etcd.endpoints.len() {
                found.add(Check::StoreMembers, "store.endpoints names a member twice");
            }
            if members.len() == 2 {
                let detail = "store.endpoints has two members: a cluster of two stops when one of \
                              them fails";
                found.add(Check::StoreMembers, detail);
            }
            if etcd.endpoints.iter().any(|url| is_plain(url)) {
                found.add(Check::StorePlain, "store.endpoints: etcd is called by plain HTTP");
            }
            let has_identity =
                etcd.username.is_some() || etcd.tls.as_ref().is_some_and(|tls| tls.cert.is_some());
            if is_remote && !has_identity {
                let detail = "etcd is called without an identity, so anyone who reaches it can \
                              delete KEKs";
                found.add(Check::StoreAnonymous, detail);
            }
        }
        store::Config::Inline(_) => {}
    }
    of_archives(config, has_records, found);
}

fn of_archives(config: &Config, has_records: bool, found: &mut Found) {
    if config.archives.is_empty() && has_records {
        found.add(Check::ArchiveNone, "all data is lost with the store");
    }
    let policy = &config.service.archive_policy;
    if !config.archives.is_empty() && policy.on_failure == archive::OnFailure::Continue {
        let detail = "archive_policy.on_failure: a KEK encrypts before an archive holds it";
        found.add(Check::ArchiveContinue, detail);
    }
    for archive in &config.archives {
        if let archive::Config::Dir(dir) = archive
            && let Err(why) = archive::dir::Archive::check(dir)
        {
            found.add(Check::ArchiveUnwritable, format!("archive {}: {why}", dir.name));
        }
    }
}

fn of_listener(config: &Config, now: u64, found: &mut Found) {
    let server = &config.server;
    if server.tls.is_none() {
        let detail = format!("{} speaks plain HTTP", server.listen);
        found.add(Check::TlsNone, detail);
    }
    if let Some(tls) = &server.tls
        && tls::has_alternative_names(&tls.cert) == Some(false)
    {
        let why = "it has no subjectAltName, so clients reject it";
        found.add(Check::TlsName, format!("server.tls.cert: {}: {why}", tls.cert.display()));
    }
    for warning in certificates::warnings(config, now) {
        found.add(Check::TlsExpiry, warning);
    }
    if !server.listen.ip().is_loopback() && server.drain_delay.is_zero() {
        let detail = "server.drain_delay is 0s: when a replica stops, requests that a load \
                      balancer still sends to it fail";
        found.add(Check::DrainNone, detail);
    }
    let reads_metrics = |client| may_everywhere(client, "read");
    if server.admin_listen.is_none() && !config.auth.clients.iter().any(reads_metrics) {
        found.add(Check::MetricsNone, "no alert fires, because nothing may read /metrics");
    }
}

fn of_clients(config: &Config, found: &mut Found) {
    if config.auth.mode == auth::Mode::None {
        let detail = "auth.mode = \"none\": anyone who reaches the service can decrypt everything";
        found.add(Check::AuthNone, detail);
    }
    for client in &config.auth.clients {
        let name = &client.name;
        let permanent = match (client.token_sha256.is_empty(), client.aws_access_key_id.is_empty())
        {
            (false, _) => Some("token"),
            (_, false) => Some("access key"),
            (true, true) => None,
        };
        if let Some(what) = permanent {
            let detail = format!("client {name}: its {what} never expires");
            found.add(Check::CredentialPermanent, detail);
        }
        if may_everywhere(client, "decrypt") {
            found.add(Check::ClientBroad, format!("client {name}: it may decrypt in all chains"));
        }
        if client.max_in_flight.is_none() {
            let detail = format!("client {name}: it can occupy all of server.max_requests");
            found.add(Check::ClientUnlimited, detail);
        }
    }
}

fn of_audit(audit: &audit::Config, found: &mut Found) {
    if audit.file.is_none() {
        found.add(Check::AuditNone, "nothing records who decrypted what");
    } else if audit.on_failure == audit::OnFailure::Continue {
        let detail = "audit.on_failure: calls go through without their lines";
        found.add(Check::AuditContinue, detail);
    }
    if let Some(audit::Target::File(path)) = &audit.file
        && let Err(error) = files::check_writable(path)
    {
        let detail = format!("audit.file: can't write to {}: {error}", path.display());
        found.add(Check::AuditUnwritable, detail);
    }
}

/// A larger part of all requests fills the queue of spans at a few thousand requests a second.
const MANY_TRACES: f64 = 0.1;

fn of_traces(traces: &telemetry::traces::Config, found: &mut Found) {
    let Some(endpoint) = &traces.endpoint else { return };
    if is_plain(endpoint) {
        let what = "names of clients and chains, and OTEL_EXPORTER_OTLP_HEADERS,";
        let to = without_path(endpoint);
        let detail = format!("traces.endpoint: {what} are sent in the clear to {to}");
        found.add(Check::TracesPlain, detail);
    }
    if traces.sample_ratio > MANY_TRACES {
        let ratio = traces.sample_ratio;
        let why = "under load the queue of spans is full, and spans are dropped";
        found.add(Check::TracesMany, format!("traces.sample_ratio is {ratio}: {why}"));
    }
}

/// Whether `client` may do this in all chains.
fn may_everywhere(client: &auth::ClientConfig, operation: &str) -> bool {
    client.allow.iter().any(|allow| {
        allow.operations.names().any(|name| name == operation)
            && allow.chains.iter().any(|glob| glob.as_str().bytes().all(|byte| byte == b'*'))
    })
}

/// Whether a URL is plain HTTP to another machine.
fn is_plain(url: &str) -> bool {
    url.starts_with("http://") && !is_local(url)
}

fn is_local(url: &str) -> bool {
    host(url).is_some_and(|host| is_loopback(&host))
}

/// What distinguishes the members of etcd.
fn member(url: &str) -> Option<(String, Option<u16>)> {
    let url = reqwest::Url::parse(url).ok()?;
    Some((url.host_str()?.to_owned(), url.port_or_known_default()))
}

fn host(url: &str) -> Option<String> {
    reqwest::Url::parse(url).ok()?.host_str().map(str::to_owned)
}

/// The URL as far as it certainly has no secret.
fn without_path(url: &str) -> String {
    format!("http://{}", host(url).unwrap_or_default())
}

#[cfg(test)]
mod tests;
