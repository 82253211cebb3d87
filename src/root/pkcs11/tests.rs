//! The root on SoftHSM. A module has one state per process, and SoftHSM finds its tokens by an
//! environment variable. So each test has its own process and its own directory of tokens.

use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use crate::aead::Cipher;
use crate::id::{ChainName, Suite};
use crate::root::{RootKey, contract};

use super::token::Nature;
use super::*;

const PIN: &str = "pin-8d1f04";
const SO_PIN: &str = "so-pin-2b96";

/// The variable with the directory of tokens, which is set in a test's own process.
const OWN: &str = "KMS_PROXY_TEST_TOKENS";

/// A directory of tokens, in this process.
struct Tokens {
    dir: PathBuf,
}

/// Runs `body` in its own process. `name` is the name of the test.
#[expect(clippy::disallowed_methods, reason = "the variable is this test's own")]
fn on_softhsm(name: &str, body: impl AsyncFnOnce(Tokens)) {
    if let Some(dir) = std::env::var_os(OWN) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return runtime.block_on(body(Tokens { dir: dir.into() }));
    }
    let dir = tempfile::tempdir().unwrap();
    let (store, file) = (dir.path().join("tokens"), dir.path().join("softhsm2.conf"));
    std::fs::create_dir(&store).unwrap();
    let settings = format!("directories.tokendir = {}\nlog.level = ERROR\n", store.display());
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture"]).arg(format!("root::pkcs11::tests::{name}"));
    command.env("SOFTHSM2_CONF", file).env(OWN, store);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
}

impl Tokens {
    /// Creates a token. The configuration is for a key in it, with the longest time-out: a busy
    /// machine may stop a thread for seconds.
    fn token(&self, label: &str, key: &str) -> Config {
        let mut command = Command::new("softhsm2-util");
        command.args(["--init-token", "--free", "--label", label]);
        command.args(["--pin", PIN, "--so-pin", SO_PIN]);
        let output = command.output();
        let made = output.unwrap_or_else(|_| panic!("{INSTALL}"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let text = format!(
            "name = 'hsm'\nmodule = '{}'\ntoken_label = '{label}'\nkey_label = '{key}'\n\
             timeout = '15s'\n",
            softhsm().display()
        );
        let pin_file = self.dir.with_file_name("pin");
        std::fs::write(&pin_file, format!("{PIN}\n")).unwrap();
        Config { pin_file: Some(pin_file), ..toml::from_str(&text).unwrap() }
    }

    /// The same, and creates the key.
    async fn token_with_key(&self, label: &str, key: &str) -> Config {
        let config = self.token(label, key);
        Root::init(&config).await.unwrap();
        config
    }

    /// Removes all tokens, as when somebody unplugs them.
    fn remove(&self) {
        std::fs::rename(&self.dir, self.dir.with_file_name("away")).unwrap();
        std::fs::create_dir(&self.dir).unwrap();
    }

    fn restore(&self) {
        std::fs::remove_dir(&self.dir).unwrap();
        std::fs::rename(self.dir.with_file_name("away"), &self.dir).unwrap();
    }
}

const INSTALL: &str = "SoftHSM is missing; run: sudo apt-get install softhsm2";

/// The module, in the directory of Debian's package for this machine.
fn softhsm() -> PathBuf {
    let fixed = PathBuf::from("/usr/lib/softhsm/libsofthsm2.so");
    let of_machine = std::fs::read_dir("/usr/lib").unwrap().map(|entry| {
        let path: PathBuf = entry.unwrap().path();
        path.join("softhsm/libsofthsm2.so")
    });
    std::iter::once(fixed).chain(of_machine).find(|path| path.is_file()).expect(INSTALL)
}

/// Runs `act` in another session of this process.
fn aside<T>(config: &Config, act: impl FnOnce(&Session) -> T) -> T {
    let module = Module::load(&config.module).unwrap();
    module.initialise(0, PATIENCE).unwrap();
    let pass = module.enter(PATIENCE).unwrap();
    let session = token::session(&pass, config, true).unwrap();
    let result = act(&session);
    session.close().unwrap();
    result
}

/// A chain and its KEK, to call a root with.
struct Caller {
    chain: ChainName,
    kek: KeyBytes,
}

impl Caller {
    fn new() -> Self {
        let kek = KeyBytes::random(Suite::Aes128Gcm).unwrap();
        Self { chain: contract::chain("orders"), kek }
    }

    async fn wrap(&self, root: &Root) -> Result<Vec<u8>, Error> {
        root.wrap(contract::context(&self.chain, &self.kek), &self.kek).await
    }

    async fn opens(&self, root: &Root, wrapped: &[u8]) -> Result<(), Error> {
        let kek = root.unwrap(contract::context(&self.chain, &self.kek), wrapped).await?;
        assert!(kek == self.kek);
        Ok(())
    }

    async fn denied(&self, root: &Root) -> String {
        match self.wrap(root).await {
            Err(Error::Denied(detail)) => detail,
            other => panic!("{other:?}"),
        }
    }

    /// Calls the root until it works. It pauses for seconds between initialisations.
    async fn until_it_works(&self, root: &Root, wrapped: &[u8]) {
        let start = std::time::Instant::now();
        while let Err(error) = self.opens(root, wrapped).await {
            assert!(start.elapsed() < Duration::from_secs(120), "it never works again: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[test]
fn the_contract_holds() {
    on_softhsm("the_contract_holds", async |tokens| {
        let one = tokens.token_with_key("main", "kek").await;
        let other = Config { key_label: "other".to_owned(), ..one.clone() };
        Root::init(&other).await.unwrap();
        contract::all(Root::open(&one).await.unwrap(), Root::open(&other).await.unwrap()).await;
    });
}

#[test]
fn the_key_is_created_once_and_cannot_be_read_out() {
    on_softhsm("the_key_is_created_once_and_cannot_be_read_out", async |tokens| {
        let config = tokens.token("main", "kek");
        let (root, caller) = (Root::open(&config).await.unwrap(), Caller::new());
        let missing = caller.denied(&root).await;
        assert!(missing.contains("\"main\" has no secret key with the label \"kek\""), "{missing}");
        let made = Root::init(&config).await.unwrap();
        assert!(made.contains("\"kek\" was created in token \"main\""), "{made}");
        let refused = Root::init(&config).await.unwrap_err();
        assert!(refused.contains("already has a secret key"), "{refused}");
        let wrapped = caller.wrap(&root).await.unwrap();
        caller.opens(&root, &wrapped).await.unwrap();
        assert_eq!(wrapped.len(), 1 + 12 + 16 + 16);

        let told = aside(&config, |session| {
            let key = token::find_all(session, &config).unwrap()[0];
            assert!(Nature::of(session, key).unwrap().is_kept);
            use cryptoki::object::AttributeType::{Value, Wrap};
            session.get_attributes(key, &[Value, Wrap]).unwrap()
        });
        assert_eq!(told, [Attribute::Wrap(false)]);
    });
}

#[test]
fn another_kind_of_key_and_two_of_one_label_are_refused() {
    on_softhsm("another_kind_of_key_and_two_of_one_label_are_refused", async |tokens| {
        let config = tokens.token("main", "short");
        let generate = |label: &str, len: u64, extractable: bool| {
            aside(&config, |session| {
                let template = [
                    Attribute::Label(label.into()),
                    Attribute::ValueLen(len.into()),
                    Attribute::Token(true),
                    Attribute::Sensitive(!extractable),
                    Attribute::Extractable(extractable),
                ];
                session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
            });
        };
        generate("short", 16, false);
        generate("twice", 32, false);
        generate("twice", 32, false);
        generate("open", 32, true);
        let caller = Caller::new();
        for (label, said) in [("short", "not an AES-256 key"), ("twice", "has 2 secret keys")] {
            let config = Config { key_label: label.to_owned(), ..config.clone() };
            let error = caller.denied(&Root::open(&config).await.unwrap()).await;
            assert!(error.contains(said), "{error}");
            assert!(Root::init(&config).await.unwrap_err().contains("already"), "{label}");
        }
        let log = tokens.dir.with_file_name("log");
        let file = std::fs::File::create(&log).unwrap();
        tracing_subscriber::fmt().with_writer(Arc::new(file)).with_ansi(false).init();
        let config = Config { key_label: "open".to_owned(), ..config };
        let root = Root::open(&config).await.unwrap();
        for _ in 0..3 {
            caller.wrap(&root).await.unwrap();
        }
        let log = std::fs::read_to_string(log).unwrap();
        let warned = log.matches("the key can be read out of its token");
        assert_eq!(warned.count(), 1, "the key is accepted with one warning: {log}");
    });
}

#[test]
fn a_wrap_is_standard_aes_gcm() {
    on_softhsm("a_wrap_is_standard_aes_gcm", async |tokens| {
        let config = tokens.token("main", "known");
        // Not random: softhsm2-util stops reading at a zero byte or a line feed.
        let key = KeyBytes::from_slice(&(100..132).collect::<Vec<_>>()).unwrap();
        let file = tokens.dir.with_file_name("key");
        std::fs::write(&file, key.expose()).unwrap();
        let mut command = Command::new("softhsm2-util");
        command.arg("--import").arg(file).args(["--aes", "--token", "main", "--pin", PIN]);
        command.args(["--label", "known", "--id", "01"]);
        assert!(command.output().unwrap().status.success());

        let (root, caller) = (Root::open(&config).await.unwrap(), Caller::new());
        let here = contract::context(&caller.chain, &caller.kek);
        let cipher = Cipher::new(&key);
        let wrapped = caller.wrap(&root).await.unwrap();
        assert_eq!(wrapped[0], FORMAT);
        assert!(sealed::open(&cipher, here, &wrapped[1..], "no").unwrap() == caller.kek);
        let ours = sealed::seal(&cipher, here, &[FORMAT], &caller.kek).unwrap();
        caller.opens(&root, &ours).await.unwrap();
    });
}

#[test]
fn a_token_that_generates_no_nonce_is_detected() {
    on_softhsm("a_token_that_generates_no_nonce_is_detected", async |tokens| {
        let config = tokens.token_with_key("main", "kek").await;
        let config = Config { gcm_iv: GcmIv::Token, ..config };
        let error = Caller::new().denied(&Root::open(&config).await.unwrap()).await;
        assert!(error.contains("the token makes no nonce"), "{error}");
    });
}

#[test]
fn a_wrong_pin_is_tried_once_and_a_new_one_is_taken_without_a_restart() {
    on_softhsm(
        "a_wrong_pin_is_tried_once_and_a_new_one_is_taken_without_a_restart",
        async |tokens| {
            let config = tokens.token_with_key("main", "kek").await;
            let pin_file = config.pin_file.clone().unwrap();
            // Another initialisation logs the user out.
            let module = Module::load(&config.module).unwrap();
            let epoch = module.enter(PATIENCE).unwrap().epoch;
            module.initialise(epoch, PATIENCE).unwrap();

            const WRONG: &str = "pin-of-tomorrow";
            std::fs::write(&pin_file, WRONG).unwrap();
            let (root, other) =
                (Root::open(&config).await.unwrap(), Root::open(&config).await.unwrap());
            let caller = Caller::new();
            let error = caller.denied(&root).await;
            assert!(error.contains("the PIN is wrong; it is not retried until"), "{error}");

            // It becomes the right PIN, so another attempt would succeed.
            let set_pin = |old: &str, new: &str| {
                let pin = |text: &str| AuthPin::new(text.into());
                let pass = module.enter(PATIENCE).unwrap();
                let pkcs11 = pass.pkcs11().unwrap();
                let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
                let session = pkcs11.open_rw_session(slot).unwrap();
                session.login(UserType::User, Some(&pin(old))).unwrap();
                session.set_pin(&pin(old), &pin(new)).unwrap();
                session.logout().unwrap();
            };
            set_pin(PIN, WRONG);
            for root in [&root, &root, &other, &root] {
                let error = caller.denied(root).await;
                assert!(error.contains("the PIN is wrong") && !error.contains(WRONG), "{error}");
            }
            set_pin(WRONG, "another-pin");
            std::fs::write(&pin_file, "another-pin").unwrap();
            let wrapped = caller.wrap(&root).await.unwrap();
            caller.opens(&other, &wrapped).await.unwrap();
        },
    );
}

#[test]
fn a_token_without_a_user_pin_is_reported() {
    on_softhsm("a_token_without_a_user_pin_is_reported", async |tokens| {
        let config = tokens.token("main", "kek");
        aside(&config, |session| session.logout().unwrap());
        let module = Module::load(&config.module).unwrap();
        {
            let pass = module.enter(PATIENCE).unwrap();
            let pkcs11 = pass.pkcs11().unwrap();
            let slots = pkcs11.get_all_slots().unwrap();
            let free = *slots.last().unwrap();
            pkcs11.init_token(free, &AuthPin::new(SO_PIN.into()), "fresh").unwrap();
        }
        let config = Config { token_label: Some("fresh".to_owned()), ..config };
        let error = Caller::new().denied(&Root::open(&config).await.unwrap()).await;
        assert!(error.contains("has no PIN yet"), "{error}");
        let config = Config { token_label: Some("none".to_owned()), ..config };
        match Caller::new().wrap(&Root::open(&config).await.unwrap()).await {
            Err(Error::Away(detail)) => assert_eq!(detail, "token \"none\" is not there"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_logout_by_another_part_of_the_process_fails_no_call() {
    on_softhsm("a_logout_by_another_part_of_the_process_fails_no_call", async |tokens| {
        let config = tokens.token_with_key("main", "kek").await;
        let (root, caller) = (Root::open(&config).await.unwrap(), Caller::new());
        let wrapped = caller.wrap(&root).await.unwrap();
        for _ in 0..10 {
            aside(&config, |session| session.logout().unwrap());
            caller.opens(&root, &wrapped).await.unwrap();
            aside(&config, |session| session.logout().unwrap());
            caller.wrap(&root).await.unwrap();
            // A wrong wrap is distinguished from a broken session, also when both occur.
            aside(&config, |session| session.logout().unwrap());
            let mut bad = wrapped.clone();
            bad[20] ^= 1;
            let here = contract::context(&caller.chain, &caller.kek);
            contract::wrong(&root, here, &bad).await;
        }
    });
}

#[test]
fn a_token_that_was_removed_is_found_again_and_is_not_needed_at_the_start() {
    on_softhsm(
        "a_token_that_was_removed_is_found_again_and_is_not_needed_at_the_start",
        async |tokens| {
            let config = tokens.token_with_key("main", "kek").await;
            let (root, caller) = (Root::open(&config).await.unwrap(), Caller::new());
            let wrapped = caller.wrap(&root).await.unwrap();
            tokens.remove();
            match caller.opens(&root, &wrapped).await {
                Err(Error::Away(detail)) => assert_eq!(detail, "token \"main\" is not there"),
                other => panic!("{other:?}"),
            }
            let other = Root::open(&config).await.unwrap();
            assert_eq!(caller.wrap(&other).await.unwrap_err().outcome(), "away");
            tokens.restore();
            caller.until_it_works(&root, &wrapped).await;
            caller.until_it_works(&other, &wrapped).await;
        },
    );
}

#[test]
fn two_roots_share_a_module_that_is_initialised_under_load() {
    on_softhsm("two_roots_share_a_module_that_is_initialised_under_load", async |tokens| {
        // An initialised module does not find new tokens.
        let (one, two) = (tokens.token("one", "kek"), tokens.token("two", "kek"));
        for config in [&one, &two] {
            Root::init(config).await.unwrap();
        }
        let module = Module::load(&one.module).unwrap();
        let same: &Path = &one.module.canonicalize().unwrap();
        assert!(Arc::ptr_eq(&module, &Module::load(same).unwrap()));
        let mut calls = tokio::task::JoinSet::new();
        for config in [&one, &two, &one, &two] {
            let root = Root::open(config).await.unwrap();
            calls.spawn(async move {
                for _ in 0..100 {
                    let caller = Caller::new();
                    let wrapped = caller.wrap(&root).await.unwrap();
                    caller.opens(&root, &wrapped).await.unwrap();
                }
            });
        }
        let again = tokio::task::spawn_blocking(move || {
            for _ in 0..10 {
                let epoch = module.enter(PATIENCE).unwrap().epoch;
                // A root may have initialised it too, and not reported yet that it helped.
                while let Err(error) = module.initialise(epoch, PATIENCE) {
                    assert!(error.contains("a moment ago"), "{error}");
                    std::thread::sleep(Duration::from_millis(10));
                }
                module.helped();
            }
        });
        again.await.unwrap();
        calls.join_all().await;
    });
}
