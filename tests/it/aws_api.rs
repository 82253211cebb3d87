//! The AWS KMS API, used by programs that were written for AWS KMS: nothing but their environment
//! is changed. Each uses it over HTTP and over TLS. A server before moto, which takes the place of AWS KMS, counts the calls. It runs in
//! the test, whose other threads serve it while the test waits for a program.

use serde_json::{Value, json};

use crate::aws_kms::{DECRYPT, ENCRYPT, metric};
use crate::support::aws::{Language, Program, bytes, environment};
use crate::support::kms::{Call, Front, Moto, REGION, Way};
use crate::support::pki::{Pki, client};
use crate::support::{Service, Setup, until};

mod clients;

/// What is wrapped at the first start: the first KEK of each chain, `default`, `orders` and `other`,
/// and the key of the audit log.
const WRAPS: usize = 4;

/// The metric of old ciphertexts that AWS KMS decrypted.
const FORWARDED: &str = r#"kms_proxy_forwarded_calls_total{operation="Decrypt",outcome="ok"}"#;

/// How programs reach the service.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wire {
    Http,
    Tls,
}

impl Wire {
    const ALL: [Self; 2] = [Self::Http, Self::Tls];
}

/// AWS KMS with the key that programs refer to, and the root of the service. They are two keys.
struct World {
    moto: Moto,
    front: Front,
    /// The ARN of the key that programs refer to. Its alias is `alias/orders`.
    key: String,
    root: String,
    setup: Setup,
    pki: Pki,
}

impl World {
    async fn start() -> Self {
        let moto = Moto::start();
        let front = Front::start(Some(&moto)).await;
        let (key, root) = (moto.create_key().await, moto.create_key().await);
        let alias = json!({"AliasName": "alias/orders", "TargetKeyId": key});
        moto.call("CreateAlias", alias).await;
        let setup = Setup::new();
        let pki = Pki::new(setup.file("pki"));
        Self { moto, front, key, root, setup, pki }
    }

    /// The settings of the service, with `api` in `[aws_api]` and `rest` after it.
    fn setup(&self, api: &str, rest: &str) -> Setup {
        let config = self.setup.file("kms-proxy.toml");
        let text = format!(
            "{rest}\n\
             [chain]\nnames = ['orders', 'other']\n\
             [[root]]\nname = 'main'\nkind = 'aws-kms'\nkey_id = '{root}'\nendpoint = '{url}'\n\
             timeout = '14s'\n\
             [aws_api]\nenabled = true\nregion = '{REGION}'\naccount = '123456789012'\n{api}\n\
             [[aws_api.key]]\nkey_id = '{key}'\naliases = ['alias/orders']\nchain = 'orders'\n",
            root = self.root,
            url = self.front.url(),
            key = self.key,
        );
        std::fs::write(&config, text).unwrap();
        self.setup
            .clone()
            .env("KMS_PROXY_CONFIG", config.display())
            .set("AUDIT__FILE", self.setup.file("audit.jsonl").display())
            .set("AUDIT__RULE__0__LEVEL", "full")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "secret-of-the-service")
            .env("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// The service, with `api` in `[aws_api]` and `rest` before it.
    async fn serve(&self, api: &str, rest: &str, wire: Wire) -> Service {
        let (cert, key) = self.pki.server(&["localhost", "127.0.0.1"]);
        let (cert, key) = (cert.display(), key.display());
        let tls = format!("[server.tls]\ncert = '{cert}'\nkey = '{key}'\n");
        let tls = if wire == Wire::Tls { tls.as_str() } else { "" };
        let mut service = self.setup(api, &format!("{tls}{rest}")).start().await;
        if wire == Wire::Tls {
            service.call_with(client(&self.pki.ca(), None).build().unwrap());
        }
        service
    }

    /// The variables of a program that was switched over to `service`.
    fn environment(&self, service: &Service) -> Vec<(&'static str, String)> {
        let (mut environment, ca) =
            (environment(&service.url()), self.pki.ca().display().to_string());
        environment.extend([("AWS_CA_BUNDLE", ca.clone()), ("NODE_EXTRA_CA_CERTS", ca)]);
        environment
    }

    /// A program as it was before: it uses AWS KMS.
    fn before(&self, language: Language) -> Program {
        Program::start(language, environment(&format!("http://{}", self.moto.address)))
    }

    /// A program that was switched over to `service`.
    fn after(&self, language: Language, service: &Service) -> Program {
        Program::start(language, self.environment(service))
    }

    /// The lines of the audit log that `is` selects, once there is one.
    async fn audited(&self, is: impl Fn(&Value) -> bool) -> Vec<Value> {
        until("a line of the audit log", async || {
            let text = std::fs::read_to_string(self.setup.file("audit.jsonl")).unwrap_or_default();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let lines: Vec<_> = lines.filter(|line| line["api"] == "aws" && is(line)).collect();
            (!lines.is_empty()).then_some(lines)
        })
        .await
    }

    /// How often AWS KMS was called since the last time: for a wrap, and for a decrypt of a program.
    /// A service that has started unwraps its own KEKs when it needs them.
    fn calls(&self) -> (usize, usize) {
        let calls = self.front.take();
        let count = |is: fn(&Call) -> bool| calls.iter().filter(|call| is(call)).count();
        let wraps = count(|call| call.target == ENCRYPT);
        let unwraps = count(|call| call.target == DECRYPT && is_own(call));
        let decrypts = count(|call| call.target == DECRYPT && !is_own(call));
        assert_eq!(wraps + unwraps + decrypts, calls.len(), "{calls:?}");
        (wraps, decrypts)
    }
}

/// Whether a call is about a KEK of the service.
fn is_own(call: &Call) -> bool {
    call.body["EncryptionContext"]["kms-proxy:kek-id"].is_string()
}

/// Runs a check over HTTP and over TLS at the same time. Each has its own runtime, whose other
/// threads serve it while it waits for a program.
fn over_both(check: impl AsyncFn(Wire) + Sync) {
    std::thread::scope(|scope| {
        for wire in Wire::ALL {
            let check = &check;
            scope.spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_multi_thread();
                let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
                runtime.block_on(check(wire));
            });
        }
    });
}

#[test]
fn boto3_and_node_js_do_with_the_service_what_they_do_with_kms() {
    over_both(async |wire| {
        let world = World::start().await;
        let service = world.serve("", "", wire).await;
        for language in Language::ALL {
            do_everything(&world, &mut world.after(language, &service));
        }
        // The KEKs were wrapped; AWS KMS received no other call.
        assert_eq!(world.calls(), (WRAPS, 0), "{wire:?}");
    });
}

fn do_everything(world: &World, program: &mut Program) {
    let key = &world.key;
    let key_id = key.rsplit('/').next().unwrap();
    let alias_arn = key.replace(&format!("key/{key_id}"), "alias/orders");

    let context = json!({"tenant": "7", "": "empty", "ä": "ö"});
    for name in [key.as_str(), key_id, "alias/orders", &alias_arn] {
        let args = json!({"KeyId": name, "Plaintext": bytes(b"a"), "EncryptionContext": context});
        let made = program.call("encrypt", args);
        assert_eq!(
            (&made["KeyId"], &made["EncryptionAlgorithm"]),
            (&json!(key), &json!("SYMMETRIC_DEFAULT"))
        );
        let blob = made["CiphertextBlob"].clone();
        let decrypt = json!({"CiphertextBlob": blob, "EncryptionContext": context});
        let mut named = decrypt.clone();
        named["KeyId"] = json!(name);
        for args in [&decrypt, &named] {
            let opened = program.call("decrypt", args.clone());
            assert_eq!((&opened["Plaintext"], &opened["KeyId"]), (&bytes(b"a"), &json!(key)));
        }
        for wrong in [json!({}), json!({"tenant": "8", "": "empty", "ä": "ö"})] {
            let args = json!({"CiphertextBlob": blob, "EncryptionContext": wrong});
            assert_eq!(program.refused("decrypt", args).0, "InvalidCiphertextException");
        }
        named["KeyId"] = json!("other");
        assert_eq!(program.refused("decrypt", named).0, "IncorrectKeyException");
    }
    let args = json!({"KeyId": "alias/nobody", "Plaintext": bytes(b"a")});
    assert_eq!(program.refused("encrypt", args).0, "NotFoundException");

    for (spec, len) in [(json!({"KeySpec": "AES_128"}), 16), (json!({"NumberOfBytes": 64}), 64)] {
        let mut args = json!({"KeyId": key, "EncryptionContext": context});
        args.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let made = program.call("generate_data_key", args.clone());
        assert_eq!(made["Plaintext"]["hex"].as_str().unwrap().len(), 2 * len);
        let blob = &made["CiphertextBlob"];
        let args_of_decrypt = json!({"CiphertextBlob": blob, "EncryptionContext": context});
        assert_eq!(program.call("decrypt", args_of_decrypt)["Plaintext"], made["Plaintext"]);
        let made = program.call("generate_data_key_without_plaintext", args);
        assert!(made.get("Plaintext").is_none() && made["CiphertextBlob"].is_object(), "{made}");
    }
    let random = program.call("generate_random", json!({"NumberOfBytes": 24}));
    assert_eq!(random["Plaintext"]["hex"].as_str().unwrap().len(), 48);

    let made = program.call("encrypt", json!({"KeyId": key, "Plaintext": bytes(b"b")}));
    let args = json!({
        "CiphertextBlob": made["CiphertextBlob"],
        "DestinationKeyId": "alias/other",
        "DestinationEncryptionContext": context,
    });
    let moved = program.call("re_encrypt", args);
    assert_eq!(moved["SourceKeyId"], json!(key));
    assert_eq!(moved["KeyId"], json!(format!("arn:aws:kms:{REGION}:123456789012:key/other")));
    let args = json!({
        "CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": context, "KeyId": "other"
    });
    assert_eq!(program.call("decrypt", args)["Plaintext"], bytes(b"b"));

    let described = program.call("describe_key", json!({"KeyId": "alias/orders"}));
    let metadata = &described["KeyMetadata"];
    assert_eq!((&metadata["Arn"], &metadata["KeyId"]), (&json!(key), &json!(key_id)));
    assert_eq!((&metadata["KeyState"], &metadata["Enabled"]), (&json!("Enabled"), &json!(true)));
    let listed = program.call("list_aliases", json!({}));
    let aliases: Vec<_> = listed["Aliases"].as_array().unwrap().iter().collect();
    let orders = aliases.iter().find(|alias| alias["AliasName"] == "alias/orders").unwrap();
    assert_eq!((&orders["TargetKeyId"], &orders["AliasArn"]), (&json!(key_id), &json!(alias_arn)));
    assert!(aliases.iter().any(|alias| alias["AliasName"] == "alias/other"), "{listed}");
}

#[test]
fn an_old_ciphertext_costs_one_call_and_none_while_it_is_cached() {
    over_both(async |wire| {
        for language in Language::ALL {
            read_an_old_ciphertext(wire, language).await;
        }
    });
}

async fn read_an_old_ciphertext(wire: Wire, language: Language) {
    let world = World::start().await;
    let mut before = world.before(language);
    let context = json!({"tenant": "7"});
    let args = json!({"KeyId": "alias/orders", "KeySpec": "AES_256", "EncryptionContext": context});
    let old = before.call("generate_data_key", args);
    let decrypt = json!({"CiphertextBlob": old["CiphertextBlob"], "EncryptionContext": context});

    let service = world.serve("", "", wire).await;
    let mut program = world.after(language, &service);
    let mut named = decrypt.clone();
    named["KeyId"] = json!("alias/orders");
    world.calls();
    for (count, args) in [(1, &decrypt), (2, &named)] {
        let opened = program.call("decrypt", args.clone());
        assert_eq!(
            (&opened["Plaintext"], &opened["KeyId"]),
            (&old["Plaintext"], &json!(world.key))
        );
        assert_eq!(world.calls(), (0, 1));
        assert_eq!(metric(&service, FORWARDED).await, count);
    }
    let wrong = json!({"CiphertextBlob": old["CiphertextBlob"]});
    assert_eq!(program.refused("decrypt", wrong).0, "InvalidCiphertextException");
    // Programs may not use another key of AWS KMS, which the service could decrypt with.
    let args = json!({"KeyId": world.root, "Plaintext": bytes(b"a")});
    let foreign = before.call("encrypt", args)["CiphertextBlob"].clone();
    let (code, _) = program.refused("decrypt", json!({"CiphertextBlob": foreign}));
    assert_eq!(code, "AccessDeniedException");
    let forbidden = r#"kms_proxy_requests_total{api="aws",outcome="forbidden"}"#;
    assert_eq!(metric(&service, forbidden).await, 1);
    // The log names the key; the response does not.
    let log = service.logged("access to a key was denied").await;
    let denied = log.lines().find(|line| line.contains("access to a key was denied"));
    assert!(denied.is_some_and(|line| line.contains(&world.root)), "{log}");
    let refused = world.audited(|line| line["outcome"] == "forbidden").await;
    assert_eq!((refused.len(), &refused[0]["operation"]), (1, &json!("decrypt")), "{refused:?}");
    assert_eq!((&refused[0]["key"], &refused[0]["auth"]), (&json!(world.root), &json!("none")));
    let opened = world.audited(|line| line["operation"] == "decrypt" && line["outcome"] == "ok");
    let opened = opened.await;
    assert!(opened.iter().all(|line| line["key"] == world.key), "{opened:?}");
    service.stop().await;

    let service = world.serve("forward_cache = '1h'", "", wire).await;
    let mut program = world.after(language, &service);
    world.calls();
    for _ in 0..3 {
        assert_eq!(program.call("decrypt", decrypt.clone())["Plaintext"], old["Plaintext"]);
    }
    assert_eq!((world.calls().1, metric(&service, FORWARDED).await), (1, 1));
    // Moved once, it needs AWS KMS no more.
    let args = json!({
        "CiphertextBlob": old["CiphertextBlob"], "SourceEncryptionContext": context,
        "DestinationKeyId": "alias/orders", "DestinationEncryptionContext": context,
    });
    let moved = program.call("re_encrypt", args);
    assert_eq!(moved["SourceKeyId"], json!(world.key));
    service.stop().await;
    let service = world.serve("forward = 'none'", "", wire).await;
    let mut program = world.after(language, &service);
    world.calls();
    let args = json!({"CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": context});
    assert_eq!(program.call("decrypt", args)["Plaintext"], old["Plaintext"]);
    assert_eq!(program.refused("decrypt", decrypt).0, "InvalidCiphertextException");
    assert_eq!(world.calls().1, 0);
    assert!(!service.metrics().await.contains("kms_proxy_forwarded_calls_total{"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_kms_everything_but_uncached_old_ciphertexts_is_served() {
    let world = World::start().await;
    let mut before = world.before(Language::Python);
    let mut old = |plaintext: &[u8]| {
        let args = json!({"KeyId": "alias/orders", "Plaintext": bytes(plaintext)});
        before.call("encrypt", args)["CiphertextBlob"].clone()
    };
    let (cached, uncached) = (old(b"cached"), old(b"uncached"));
    let service = world.serve("forward_cache = '1h'", "", Wire::Http).await;
    let mut program = world.after(Language::Python, &service);
    program.call("decrypt", json!({"CiphertextBlob": cached}));
    let args = json!({"KeyId": "alias/orders", "Plaintext": bytes(b"new")});
    let new = program.call("encrypt", args.clone());

    world.front.set(Way::Close);
    for (blob, plaintext) in [(&cached, b"cached".as_slice()), (&new["CiphertextBlob"], b"new")] {
        let opened = program.call("decrypt", json!({"CiphertextBlob": blob}));
        assert_eq!(opened["Plaintext"], bytes(plaintext));
    }
    program.call("encrypt", args);
    program.call("generate_data_key", json!({"KeyId": world.key, "KeySpec": "AES_256"}));
    program.call("describe_key", json!({"KeyId": world.key}));
    let (code, message) = program.refused("decrypt", json!({"CiphertextBlob": uncached}));
    assert_eq!(code, "DependencyTimeoutException", "{message}");
    world.front.set(Way::Through);
    let opened = program.call("decrypt", json!({"CiphertextBlob": uncached}));
    assert_eq!(opened["Plaintext"], bytes(b"uncached"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_calls_of_boto3_cause_no_call_of_kms() {
    for (wire, count) in [(Wire::Http, 10_000), (Wire::Tls, 1_000)] {
        let world = World::start().await;
        let service = world.serve("", "", wire).await;
        let mut program = world.after(Language::Python, &service);
        let load = json!({"load": count, "threads": 4, "key": "alias/orders"});
        assert_eq!(world.calls(), (WRAPS, 0));
        let done = program.good(&load);
        assert_eq!((&done["made"], &done["wrong"]), (&json!(count), &json!(0)), "{done}");
        assert_eq!(world.calls(), (0, 0), "{wire:?}");
        assert_eq!(metric(&service, FORWARDED).await, 0);
    }
}

/// A service with two clients that sign: `app` may do everything with `orders`, and
/// `reader` may only decrypt.
struct Secured {
    world: World,
    service: Service,
}

const APP: (&str, &str) = ("KPAPP", "secret-of-the-app-with-40-characters-000");
const READER: (&str, &str) = ("KPREADER", "secret-of-the-reader-with-40-characters-");

impl Secured {
    async fn start(wire: Wire) -> Self {
        let world = World::start().await;
        let mut clients = String::new();
        for (name, (id, secret), operations) in [
            ("app", APP, "['encrypt', 'decrypt', 'datakey', 'read']"),
            ("reader", READER, "['decrypt']"),
        ] {
            let file = world.setup.file(name);
            std::fs::write(&file, format!("{secret}\n")).unwrap();
            clients += &format!(
                "[[client]]\nname = '{name}'\naws_access_key_id = '{id}'\n\
                 aws_secret_access_key_file = '{}'\n\
                 allow = [{{ chains = ['orders'], operations = {operations} }}]\n",
                file.display()
            );
        }
        let rest = format!("[auth]\nmode = 'required'\n{clients}");
        let service = world.serve("", &rest, wire).await;
        Self { world, service }
    }

    /// The variables of a program with the credentials of a client.
    fn environment(&self, (id, secret): (&str, &str)) -> Vec<(&'static str, String)> {
        let mut environment = self.world.environment(&self.service);
        environment.extend([
            ("AWS_ACCESS_KEY_ID", id.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
        ]);
        environment
    }

    fn program(&self, language: Language, credentials: (&str, &str)) -> Program {
        Program::start(language, self.environment(credentials))
    }
}

#[test]
fn boto3_and_node_js_sign_and_see_why_they_are_refused() {
    over_both(async |wire| {
        let secured = Secured::start(wire).await;
        for language in Language::ALL {
            sign(&secured, language);
        }
        // Nothing was refused only once, or forwarded.
        assert_eq!(secured.world.calls(), (WRAPS, 0), "{wire:?}");
        let log = secured.service.logged("access to a key was denied").await;
        let denied = |line: &&str| line.contains("access to a key was denied");
        let denied = log.lines().find(denied).unwrap_or_else(|| panic!("{log}"));
        for word in ["reader", "Encrypt", &secured.world.key] {
            assert!(denied.contains(word), "{denied}");
        }
        assert!(!log.contains(APP.1) && !log.contains(READER.1), "{log}");
        let by = |client: &str| {
            let client = client.to_owned();
            move |line: &Value| line["client"] == client && line["auth"] == "sigv4"
        };
        let of_app = secured.world.audited(by("app")).await;
        assert!(of_app.iter().any(|line| line["operation"] == "encrypt"), "{of_app:?}");
        let of_reader = secured.world.audited(by("reader")).await;
        assert!(of_reader.iter().any(|line| line["outcome"] == "forbidden"), "{of_reader:?}");
        let unsigned = secured.world.audited(|line| line["outcome"] == "unauthenticated").await;
        assert!(unsigned.iter().all(|line| line["client"] == Value::Null), "{unsigned:?}");
        let text = std::fs::read_to_string(secured.world.setup.file("audit.jsonl")).unwrap();
        assert!(!text.contains(APP.1) && !text.contains("Signature"), "{text}");
    });
}

/// The credentials that a program gets from an IAM role: kms-proxy cannot know their secret.
const ROLE: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "ASIAIOSFODNN7EXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "secret-of-a-role"),
    ("AWS_SESSION_TOKEN", "token-of-a-role"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_with_a_client_certificate_keep_the_credentials_of_their_role() {
    let world = World::start().await;
    let ca = world.pki.ca();
    let mut rest = format!(
        "client_ca = '{}'\nclient_cert = 'optional'\n[auth]\nmode = 'required'\n",
        ca.display()
    );
    for (name, operations) in
        [("app", "['encrypt', 'decrypt', 'datakey', 'read']"), ("reader", "['decrypt']")]
    {
        rest += &format!(
            "[[client]]\nname = '{name}'\ntls_san = '{name}.example'\n\
             allow = [{{ chains = ['orders'], operations = {operations} }}]\n"
        );
    }
    // It continues the table `server.tls`.
    let service = world.serve("", &rest, Wire::Tls).await;
    for language in Language::ALL {
        let program = |certificate: Option<&str>| {
            let mut environment = world.environment(&service);
            environment.extend(ROLE.map(|(name, value)| (name, value.to_owned())));
            if let Some(name) = certificate {
                let (cert, key) = world.pki.client(&[name]);
                let both = [std::fs::read(key).unwrap(), std::fs::read(cert).unwrap()].concat();
                let file = world.setup.file(name);
                std::fs::write(&file, both).unwrap();
                environment.push(("CLIENT_CERT", file.display().to_string()));
            }
            Program::start(language, environment)
        };
        let (mut app, mut reader) = (program(Some("app.example")), program(Some("reader.example")));
        let encrypt = json!({"KeyId": "alias/orders", "Plaintext": bytes(b"a")});
        let blob = app.call("encrypt", encrypt.clone())["CiphertextBlob"].clone();
        app.call("generate_data_key", json!({"KeyId": world.key, "KeySpec": "AES_256"}));
        for program in [&mut app, &mut reader] {
            let opened = program.call("decrypt", json!({"CiphertextBlob": blob}));
            assert_eq!(opened["Plaintext"], bytes(b"a"));
        }
        let (code, message) = reader.refused("encrypt", encrypt.clone());
        assert!(code == "AccessDeniedException" && message.contains("reader"), "{message}");
        for unknown in [None, Some("unknown.example")] {
            let (code, _) = program(unknown).refused("encrypt", encrypt.clone());
            assert_eq!(code, "UnrecognizedClientException", "{language:?} {unknown:?}");
        }
    }
    let of_app = world.audited(|line| line["client"] == "app").await;
    assert!(of_app.iter().all(|line| line["auth"] == "mtls"), "{of_app:?}");
    assert_eq!(world.calls(), (WRAPS, 0));
}

fn sign(secured: &Secured, language: Language) {
    let mut app = secured.program(language, APP);
    let context = json!({"tenant": "7"});
    let encrypt = json!({
        "KeyId": secured.world.key, "Plaintext": bytes(b"a"), "EncryptionContext": context
    });
    let blob = app.call("encrypt", encrypt.clone())["CiphertextBlob"].clone();
    let decrypt = json!({"CiphertextBlob": blob, "EncryptionContext": context});
    let mut reader = secured.program(language, READER);
    for program in [&mut app, &mut reader] {
        assert_eq!(program.call("decrypt", decrypt.clone())["Plaintext"], bytes(b"a"));
    }
    app.call("generate_data_key", json!({"KeyId": "alias/orders", "KeySpec": "AES_256"}));
    app.call("describe_key", json!({"KeyId": "alias/orders"}));

    let (code, message) = reader.refused("encrypt", encrypt.clone());
    assert_eq!(code, "AccessDeniedException");
    for word in ["reader", "kms:Encrypt", &secured.world.key] {
        assert!(message.contains(word), "{message}");
    }
    let other = json!({"KeyId": "other", "Plaintext": bytes(b"a")});
    assert_eq!(app.refused("encrypt", other).0, "AccessDeniedException");

    let refused = |credentials: (&str, &str), more: &[(&'static str, &str)]| -> (String, String) {
        let mut environment = secured.environment(credentials);
        environment.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        Program::start(language, environment).refused("encrypt", encrypt.clone())
    };
    let (code, message) = refused((APP.0, READER.1), &[]);
    assert_eq!(code, "InvalidSignatureException");
    assert!(!message.contains(READER.1) && !message.contains(APP.1), "{message}");
    assert_eq!(refused(("KPNOBODY", APP.1), &[]).0, "UnrecognizedClientException");
    let region = [("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-1")];
    let (code, message) = refused(APP, &region);
    assert!(code == "InvalidSignatureException" && message.contains(REGION), "{code}: {message}");
    let session = [("AWS_SESSION_TOKEN", "token-of-a-role")];
    assert_eq!(refused(APP, &session).0, "UnrecognizedClientException");
}
