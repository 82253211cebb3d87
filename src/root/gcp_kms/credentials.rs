//! The credentials of a root in Google Cloud: where they are, in the order of Google's libraries.
//!
//! A file is read for each token, so that a replaced file is used without a restart. `account`
//! reads files, `federation` exchanges tokens of other issuers. It knows nothing about keys.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{HeaderName, HeaderValue};

use crate::files;
use crate::root::Error;
use crate::root::cloud::attempts::Failure;
use crate::root::cloud::http::{Client, Request};
use crate::root::cloud::tokens::{Source, Token, granted, no_credentials, warn_of_readers};
use crate::secret::SecretBytes;

use account::Account;

mod account;
mod federation;

/// What a token is for.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The variable with the path of a file with credentials.
const FILE: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// The host of the metadata server, unless `GCE_METADATA_HOST` names another one.
const METADATA: &str = "metadata.google.internal";

/// Finds the credentials. `file` is that of the settings.
///
/// # Errors
/// What is wrong with the file, for an operator.
pub(super) fn find(
    file: Option<&Path>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Box<dyn Source>, String> {
    let given = match file {
        Some(path) => Some(("credentials_file", path.to_owned())),
        None => variable(FILE).map(|path| (FILE, PathBuf::from(path))),
    };
    if let Some((name, path)) = given {
        let file = File { path };
        let account = file.read().map_err(|detail| format!("{name}: {detail}"))?;
        // A federation names where the secret is.
        if !matches!(account, Account::Federation(_)) {
            warn_of_readers(name, &file.path);
        }
        return Ok(Box::new(file));
    }
    // `gcloud auth application-default login` writes it.
    let gcloud = variable("CLOUDSDK_CONFIG").map(PathBuf::from);
    let gcloud = gcloud.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".config/gcloud")));
    let path = gcloud.map(|directory| directory.join("application_default_credentials.json"));
    if let Some(path) = path.filter(|path| path.is_file()) {
        return Ok(Box::new(File { path }));
    }
    let host = variable("GCE_METADATA_HOST").unwrap_or_else(|| METADATA.to_owned());
    Ok(Box::new(Metadata { host }))
}

/// A file with credentials.
struct File {
    path: PathBuf,
}

impl File {
    fn read(&self) -> Result<Account, String> {
        read_secret(&self.path)
            .and_then(|text| Account::parse(text.expose()))
            .map_err(|detail| format!("{}: {detail}", self.path.display()))
    }
}

fn read_secret(path: &Path) -> Result<SecretBytes, String> {
    files::check_rereadable(path).map_err(|error| error.to_string())?;
    let (text, _) = files::read_secret(path).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Runs `read`, which reads a file, where it may take long.
async fn on_a_thread<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Failure> {
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|error| Err(error.to_string())).map_err(no_credentials)
}

#[async_trait]
impl Source for File {
    async fn fetch(&self, client: &Client, share: Duration) -> Result<Token, Failure> {
        let file = Self { path: self.path.clone() };
        on_a_thread(move || file.read()).await?.fetch(client, share).await
    }
}

/// The metadata server of a machine, of a pod of GKE, or of Cloud Run.
struct Metadata {
    host: String,
}

#[async_trait]
impl Source for Metadata {
    async fn fetch(&self, client: &Client, share: Duration) -> Result<Token, Failure> {
        let host = &self.host;
        let path = "computeMetadata/v1/instance/service-accounts/default/token";
        let flavor = HeaderName::from_static("metadata-flavor");
        let request = Request::get(format!("http://{host}/{path}"));
        let request = request.header(flavor, HeaderValue::from_static("Google"));
        let missing = "neither credentials_file nor GOOGLE_APPLICATION_CREDENTIALS is set, and \
                       there is no metadata server";
        let response = client.send(&request, share).await.map_err(no_token(missing))?;
        if response.status == 404 {
            return Err(no_credentials(
                "the metadata server knows no service account: attach one to this machine"
                    .to_owned(),
            ));
        }
        granted("the metadata server", &response)
    }
}

fn detail(failure: &Failure) -> &str {
    match &failure.error {
        Error::Away(detail) | Error::Denied(detail) | Error::Wrong(detail) => detail,
    }
}

/// Adds what the token is fetched for to a failure of the connection.
fn no_token(what: &str) -> impl Fn(Failure) -> Failure {
    move |failure| {
        let mut named = no_credentials(format!("{what}: {}", detail(&failure)));
        named.retry = failure.retry;
        named
    }
}

/// Why a file with credentials is not used.
#[cfg(test)]
pub(super) fn refusal(json: &[u8]) -> Option<String> {
    Account::parse(json).err()
}
