//! The real servers that documents need, and the variables that lead to them.

use reqwest::Method;
use serde_json::json;

use crate::support::Bao;
use crate::support::clouds::Fake;
use crate::support::etcd::Etcd;
use crate::support::kms::{Moto, REGION};

/// What was started; it ends with the document.
#[derive(Default)]
pub(super) struct Servers {
    moto: Option<Moto>,
    bao: Option<Bao>,
    gcp: Option<Fake>,
    azure: Option<Fake>,
    etcd: Option<Etcd>,
}

impl Servers {
    /// Starts a server; a script that leads to it.
    pub(super) async fn start(&mut self, server: &str) -> String {
        match server {
            // In place of AWS: variables name its address, and it has the alias of the documents.
            "moto" => {
                let moto = self.moto.insert(Moto::start());
                let key = moto.create_key().await;
                let alias = json!({"AliasName": "alias/kms-proxy", "TargetKeyId": key});
                moto.call("CreateAlias", alias).await;
                format!(
                    "export AWS_ENDPOINT_URL_KMS=http://{} AWS_REGION={REGION} \
                     AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing",
                    moto.address
                )
            }
            "bao" => {
                let bao = self.bao.insert(Bao::start().await);
                bao.ok(Method::POST, "transit/keys/kms-proxy", json!({})).await;
                format!("export VAULT_ADDR={} VAULT_TOKEN={}", bao.address(), bao.token())
            }
            "gcp" => {
                let fake = self.gcp.insert(Fake::gcp());
                let key = fake.google_key("kms-proxy").await;
                format!(
                    "export GCP_ENDPOINT={} GCE_METADATA_HOST={} GCP_KEY={key}",
                    fake.url,
                    fake.host()
                )
            }
            "azure" => {
                let fake = self.azure.insert(Fake::azure());
                let key = fake.azure_key("kms-proxy", "RSA").await;
                format!(
                    "export IDENTITY_ENDPOINT={}/msi/token IDENTITY_HEADER=h AZURE_KEY={key}",
                    fake.url
                )
            }
            "etcd" => {
                let etcd = self.etcd.insert(Etcd::start().await);
                etcd.healthy().await;
                format!("export KMS_PROXY__STORE__ENDPOINTS={}", etcd.url())
            }
            other => panic!("no server is called {other}"),
        }
    }
}
