//! The root in an HSM, as an operator meets it: SoftHSM under the real binary. Tokens are pulled
//! out and plugged in again, PINs are wrong, and calls hang.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use reqwest::Method;
use rustix::fs::{FlockOperation, fcntl_lock};
use serde_json::json;

use crate::support::{Sealed, Service, Setup, decrypt_all, until};

pub(crate) const PIN: &str = "pin-4d0e7a";
const INSTALL: &str = "SoftHSM is missing; run: sudo apt-get install softhsm2";
const HELLO: &str = "aGVsbG8=";

/// A directory of tokens with one token in it, `main`, whose PIN is in a file; and a service whose
/// root is to be there.
pub(crate) struct Hsm {
    pub(crate) setup: Setup,
    slot: String,
}

impl Hsm {
    fn new() -> Self {
        let setup = Setup::new();
        let (tokens, file) = (setup.file("tokens"), setup.file("softhsm2.conf"));
        std::fs::create_dir(&tokens).unwrap();
        std::fs::write(&file, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
        let mut command = Command::new("softhsm2-util");
        command.args(["--init-token", "--free", "--label", "main"]);
        command.args(["--pin", PIN, "--so-pin", "so-pin-1c"]).env("SOFTHSM2_CONF", &file);
        let made = command.output().unwrap_or_else(|_| panic!("{INSTALL}"));
        let said = String::from_utf8_lossy(&made.stdout);
        let slot = said.trim().rsplit(' ').next().unwrap().to_owned();
        let pin_file = setup.file("pin");
        let setup = setup
            .env("SOFTHSM2_CONF", file.display())
            .set("ROOT__0__NAME", "hsm")
            .set("ROOT__0__KIND", "pkcs11")
            .set("ROOT__0__MODULE", softhsm().display())
            .set("ROOT__0__KEY_LABEL", "kek");
        let hsm = Self { setup, slot };
        hsm.write_pin(PIN);
        std::fs::set_permissions(&pin_file, PermissionsExt::from_mode(0o600)).unwrap();
        hsm
    }

    /// The same with the key in it, and the settings that lead to it.
    pub(crate) fn with_key() -> Self {
        let hsm = Self::new();
        let setup = hsm.setup.clone().set("ROOT__0__TOKEN_LABEL", "main");
        let hsm = Self { setup: setup.set("ROOT__0__PIN_FILE", "pin"), ..hsm };
        succeeds(&hsm.setup.run(&["root", "init"]));
        hsm
    }

    fn write_pin(&self, pin: &str) {
        std::fs::write(self.setup.file("pin"), format!("{pin}\n")).unwrap();
    }

    /// Pulls the token out.
    pub(crate) fn remove(&self) {
        std::fs::rename(self.setup.file("tokens"), self.setup.file("away")).unwrap();
        std::fs::create_dir(self.setup.file("tokens")).unwrap();
    }

    fn insert(&self) {
        std::fs::remove_dir(self.setup.file("tokens")).unwrap();
        std::fs::rename(self.setup.file("away"), self.setup.file("tokens")).unwrap();
    }

    /// Makes every call hang that reads the token's files, until the locks are dropped: SoftHSM
    /// waits for them.
    fn hold(&self) -> Vec<File> {
        let mut files = Vec::new();
        for token in std::fs::read_dir(self.setup.file("tokens")).unwrap() {
            for file in std::fs::read_dir(token.unwrap().path()).unwrap() {
                files.push(lock(&file.unwrap().path()));
            }
        }
        assert!(files.len() > 2, "the token has files");
        files
    }
}

fn lock(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    file
}

/// The module, wherever Debian's package of this machine puts it.
pub(crate) fn softhsm() -> PathBuf {
    let fixed = PathBuf::from("/usr/lib/softhsm/libsofthsm2.so");
    let of_machine = std::fs::read_dir("/usr/lib").unwrap();
    let of_machine = of_machine.map(|entry| entry.unwrap().path().join("softhsm/libsofthsm2.so"));
    std::iter::once(fixed).chain(of_machine).find(|path| path.is_file()).expect(INSTALL)
}

fn succeeds(output: &Output) -> String {
    let (code, said) = said(output);
    assert_eq!(code, 0, "{said}");
    said
}

/// The exit code, and what was written to both streams.
fn said(output: &Output) -> (i32, String) {
    let both = [&output.stdout[..], &output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&both).into_owned())
}

async fn until_it_encrypts(service: &Service, chain: &str) -> Sealed {
    let what = format!("an encrypt in {chain}");
    until(&what, async || service.try_encrypt(chain, HELLO).await?.ok()).await
}

/// A chain whose first KEK needs the root, and the answer of an encrypt in it.
async fn encrypt_in_new_chain(service: &Service, chain: &str) -> (u16, String) {
    let body = json!({});
    service.send(Method::PUT, &format!("/v1/chains/{chain}"), body).await;
    match service.try_encrypt(chain, HELLO).await.unwrap() {
        Ok(_) => (200, String::new()),
        Err((status, problem)) => (status.as_u16(), problem["code"].to_string()),
    }
}

async fn until_readiness_has(service: &Service, part: &str) {
    until(part, async || service.get("/readyz").await.1.to_string().contains(part).then_some(()))
        .await;
}

#[tokio::test]
async fn an_hsm_is_set_up_by_root_init_and_its_wraps_open_after_a_restart() {
    let hsm = Hsm::new();
    let setup = hsm.setup.clone().set("ROOT__0__SLOT", &hsm.slot).set("LOG__LEVEL", "trace");
    let by_environment = setup.clone().set("ROOT__0__PIN", PIN);
    let made = succeeds(&by_environment.run(&["root", "init"]));
    assert!(made.contains("root hsm: an AES-256 key with the label \"kek\" was created"), "{made}");
    let (code, again) = said(&by_environment.run(&["root", "init", "--root", "hsm"]));
    assert!(code == 1 && again.contains("nothing was changed"), "{again}");

    let service = by_environment.start().await;
    let mut sealed = vec![service.encrypt("default", HELLO).await];
    service.ok("/v1/rotate", json!({})).await;
    sealed.push(service.encrypt("default", HELLO).await);
    let mut all = service.metrics().await;
    assert!(all.contains(r#"kms_proxy_root_up{root="hsm"} 1"#), "{all}");
    all += &service.stop().await;

    let by_file = setup.set("ROOT__0__PIN_FILE", hsm.setup.file("pin").display());
    all += &succeeds(&by_file.run(&["check-config"]));
    let service = by_file.start().await;
    decrypt_all(&service, &sealed).await;
    all += &service.stop().await;
    assert!(!all.contains("other users can read the file with the PIN"), "{all}");
    std::fs::set_permissions(hsm.setup.file("pin"), PermissionsExt::from_mode(0o644)).unwrap();
    let service = by_file.start().await;
    service.logged("other users can read the file with the PIN").await;
    all += &service.stop().await;
    assert!(!all.contains(PIN), "{all}");
    let debug = format!("{:?}", PIN.as_bytes());
    assert!(!all.contains(debug.trim_matches(['[', ']'])), "{all}");
}

#[tokio::test]
async fn a_token_that_is_away_stops_neither_a_start_nor_what_is_in_memory_and_is_found_again() {
    let hsm = Hsm::with_key();
    hsm.remove();
    let mut service = hsm.setup.start_unready().await;
    let (status, problem) = service.try_encrypt("default", HELLO).await.unwrap().unwrap_err();
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("root_unavailable")), "{problem}");
    until_readiness_has(&service, r#"token \"main\" is not there"#).await;
    hsm.insert();
    let mut sealed = vec![until_it_encrypts(&service, "default").await];
    service.ready().await;

    hsm.remove();
    let refused = encrypt_in_new_chain(&service, "second").await;
    assert_eq!(refused, (503, r#""root_unavailable""#.to_owned()));
    sealed.push(service.encrypt("default", HELLO).await);
    decrypt_all(&service, &sealed).await;
    hsm.insert();
    sealed.push(until_it_encrypts(&service, "second").await);
    service.stop().await;
    decrypt_all(&hsm.setup.start().await, &sealed).await;
}

#[tokio::test]
async fn a_wrong_pin_is_reported_and_the_right_one_is_used_without_a_restart() {
    let hsm = Hsm::with_key();
    hsm.write_pin("pin-of-another");
    let (code, said) = said(&hsm.setup.run(&["root", "init"]));
    assert!(code == 1 && said.contains("the PIN is wrong"), "{said}");
    let service = hsm.setup.start_unready().await;
    until_readiness_has(&service, "the PIN is wrong; it is not retried until").await;
    let (status, _) = service.try_encrypt("default", HELLO).await.unwrap().unwrap_err();
    assert_eq!(status, 503);
    hsm.write_pin(PIN);
    until_it_encrypts(&service, "default").await;
    let log = service.stop().await;
    assert!(!log.contains("pin-of-another") && !log.contains(PIN), "{log}");
}

#[tokio::test]
async fn a_module_that_hangs_blocks_no_call_and_is_used_again_when_it_returns() {
    let hsm = Hsm::with_key();
    let setup = hsm.setup.clone().set("ROOT__0__TIMEOUT", "300ms");
    let service = setup.start().await;
    let mut sealed = vec![until_it_encrypts(&service, "default").await];
    let threads = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", service.pid().as_raw_pid()));
        tasks
            .unwrap()
            .filter(|task| {
                let name = task.as_ref().unwrap().path().join("comm");
                std::fs::read_to_string(name).is_ok_and(|name| name.starts_with("pkcs11"))
            })
            .count()
    };
    let before = threads();
    assert_eq!(before, 4);

    let held = hsm.hold();
    let refused = encrypt_in_new_chain(&service, "second").await;
    assert_eq!(refused, (503, r#""root_unavailable""#.to_owned()));
    for index in 0..10 {
        let chain = format!("more-{index}");
        assert_eq!(encrypt_in_new_chain(&service, &chain).await.0, 503);
        sealed.push(service.encrypt("default", HELLO).await);
    }
    until_readiness_has(&service, "the module hangs: a call has not returned for").await;
    assert_eq!(threads(), before);
    drop(held);
    sealed.push(until_it_encrypts(&service, "second").await);
    sealed.push(until_it_encrypts(&service, "more-9").await);
    decrypt_all(&service, &sealed).await;

    // Nor does it hold up the end.
    let held = hsm.hold();
    assert_eq!(encrypt_in_new_chain(&service, "third").await.0, 503);
    service.stop().await;
    drop(held);
    // With the time-out that is the default: a loaded module is not one that hangs.
    decrypt_all(&hsm.setup.start().await, &sealed).await;
}

#[tokio::test]
async fn what_can_never_work_ends_with_code_2_and_says_why() {
    let hsm = Hsm::with_key();
    for (key, value, part) in [
        ("MODULE", "/no/such.so", "module /no/such.so: No such file"),
        ("SLOT", "1", "token_label and slot are both set"),
        ("PIN", PIN, "given twice"),
        ("PIN_FILE", "/no/such.pin", "pin_file /no/such.pin: No such file"),
        ("TIMEOUT", "1m", "timeout must be between 100ms and 15s"),
        ("GCM_IV", "none", "expected caller or token"),
        ("SLOT", "first", "slot is a whole number"),
        ("PIN_LABEL", "x", "pin_label"),
    ] {
        let setup = hsm.setup.clone().set(&format!("ROOT__0__{key}"), value);
        let (code, log) = setup.fails().await;
        assert!(code == Some(2) && log.contains(part) && !log.contains(PIN), "{key}: {log}");
        let (code, log) = said(&setup.run(&["check-config"]));
        assert!(code == 2 && log.contains(part) && !log.contains(PIN), "{key}: {log}");
    }
    // Only loading it tells.
    let setup = hsm.setup.clone().set("ROOT__0__MODULE", hsm.setup.file("pin").display());
    let (code, log) = setup.fails().await;
    assert!(code == Some(2) && log.contains("root hsm: module ") && !log.contains(PIN), "{log}");
}

#[tokio::test]
async fn root_init_tells_what_there_is_to_do_for_roots_of_other_kinds() {
    let setup = Setup::new();
    let local = succeeds(&setup.run(&["root", "init"]));
    assert!(local.contains("root local: a new key is in"), "{local}");
    let again = succeeds(&setup.run(&["root", "init"]));
    assert!(again.contains("root local: nothing to do"), "{again}");
    let two = Setup::new()
        .set("ROOT__0__NAME", "one")
        .set("ROOT__0__KIND", "local")
        .set("ROOT__1__NAME", "two")
        .set("ROOT__1__KIND", "passphrase")
        .set("ROOT__1__PASSPHRASE", "correct horse");
    let passphrase = succeeds(&two.run(&["root", "init", "--root", "two"]));
    assert!(passphrase.contains("root two: nothing to do"), "{passphrase}");
    for (args, part) in [
        (&["root", "init"][..], "Name one with --root: one, two"),
        (&["root", "init", "--root", "three"], "there are: one, two"),
    ] {
        let (code, said) = said(&two.run(args));
        assert!(code == 2 && said.contains(part), "{said}");
    }
}
