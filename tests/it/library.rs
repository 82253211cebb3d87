//! The library as its documentation shows it: the examples of `src/lib.rs` that need a KMS or an
//! HSM, against moto and SoftHSM.
//!
//! SDK and HSM module read the environment, which a process must not change while it runs. So each
//! example runs in a child: this binary again, with one ignored test.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::pkcs11::{Hsm, PIN, softhsm};
use crate::support::kms::{Moto, REGION};

#[allow(unreachable_pub, reason = "the documentation shows them as public functions")]
#[path = "../../docs/library/hsm.rs"]
mod hsm;
#[allow(unreachable_pub, reason = "the documentation shows them as public functions")]
#[path = "../../docs/library/kms.rs"]
mod kms;

#[tokio::test]
async fn the_example_of_an_external_kms_runs() {
    let (moto, dir) = (Moto::shared(), tempfile::tempdir().unwrap());
    let mut child = child("kms_child");
    child.env("AWS_ENDPOINT_URL", format!("http://{}", moto.address));
    child.env("AWS_REGION", REGION).env("AWS_EC2_METADATA_DISABLED", "true");
    child.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    child.env(DIR, dir.path()).env(KEY, moto.create_key().await);
    succeeds(child);
}

#[test]
#[ignore = "a part of the_example_of_an_external_kms_runs"]
fn kms_child() {
    let (path, key) = (variable(DIR).join("orders.json"), variable(KEY));
    let key = key.to_str().unwrap();
    run(async {
        let first = kms::open(key, &path).await.unwrap();
        let envelope = first.encrypt(b"hello", b"row 7").unwrap();
        let again = kms::open(key, &path).await.unwrap();
        assert_eq!(again.decrypt(&envelope, b"row 7").unwrap().as_slice(), b"hello");
    });
}

#[test]
fn the_example_of_an_hsm_runs() {
    let (hsm, dir) = (Hsm::with_key(), tempfile::tempdir().unwrap());
    let mut child = child("hsm_child");
    child.env("SOFTHSM2_CONF", hsm.setup.file("softhsm2.conf")).env(DIR, dir.path());
    succeeds(child);
}

#[test]
#[ignore = "a part of the_example_of_an_hsm_runs"]
fn hsm_child() {
    let (module, data) = (softhsm(), variable(DIR).join("data"));
    let start = || hsm::start(module.to_str().unwrap(), PIN, data.to_str().unwrap());
    run(async {
        let service = start().await.unwrap();
        let chain = service.chain("default").unwrap();
        let encrypted = chain.encrypt(b"hello", b"row 7").await.unwrap();
        service.stop().await;
        drop((chain, service));
        let service = start().await.unwrap();
        let chain = service.chain("default").unwrap();
        let decrypted = chain.decrypt(encrypted.envelope, b"row 7").await.unwrap();
        assert_eq!(decrypted.plaintext.as_slice(), b"hello");
        service.stop().await;
    });
}

/// The variables that tell a child its directory and its key.
const DIR: &str = "KMS_PROXY_TEST_DIR";
const KEY: &str = "KMS_PROXY_TEST_KEY";

fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--ignored", &format!("library::{test}")]);
    command
}

fn succeeds(mut child: Command) {
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn variable(name: &str) -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "a parent tells its child where to work")]
    let value = std::env::var_os(name).expect("it runs as a child of another test");
    Path::new(&value).to_owned()
}

fn run(example: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(example);
}
