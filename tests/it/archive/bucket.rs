//! moto's S3, and the settings of archives that the tests use.

use reqwest::{Client, Method, Response};

use crate::support::Setup;
use crate::support::kms::{Moto, REGION};

/// A server with one bucket, `backups`, over HTTP.
pub(super) struct S3 {
    moto: Moto,
}

impl S3 {
    pub(super) async fn start() -> Self {
        let s3 = Self { moto: Moto::start() };
        let body = format!(
            "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint>\
             </CreateBucketConfiguration>"
        );
        let made = client().put(s3.object("")).body(body).send().await.unwrap();
        assert!(made.status().is_success(), "{made:?}");
        s3
    }

    /// The URL of an object of the bucket.
    fn object(&self, key: &str) -> String {
        format!("http://{}/backups/{key}", self.moto.address)
    }

    pub(super) fn port(&self) -> u16 {
        self.moto.address.port()
    }

    /// `setup` with this bucket as the archive `bucket`, number `index` of the configuration.
    pub(super) fn archive(&self, setup: Setup, index: usize) -> Setup {
        self.archive_at(setup, index, &format!("http://{}", self.moto.address))
    }

    /// The same through a proxy at `endpoint`.
    pub(super) fn archive_at(&self, setup: Setup, index: usize, endpoint: &str) -> Setup {
        let set = |setup: Setup, key: &str, value: &str| {
            setup.set(&format!("ARCHIVE__{index}__{key}"), value)
        };
        let setup = set(setup, "NAME", "bucket");
        let setup = set(setup, "KIND", "s3");
        let setup = set(setup, "URL", "s3://backups/kms-proxy");
        let setup = set(setup, "REGION", REGION);
        let setup = set(setup, "ENDPOINT", endpoint);
        setup.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "planted")
    }

    /// An object of the archive.
    pub(super) async fn get(&self, key: &str) -> Vec<u8> {
        let read = self.call(Method::GET, key, Vec::new()).await;
        read.bytes().await.unwrap().to_vec()
    }

    /// Puts an object there, as anyone can who may write to the bucket.
    pub(super) async fn put(&self, key: &str, object: Vec<u8>) {
        self.call(Method::PUT, key, object).await;
    }

    async fn call(&self, method: Method, key: &str, body: Vec<u8>) -> Response {
        let url = self.object(&format!("kms-proxy/{key}"));
        // moto asks who calls, and verifies no signature.
        let scope = format!("AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/s3/aws4_request");
        let authorization = format!("{scope}, SignedHeaders=host, Signature=0");
        let request = client().request(method, url).header("authorization", authorization);
        request.body(body).send().await.unwrap().error_for_status().unwrap()
    }
}

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}
