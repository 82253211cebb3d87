//! Configurations, each with what comes of it: typed settings, or an error that names the key.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::id::{ChainName, Suite};
use crate::store::record::Limits;

const NOBODY: [(&str, &str); 0] = [];

fn load<const N: usize>(file: &str, variables: [(&str, &str); N]) -> Result<Config, String> {
    load_with(file, variables, &Flags::default())
}

fn load_with<const N: usize>(
    file: &str,
    variables: [(&str, &str); N],
    flags: &Flags,
) -> Result<Config, String> {
    let variables = variables.map(|(name, value)| (name.into(), value.into()));
    Config::from_sources(Some((Path::new("k.toml"), file)), variables, flags)
        .map_err(|error| error.to_string())
}

fn local(name: &str, key_file: Option<&str>) -> root::Config {
    root::Config::Local(root::local::Config {
        name: name.to_owned(),
        key_file: key_file.map(PathBuf::from),
    })
}

/// Everything that can be set, none of it at its default.
const FULL: &str = r#"
[server]
listen = "127.0.0.2:9000"
admin_listen = "[::1]:9090"
insecure = true
max_body = "1MiB"
request_timeout = "1500ms"
max_connections = 7
max_requests = 8
max_streams = 9
stream_idle_timeout = "20s"
body_memory = "3MiB"
idle_timeout = "10m"
drain_delay = "5s"

[server.tls]
cert = "/tls/tls.crt"
key = "/tls/tls.key"
client_ca = "/tls/ca.crt"
client_cert = "required"

[log]
level = "warn,kms_proxy::http=debug"
format = "text"

[traces]
endpoint = "https://collector.example/v1/traces"
sample_ratio = 0.5

[store]
kind = "file"
path = "/data"

[[root]]
kind = "passphrase"
name = "main"
passphrase_file = "/run/secrets/passphrase"

[[root]]
kind = "local"
name = "old"
key_file = "/data/old.key"

[[root]]
kind = "pkcs11"
name = "hsm"
module = "/usr/lib/hsm.so"
slot = 7
key_label = "kek"
pin_file = "/run/secrets/pin"
gcm_iv = "token"
timeout = "1s"

[[archive]]
kind = "dir"
name = "nas"
path = "/mnt/nas/kms-proxy"
create = true
timeout = "3s"

[archive_policy]
require = "any"
on_failure = "continue"

[chain]
names = ["orders", "invoices"]
suite = "aes-256-gcm"
rotate_after_uses = 1000
max_uses = 2000
rotate_after_age = "30d"
destroy_delay = "2m"

[cache]
dek_entries = 0
dek_max_age = "1m"
keks = 1
kek_max_age = "2h"
offline_grace = "1h"

[auth]
mode = "none"

[kubernetes]
socket = "unix:///run/kms-proxy/kms.sock"
socket_mode = "0660"
owner = "65532:65532"
allowed_uids = [0, 65532]
chain = "k8s"
on_root_outage = "enforce"

[admin]
status = false
root_call_price = 3
currency = "EUR"

[aws_api]
enabled = true
account = "111122223333"
region = "eu-central-1"
forward = "all"
forward_cache = "5m"
secret_key_file = "/run/secrets/aws"

[[aws_api.key]]
key_id = "1234abcd-12ab-34cd-56ef-1234567890ab"
aliases = ["alias/orders"]
chain = "orders"
"#;

#[test]
fn nothing_at_all_gives_the_defaults() {
    let config = Config::from_sources(None, [], &Flags::default()).unwrap();
    assert_eq!(
        config,
        Config {
            server: http::Config::default(),
            admin: http::Admin::default(),
            log: telemetry::Config::default(),
            traces: telemetry::traces::Config::default(),
            store: store::Config::default(),
            archives: Vec::new(),
            roots: vec![local("local", None)],
            service: service::Config::default(),
            auth: auth::Config::default(),
            aws_api: aws_api::Config { region: Some("us-east-1".to_owned()), ..Default::default() },
            kubernetes: None,
            audit: audit::Config::default(),
        }
    );
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    assert!(!config.is_exposed());
}

#[test]
fn the_file_sets_everything() {
    let config = load(FULL, NOBODY).unwrap();
    let http::Config { listen, admin_listen, max_body, request_timeout, .. } = config.server;
    assert_eq!(listen.to_string(), "127.0.0.2:9000");
    assert_eq!(admin_listen.unwrap().to_string(), "[::1]:9090");
    assert_eq!((max_body, request_timeout), (1 << 20, Duration::from_millis(1500)));
    assert_eq!((config.server.insecure, config.server.max_connections), (true, 7));
    assert_eq!((config.server.max_requests, config.server.body_memory()), (8, 3 << 20));
    assert_eq!(config.server.drain_delay, Duration::from_secs(5));
    assert_eq!(config.server.max_streams, 9);
    assert_eq!(config.server.stream_idle_timeout, Duration::from_secs(20));
    assert_eq!(config.server.idle_timeout, Duration::from_secs(600));
    let http::Admin { status, root_call_price, currency } = config.admin;
    assert_eq!((status, root_call_price, &*currency), (Some(false), 3.0, "EUR"));
    let tls = config.server.tls.unwrap();
    assert_eq!((tls.cert, tls.key), ("/tls/tls.crt".into(), "/tls/tls.key".into()));
    assert_eq!((tls.client_ca, tls.client_cert.as_str()), (Some("/tls/ca.crt".into()), "required"));
    assert_eq!(config.log.format, Some(telemetry::Format::Text));
    assert_eq!(config.store.data_dir(), Path::new("/data"));
    assert_eq!(
        config.roots.iter().map(root::Config::name).collect::<Vec<_>>(),
        ["main", "old", "hsm"]
    );
    assert_eq!(config.roots.get(1), Some(&local("old", Some("/data/old.key"))));
    let Some(root::Config::Pkcs11(hsm)) = config.roots.last() else { panic!("another root") };
    assert_eq!((hsm.slot, hsm.gcm_iv.as_str(), hsm.timeout.as_secs()), (Some(7), "token", 1));
    let service::Config { chain, cache, wait, .. } = &config.service;
    let service::ChainConfig { names, suite, destroy_delay, .. } = chain;
    let limits = chain.limits();
    assert_eq!(
        names.iter().map(ChainName::as_str).collect::<Vec<_>>(),
        ["orders", "invoices", "k8s"]
    );
    let kubernetes = config.kubernetes.as_ref().unwrap();
    assert_eq!(kubernetes.socket.to_string(), "unix:///run/kms-proxy/kms.sock");
    assert_eq!(kubernetes.socket_mode.to_string(), "0660");
    assert_eq!(kubernetes.owner.unwrap().to_string(), "65532:65532");
    assert_eq!(kubernetes.on_root_outage, kubernetes::OnRootOutage::Enforce);
    let aws_api = &config.aws_api;
    assert!(aws_api.enabled && aws_api.forward == aws_api::Forward::All);
    assert_eq!((aws_api.account.as_str(), aws_api.region()), ("111122223333", "eu-central-1"));
    assert_eq!((aws_api.forward_cache, aws_api.key.len()), (Duration::from_secs(300), 1));
    assert_eq!(config.auth.aws_secret_key_file.as_deref(), Some(Path::new("/run/secrets/aws")));
    assert_eq!(*suite, Suite::Aes256Gcm);
    let age = 30 * 24 * 60 * 60;
    assert_eq!(limits, Limits { rotate_after_uses: 1000, max_uses: 2000, rotate_after_age: age });
    assert_eq!((*destroy_delay, *wait), (Duration::from_secs(120), request_timeout));
    let service::CacheConfig { dek_entries, dek_max_age, keks, offline_grace, .. } = *cache;
    assert_eq!((dek_entries, dek_max_age, keks), (0, Duration::from_secs(60), 1));
    assert_eq!(offline_grace, Duration::from_secs(3600));
}

#[test]
fn the_environment_wins_over_the_file_and_flags_over_both() {
    let variables = [
        ("KMS_PROXY__SERVER__LISTEN", "127.0.0.1:1"),
        ("KMS_PROXY__SERVER__INSECURE", "false"),
        ("KMS_PROXY__SERVER__MAX_CONNECTIONS", "8"),
        ("KMS_PROXY__SERVER__MAX_BODY", "4096"),
        ("KMS_PROXY__LOG__FORMAT", "json"),
        ("KMS_PROXY__STORE__PATH", "/elsewhere"),
        ("KMS_PROXY__ROOT__1__KEY_FILE", "/data/new.key"),
        ("KMS_PROXY__ROOT__2__SLOT", "8"),
        ("KMS_PROXY__ROOT__3__NAME", "third"),
        ("KMS_PROXY__ROOT__3__KIND", "local"),
        ("KMS_PROXY__CHAIN__NAMES", "a, b,c"),
        ("KMS_PROXY__CHAIN__SUITE", "aes-128-gcm"),
        ("KMS_PROXY__CHAIN__MAX_USES", "3000"),
        ("KMS_PROXY__CACHE__DEK_MAX_AGE", "2m"),
        ("KMS_PROXY_SERVER", "http://not.a.setting"),
        ("PATH", "/bin"),
    ];
    let config = load(FULL, variables).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:1");
    assert_eq!((config.server.insecure, config.server.max_connections), (false, 8));
    assert_eq!(config.server.max_body, 4096);
    assert_eq!(config.log.format, Some(telemetry::Format::Json));
    assert_eq!(config.store.data_dir(), Path::new("/elsewhere"));
    let [_, old, root::Config::Pkcs11(hsm), third] = &config.roots[..] else { panic!("others") };
    assert_eq!((old, third), (&local("old", Some("/data/new.key")), &local("third", None)));
    assert_eq!(hsm.slot, Some(8));
    assert_eq!(config.service.chain.names.len(), 3 + 2, "and those of Kubernetes and of a key");
    assert_eq!(config.service.chain.suite, Suite::Aes128Gcm);
    assert_eq!(config.service.chain.max_uses, 3000);
    assert_eq!(config.service.cache.dek_max_age, Duration::from_secs(120));

    let listen = "127.0.0.1:2".parse().unwrap();
    let flags = Flags { listen: Some(listen), data_dir: Some("/flag".into()) };
    let config = load_with(FULL, variables, &flags).unwrap();
    assert_eq!((config.server.listen, config.store.data_dir()), (listen, Path::new("/flag")));
}

#[test]
fn lists_in_the_environment_are_words_or_toml() {
    for (text, names) in [
        ("a,b", &["a", "b"][..]),
        (" a , b ", &["a", "b"]),
        ("a", &["a"]),
        ("", &[]),
        (r#"["a", "b"]"#, &["a", "b"]),
        ("[]", &[]),
    ] {
        let config = load("", [("KMS_PROXY__CHAIN__NAMES", text)]).unwrap();
        let found: Vec<_> = config.service.chain.names.iter().map(ChainName::as_str).collect();
        assert_eq!(found, names, "{text:?}");
    }
    let error = load("", [("KMS_PROXY__CHAIN__NAMES", "[a")]).unwrap_err();
    assert_eq!(error, "chain.names (KMS_PROXY__CHAIN__NAMES): not a TOML array");
}

#[test]
fn eleven_roots_of_the_environment_come_in_order() {
    let variables = (0..11).flat_map(|i| {
        [("KIND", "local".to_owned()), ("NAME", format!("r{i}"))]
            .map(|(key, value)| (format!("KMS_PROXY__ROOT__{i}__{key}").into(), value.into()))
    });
    let config = Config::from_sources(None, variables, &Flags::default()).unwrap();
    let names: Vec<_> = config.roots.iter().map(root::Config::name).collect();
    assert_eq!(names, ["r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10"]);
}

#[test]
fn errors_name_the_key_and_what_is_expected() {
    let root = "[[root]]\nkind = 'local'\nname = 'a'\n";
    for (file, error) in [
        ("servr = 1", "servr: no such key; expected one of server, admin, "),
        ("[server]\nlisten_on = 'x'", "server.listen_on: no such key; expected one of listen, "),
        ("[[client]]\nname = 'x'", "client.0.allow: it is missing"),
        ("[server]\ntls = { cert = 'x' }", "server.tls.key: it is missing"),
        ("[server]\ntls = { crt = 'x' }", "server.tls.crt: no such key; expected one of cert, key"),
        (
            "[server]\ntls = { cert = 'x', key = 'y', client_cert = 'required' }",
            "server.tls.client_cert: \"required\" needs server.tls.client_ca",
        ),
        (
            "[server]\ntls = { cert = 'x', key = 'y', client_ca = 'z', client_cert = 'no' }",
            "server.tls.client_cert: expected optional or required",
        ),
        ("[server]\nmax_requests = 0", "server.max_requests: must be between 1 and 1000000"),
        (
            "[server]\nbody_memory = '7MiB'",
            "server.body_memory: must be at least twice server.max_body",
        ),
        ("[server]\nbody_memory = 'x'", "server.body_memory: a size must be like"),
        ("[server]\nidle_timeout = '0s'", "server.idle_timeout: must be between 1s and 24h"),
        ("[server]\nidle_timeout = '25h'", "server.idle_timeout: must be between 1s and 24h"),
        ("[server]\nmax_streams = 0", "server.max_streams: must be between 1 and 100000"),
        (
            "[server]\nstream_idle_timeout = '2h'",
            "server.stream_idle_timeout: must be between 1s and 1h",
        ),
        ("[server]\ndrain_delay = '11m'", "server.drain_delay: must be between 0s and 10m"),
        (
            "[store]\nkind = 'file'\npaht = 'x'",
            "store.paht: no such key; expected one of kind, path",
        ),
        ("[auth]\nkind = 'x'\nmod = 'none'", "auth.kind: no such key; expected mode"),
        ("server = 1", "server: expected a table"),
        ("[server]\nlisten = 'localhost'", "server.listen: expected an IP address and a port"),
        ("[server]\nlisten = 'localhost:80'", "server.listen: expected an IP address and a port, "),
        (
            "[server]\nadmin_listen = ':80'",
            "server.admin_listen: expected an IP address and a port",
        ),
        (
            "[server]\nlisten = 8080",
            "server.listen: expected an IP address and a port, such as 127",
        ),
        ("[server]\ninsecure = 'yes'", "server.insecure: expected a boolean"),
        ("[server]\nmax_connections = -1", "server.max_connections: expected a whole number"),
        ("[server]\nmax_connections = 1.5", "server.max_connections: expected a whole number"),
        ("[server]\nmax_connections = 0", "server.max_connections: must be between 1 and 1000000"),
        ("[server]\nmax_body = '4MB'", "server.max_body: a size must be like"),
        ("[server]\nmax_body = 1", "server.max_body: must be between 1024 and 1073741824"),
        ("[server]\nrequest_timeout = 10", "server.request_timeout: a duration must be like"),
        ("[server]\nrequest_timeout = '0s'", "server.request_timeout: must be between 10ms and 1h"),
        ("[server]\nlisten = 2026-01-01", "server.listen: expected an IP address"),
        (
            "[server]\nadmin_listen = '127.0.0.1:8080'",
            "server.admin_listen: must not be server.listen",
        ),
        (
            "[server]\nlisten = '127.0.0.1:80'\nadmin_listen = '0.0.0.0:80'\ninsecure = true",
            "server.admin_listen: must not be server.listen, nor have its port",
        ),
        (
            "[server]\nlisten = '[::]:80'\nadmin_listen = '127.0.0.1:80'\ninsecure = true",
            "server.admin_listen: must not be server.listen, nor have its port",
        ),
        ("[server]\nlisten = '0.0.0.0:8080'", "server.listen: this is not a loopback address"),
        (
            "[server]\nadmin_listen = '[::]:9'",
            "server.admin_listen: this is not a loopback address",
        ),
        ("[log]\nlevel = 'loud'", "log.level: expected off, error, warn"),
        ("[traces]\nendpoint = 'collector'", "traces.endpoint: must be a URL such as http://"),
        ("[traces]\nsample_ratio = 2", "traces.sample_ratio: must be a number from 0 to 1"),
        ("[log]\nformat = 'xml'", "log.format: expected json or text"),
        ("[store]\nkind = 'etc'", "store.kind: expected file or etcd or inline"),
        ("[store]\nkind = 'etcd'", "store.endpoints: it is missing"),
        ("[store]\nkind = 'etcd'\nendpoints = []", "store.endpoints: there must be one"),
        (
            "[store]\nkind = 'etcd'\nendpoints = ['http://a']\ntls = { key_file = 'x' }",
            "store.tls.key_file: no such key; expected one of ca, cert, key",
        ),
        (
            "[store]\nkind = 'etcd'\nendpoints = ['http://a']\ntls = { ca = 5 }",
            "store.tls.ca: expected a path",
        ),
        ("[store]\nkind = 'etcd'\nendpoints = 'a'\ntls = 5", "store.tls: expected a table"),
        ("[store]\nkind = 'file'\npath = 5", "store.path: expected a path"),
        ("[store]\nkind = 5", "store.kind: expected a word"),
        ("store = 5", "store: expected a table"),
        ("root = [5]", "root.0: expected a table"),
        ("[[root]]\nkind = 'passphrase'\nname = 'a'\npasses = 'x'", "root.0.passes: "),
        ("root = 1", "root: expected a list"),
        ("[root]\nkind = 'local'\nname = 'a'", "root: expected a list: of values in [br"),
        ("root = []", "root: there must be one"),
        ("[[root]]\nname = 'a'", "root.0.kind: it is missing"),
        ("[[root]]\nkind = 'local'", "root.0.name: it is missing"),
        (
            "[[root]]\nkind = 'loca'\nname = 'a'",
            "root.0.kind: expected aws-kms or azure-key-vault or gcp-kms or local or passphrase",
        ),
        (
            "[[root]]\nkind = 'azure-key-vault'\nname = 'a'\nkey_id = 'k'\nalgorithm = 'RSA1_5'",
            "root.0.algorithm: expected RSA-OAEP-256 or A256KW",
        ),
        ("[[root]]\nkind = 'local'\nname = ''", "root.0.name: a root's name is 1 to 63 of a-z"),
        (
            "[[root]]\nkind = 'local'\nname = 'a'\nkey = 1",
            "root.0.key: no such key; expected one of kind, name, key_file",
        ),
        ("[chain]\nnames = 'a'", "chain.names: expected a list"),
        ("archive = 1", "archive: expected a list"),
        (
            "[[archive]]\nkind = 'tape'\nname = 'a'",
            "archive.0.kind: expected dir or s3 or gcs or azure",
        ),
        ("[[archive]]\nkind = 'dir'\nname = 'a'", "archive.0.path: it is missing"),
        (
            "[[archive]]\nkind = 'dir'\nname = 'A'\npath = 'p'",
            "archive.0.name: an archive's name is 1 to 63 of a-z",
        ),
        (
            "[[archive]]\nkind = 's3'\nname = 'a'\nurl = 'https://b'",
            "archive.0.url: must be s3://BUCKET",
        ),
        (
            "[[archive]]\nkind = 's3'\nname = 'a'\nurl = 's3://b'\nendpoint = 'http://e'",
            "archive.0.endpoint: must be a URL",
        ),
        (
            "[[archive]]\nkind = 'dir'\nname = 'a'\npath = 'p'\n\
             [[archive]]\nkind = 'dir'\nname = 'a'\npath = 'q'",
            "archive.1.name: another archive has this name",
        ),
        (
            "[store]\nkind = 'inline'\n[[archive]]\nkind = 'dir'\nname = 'a'\npath = 'p'",
            "archive: store.kind is \"inline\": nothing is stored, so there is nothing to archive",
        ),
        ("[archive_policy]\nrequire = 'most'", "archive_policy.require: expected all or any"),
        ("[chain]\nnames = ['a', 'B']", "chain.names.1: a chain name is 1 to 63"),
        ("[chain]\nnames = ['a', 'b', 'a']", "chain.names.2: this name is already in the list"),
        ("[chain]\nsuite = 'aes'", "chain.suite: expected aes-128-gcm or aes-256-gcm"),
        ("[chain]\nmax_uses = 4294967297", "chain: max_uses is at most 4294967296"),
        ("[chain]\nmax_uses = 1000", "chain: rotate_after_uses is at most max_uses"),
        ("[chain]\nrotate_after_age = '59s'", "chain: rotate_after_age is at least 60 seconds"),
        ("[chain]\ndestroy_delay = '119s'", "chain.destroy_delay: must be between 2m and 36500d"),
        ("[chain]\ndestroy_delay = '36501d'", "chain.destroy_delay: must be between 2m and 36500d"),
        (
            "[chain]\nrotate_after_age = '36501d'",
            "chain.rotate_after_age: must be between 1m and 36500d",
        ),
        ("[cache]\nkeks = 0", "cache.keks: must be between 1 and"),
        ("[cache]\noffline_grace = '59s'", "cache.offline_grace: must be between 1m and 36500d"),
        ("[cache]\ndek_max_age = '0s'", "cache.dek_max_age: must be greater than 0s"),
        ("[auth]\nmode = 'optional'", "auth.mode: expected none or required"),
        ("[auth]\nmode = 'required'", "client: auth.mode = \"required\" serves clients alone"),
        ("a = 1\n= 2", "k.toml, line 2: not valid TOML: "),
        (&format!("{root}{root}"), "root.1.name: another root has this name"),
    ] {
        let found = load(file, NOBODY).unwrap_err();
        assert!(found.starts_with(error), "{file}\nexpected: {error}\nfound:    {found}");
    }
}

#[test]
fn a_variable_that_means_nothing_is_an_error_that_names_the_right_one() {
    let error = load("", [("KMS_PROXY_SERVER__LISTEN", "0.0.0.0:8080")]).unwrap_err();
    let expected = "KMS_PROXY_SERVER__LISTEN: there is no such variable; \
                    is KMS_PROXY__SERVER__LISTEN meant?";
    assert_eq!(error, expected);
    let error = load("", [("KMS_PROXY_ROOT_0_PASSPHRASE", "hunter2")]).unwrap_err();
    assert!(error.contains("KMS_PROXY__ROOT__0__PASSPHRASE") && !error.contains("hunter2"));
    load("", [("KMS_PROXY_PORT", "tcp://10.0.0.1:8080"), ("KMS_PROXY_CA", "ca.crt")]).unwrap();
}

#[test]
fn errors_name_the_variable() {
    for (name, value, error) in [
        ("SERVER__LISTNE", "x", "server.listne (KMS_PROXY__SERVER__LISTNE): no such key"),
        ("SERVER", "x", "server (KMS_PROXY__SERVER): expected a table"),
        ("SERVER__MAX_BODY", "x", "server.max_body (KMS_PROXY__SERVER__MAX_BODY): a size must"),
        (
            "SERVER__LISTEN",
            "[::]:1",
            "server.listen (KMS_PROXY__SERVER__LISTEN): this is not a loop",
        ),
        ("SERVER__INSECURE", "1", "server.insecure (KMS_PROXY__SERVER__INSECURE): expected a bool"),
        ("CACHE__KEKS", "-1", "cache.keks (KMS_PROXY__CACHE__KEKS): expected a whole number"),
        ("CHAIN__SUITE", "x", "chain.suite (KMS_PROXY__CHAIN__SUITE): expected aes-128-gcm or"),
        ("CHAIN__NAMES", "a,B", "chain.names.1: a chain name is"),
        ("ROOT__1__KIND", "local", "root.1 (KMS_PROXY__ROOT__1__KIND): the next index is 0"),
        ("ROOT__X__KIND", "local", "root: expected a list: of values in"),
        ("", "x", "(KMS_PROXY__): no such key"),
    ] {
        let found = load("", [(&*format!("KMS_PROXY__{name}"), value)]).unwrap_err();
        assert!(found.trim_start().starts_with(error), "expected: {error}\nfound:    {found}");
    }
}

#[test]
fn a_secret_comes_from_one_place_and_never_from_the_configuration_file() {
    let root = "[[root]]\nkind = 'passphrase'\nname = 'a'\n";
    let variable = ("KMS_PROXY__ROOT__0__PASSPHRASE", "hunter2");
    let error = load(&format!("{root}passphrase = 'hunter2'"), NOBODY).unwrap_err();
    assert_eq!(
        error,
        "root.0.passphrase: a secret must not be in the file; \
         give root.0.passphrase_file or KMS_PROXY__ROOT__0__PASSPHRASE"
    );
    for (file, error) in [
        (&*format!("{root}passphrase_file = 'f'"), "given twice: passphrase_file is there too"),
        ("[[root]]\nkind = 'local'\nname = 'a'\n", "only a root of kind passphrase takes it"),
        ("", "only a root of kind passphrase takes it"),
    ] {
        let error = format!("root.0.passphrase (KMS_PROXY__ROOT__0__PASSPHRASE): {error}");
        assert_eq!(load(file, [variable]).unwrap_err(), error);
    }
    let config = load(root, [(variable.0, "hunter2 \n")]).unwrap();
    let [root::Config::Passphrase(root)] = &config.roots[..] else { panic!("another root") };
    assert_eq!(root.passphrase.as_ref().unwrap().expose(), b"hunter2");
    assert!(!format!("{config:?}{config}").contains("hunter2"));
}

#[test]
fn a_pin_comes_from_one_place_too() {
    let root = "[[root]]\nkind = 'pkcs11'\nname = 'a'\nmodule = '/m'\nslot = 1\nkey_label = 'k'\n";
    let variable = ("KMS_PROXY__ROOT__0__PIN", "hunter2\n");
    for (file, variables, error) in [
        (&*format!("{root}pin = 'hunter2'"), None, "a secret must not be in the file"),
        (&*format!("{root}pin_file = 'f'"), Some(variable), "given twice: pin_file is there too"),
        ("[[root]]\nkind = 'local'\nname = 'a'\n", Some(variable), "only a root of kind pkcs11"),
        ("", Some(("KMS_PROXY__PIN", "hunter2")), "only a root of kind pkcs11"),
    ] {
        let said = match variables {
            Some(variable) => load(file, [variable]).unwrap_err(),
            None => load(file, NOBODY).unwrap_err(),
        };
        assert!(said.contains(error) && !said.contains("hunter2"), "{said}");
    }
    let config = load(root, [variable]).unwrap();
    let [root::Config::Pkcs11(root)] = &config.roots[..] else { panic!("another root") };
    assert_eq!(root.pin.as_ref().unwrap().expose(), b"hunter2");
    assert!(!format!("{config:?}{config}").contains("hunter2"));
}

#[test]
fn a_vault_transit_root_takes_its_secrets_from_the_environment_too() {
    let vault = "[[root]]\nkind = 'vault-transit'\nname = 'a'\naddress = 'https://v'\nkey = 'k'\n";
    for secret in ["token", "secret_id"] {
        let error = load(&format!("{vault}{secret} = 'hunter2'"), NOBODY).unwrap_err();
        let wanted = format!("root.0.{secret}: a secret must not be in the file; ");
        assert!(error.starts_with(&wanted), "{error}");
        let variable = format!("KMS_PROXY__ROOT__0__{}", secret.to_uppercase());
        let given = [(&*variable, "hunter2 \n")];
        let config = load(vault, given).unwrap();
        let [root::Config::VaultTransit(root)] = &config.roots[..] else { panic!("another root") };
        let found = [&root.token, &root.secret_id].into_iter().flatten().next().unwrap();
        assert_eq!(found.expose(), b"hunter2");
        assert!(!format!("{config:?}{config}").contains("hunter2"));
        let error = load(&format!("{vault}{secret}_file = 'f'"), given).unwrap_err();
        assert!(error.ends_with(&format!("given twice: {secret}_file is there too")), "{error}");
        let error = load("[[root]]\nkind = 'local'\nname = 'a'\n", given).unwrap_err();
        assert!(error.ends_with("only a root of kind vault-transit takes it"), "{error}");
    }
    let full = "mount = 'm'\nnamespace = 'n'\nca = 'c'\ntoken_file = 't'\nrole_id = 'r'\n\
                secret_id_file = 's'\nauth_mount = 'b'\ntimeout = '1500ms'\n";
    for file in [vault.to_owned(), format!("{vault}{full}")] {
        let config = load(&file, NOBODY).unwrap();
        assert_eq!(load(&config.to_string(), NOBODY).unwrap().roots, config.roots);
    }
}

#[test]
fn the_cost_of_a_passphrase_comes_from_the_environment_too() {
    let file = "[[root]]\nkind = 'passphrase'\nname = 'a'\npasses = 4\n";
    let given = [
        ("KMS_PROXY__ROOT__0__MEMORY", "128MiB"),
        ("KMS_PROXY__ROOT__0__PASSES", "5"),
        ("KMS_PROXY__ROOT__0__LANES", "2"),
    ];
    let config = load(file, given).unwrap();
    let [root::Config::Passphrase(root)] = &config.roots[..] else { panic!("another root") };
    assert_eq!((root.memory, root.passes, root.lanes), (128 << 20, 5, 2));
    assert_eq!(load(&config.to_string(), NOBODY).unwrap().roots, config.roots);
    let wrong = [("KMS_PROXY__ROOT__0__LANES", "hunter2")];
    let error = load(file, wrong).unwrap_err();
    assert!(error.contains("expected a whole number") && !error.contains("hunter2"), "{error}");
}

#[test]
fn no_error_holds_a_value() {
    let secret = "hunter2";
    for file in [
        "[[root]]\nkind = 'hunter2'",
        "[[root]]\nkind = 'passphrase'\nname = 'hunter2 '",
        "[[root]]\nkind = 'passphrase'\nname = 'a'\npassphrase = 'hunter2",
        "[[root]]\nkind = 'passphrase'\nname = 'a'\npassphrase = hunter2",
        "[[root]]\nkind = 'passphrase'\nname = 'a'\npassphrase_file = ['hunter2']",
        "[server]\nlisten = 'hunter2'\n",
        "[server]\nmax_body = 'hunter2'\n",
        "[server]\ninsecure = 'hunter2'\n",
        "[chain]\nsuite = 'hunter2'\n",
        "[chain]\nnames = 'hunter2'\n",
        "[chain]\nrotate_after_age = 'hunter2'\n",
        "[log]\nlevel = 'hunter2'\n",
        "[log]\nformat = 'hunter2'\n",
        "[auth]\nmode = 'hunter2'\n",
    ] {
        let error = load(file, NOBODY).unwrap_err();
        assert!(!error.contains(secret), "{file}: {error}");
    }
}

#[test]
fn addresses_beyond_loopback_are_for_the_insecure() {
    // TLS alone identifies no caller. With it, health and metrics may be served to other machines.
    let tls = "[server]\ntls = { cert = 'x', key = 'y' }\n";
    let error = load(&format!("{tls}listen = '0.0.0.0:8080'"), NOBODY).unwrap_err();
    assert!(error.starts_with("server.listen: this is not a loopback address"), "{error}");
    let config = load(&format!("{tls}admin_listen = '0.0.0.0:9090'"), NOBODY).unwrap();
    assert!(!config.is_exposed());
    let config = load("[server]\nlisten = '0.0.0.0:8080'\ninsecure = true", NOBODY).unwrap();
    assert!(config.is_exposed());
    let flags = Flags { listen: Some("0.0.0.0:80".parse().unwrap()), data_dir: None };
    assert!(load_with("", NOBODY, &flags).unwrap_err().starts_with("server.listen: this is not"));
}

#[test]
fn what_is_printed_can_be_read_back() {
    for file in ["", FULL, "[store]\nkind = 'inline'\ndata_dir = '/keys'"] {
        let config = load(file, NOBODY).unwrap();
        let printed = config.to_string();
        let read = load(&printed, NOBODY).unwrap();
        assert_eq!(read.to_string(), printed);
        let Config { server, log, store, roots, service, auth, aws_api, kubernetes, audit, .. } =
            read;
        assert_eq!(read.archives, config.archives);
        assert_eq!(service.archive_policy, config.service.archive_policy);
        assert_eq!(aws_api, config.aws_api);
        assert_eq!((kubernetes, audit), (config.kubernetes, config.audit));
        assert_eq!((server, log.level, store), (config.server, config.log.level, config.store));
        assert_eq!((roots.len(), service, auth), (config.roots.len(), config.service, config.auth));
    }
    let kms = "[[root]]\nkind = 'aws-kms'\nname = 'a'\nkey_id = 'alias/a'\nregion = 'eu-west-1'\n";
    for more in ["", "endpoint = 'https://kms.example'\ntimeout = '1500ms'"] {
        let config = load(&format!("{kms}{more}"), NOBODY).unwrap();
        assert_eq!(load(&config.to_string(), NOBODY).unwrap().roots, config.roots);
    }
    let printed = load("[store]\npath = '/data'", NOBODY).unwrap().to_string();
    assert!(printed.contains("key_file = \"/data/root.key\"\n"), "{printed}");
    assert!(printed.contains("format = \""), "{printed}");
}

/// The settings that [`FULL`] has no room for: other kinds of stores, roots and clients.
const OTHERS: [&str; 10] = [
    "[audit]\nfile = '/a'\naad = 'none'\non_failure = 'continue'\nsync = '100ms'\nkeep = 3\n\
     rotate_size = '1GiB'\n[[audit.rule]]\noperations = ['encrypt']\nchains = ['a']\n\
     clients = ['b']\nlevel = 'none'",
    "[store]\nkind = 'etcd'\nendpoints = ['https://e']\nprefix = '/p'\nusername = 'u'\n\
     password_file = 'p'\ntls = { ca = 'a', cert = 'c', key = 'k' }\ntimeout = '3s'\n\
     data_dir = '/keys'",
    "[store]\nkind = 'inline'\ndata_dir = '/keys'",
    "[[root]]\nkind = 'pkcs11'\nname = 'a'\nmodule = 'm'\ntoken_label = 't'\nkey_label = 'k'",
    "[[root]]\nkind = 'aws-kms'\nname = 'a'\nkey_id = 'alias/a'\nregion = 'eu-west-1'\n\
     endpoint = 'https://kms.example'\nca = 'c'\ntimeout = '1500ms'",
    "[[root]]\nkind = 'azure-key-vault'\nname = 'a'\nkey_id = 'https://v/keys/k'\n\
     algorithm = 'A256KW'\nca = 'c'\ntimeout = '1500ms'",
    "[[root]]\nkind = 'gcp-kms'\nname = 'a'\nkey_id = 'projects/p'\nendpoint = 'https://k'\n\
     credentials_file = 'f'\nca = 'c'\ntimeout = '1500ms'",
    "[[root]]\nkind = 'vault-transit'\nname = 'a'\naddress = 'https://v'\nkey = 'k'\n\
     mount = 'm'\nnamespace = 'n'\nca = 'c'\ntoken_file = 't'\nrole_id = 'r'\n\
     secret_id_file = 's'\nauth_mount = 'b'\ntimeout = '1500ms'",
    "[[archive]]\nkind = 's3'\nname = 'a'\nurl = 's3://b'\nregion = 'r'\n\
     endpoint = 'https://e'\nca = 'c'\ntimeout = '1s'\n\
     [[archive]]\nkind = 'gcs'\nname = 'b'\nurl = 'gs://b'\nendpoint = 'https://e'\nca = 'c'\n\
     [[archive]]\nkind = 'azure'\nname = 'c'\nurl = 'az://b'\naccount = 'a'\n\
     endpoint = 'https://e'\nca = 'c'",
    "[server.tls]\ncert = 'c'\nkey = 'k'\nclient_ca = 'a'\n[auth]\nmode = 'required'\n\
     [[client]]\nname = 'a'\ntls_san = 'a.example'\nmax_in_flight = 7\nlookups_per_minute = 8\n\
     allow = [{ chains = ['orders-*'], operations = ['read', 'encrypt'] }]\n\
     [[client]]\nname = 'b'\n\
     token_sha256 = '0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'\n\
     allow = [{ chains = ['*'], operations = ['rewrap'] }]\n\
     [[client]]\nname = 'c'\nallow = [{ chains = ['*'], operations = ['rewrap'] }]\n\
     jwt = { issuer = 'i', audience = 'a', subject = 's', jwks_file = 'x' }\n\
     [[client]]\nname = 'd'\nallow = [{ chains = ['*'], operations = ['rewrap'] }]\n\
     jwt = { issuer = 'j', audience = 'a', subject = 's', jwks_url = 'https://j', \
     jwks_ca = 'c', jwks_token_file = 't' }\n\
     [[client]]\nname = 'e'\nallow = [{ chains = ['*'], operations = ['rewrap'] }]\n\
     aws_access_key_id = 'KPEXAMPLE'\naws_secret_access_key_file = 's'",
];

/// The keys that each table takes, as the error about an unknown one lists them, are the keys that
/// are printed when all of them are set.
#[test]
fn every_setting_is_printed() {
    let mut printed_of = BTreeMap::<Vec<String>, BTreeSet<String>>::new();
    for file in [FULL].into_iter().chain(OTHERS) {
        let printed: toml::Table = unchecked(file).unwrap().to_string().parse().unwrap();
        for path in tables(&printed.clone().into()) {
            let mut printed = toml::Value::from(printed.clone());
            let table = path.iter().fold(&mut printed, |value, key| match value {
                toml::Value::Array(items) => &mut items[key.parse::<usize>().unwrap()],
                table => &mut table[key.as_str()],
            });
            let table = table.as_table_mut().unwrap();
            let keys: Vec<String> = table.keys().cloned().collect();
            table.insert("unknown".to_owned(), 1.into());
            let error = unchecked(&toml::to_string(&printed).unwrap()).unwrap_err();
            let key = path.iter().map(|key| format!("{key}.")).collect::<String>();
            let wanted = format!("{key}unknown: no such key; expected ");
            let known = error.strip_prefix(&wanted).unwrap_or_else(|| panic!("{wanted} {error}"));
            let known = known.trim_start_matches("one of ").split(", ").map(str::to_owned);
            printed_of.entry(known.collect()).or_default().extend(keys);
        }
    }
    assert_eq!(printed_of.len(), 33, "{printed_of:#?}");
    for (known, printed) in printed_of {
        let known: BTreeSet<_> = known.into_iter().collect();
        assert_eq!(known, printed);
    }
}

/// The typed settings of a file, whether or not they can be used together.
fn unchecked(file: &str) -> Result<Config, String> {
    let source = source::Source::read(Some((Path::new("k.toml"), file)), []).unwrap();
    let sections = Sections::deserialize(source.tree);
    sections.map_err(|error| error.to_string()).map(|sections| sections.resolve(&Flags::default()))
}

/// The paths of a table and of all tables in it.
fn tables(value: &toml::Value) -> Vec<Vec<String>> {
    let below = |(key, value): (String, &toml::Value)| {
        tables(value).into_iter().map(move |path| [vec![key.clone()], path].concat())
    };
    match value {
        toml::Value::Table(table) => {
            let all = table.iter().map(|(key, value)| (key.clone(), value));
            [vec![Vec::new()], all.flat_map(below).collect()].concat()
        }
        toml::Value::Array(items) => {
            let all = items.iter().enumerate().map(|(index, item)| (index.to_string(), item));
            all.flat_map(below).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn an_unreadable_file_is_named() {
    let error = Config::load(Some(Path::new("/no/such/file.toml")), &Flags::default());
    assert!(error.unwrap_err().to_string().starts_with("can't read /no/such/file.toml: "));
}

#[test]
fn the_example_of_clients_in_the_documents_is_a_configuration() {
    let text = include_str!("../../docs/access.md");
    let (_, example) = text.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let config = load(example, NOBODY).unwrap();
    assert!(!config.is_exposed());
    let names: Vec<_> = config.auth.clients.iter().map(|client| &*client.name).collect();
    assert_eq!(names, ["orders", "nightly-rewrap", "invoices"]);
    assert_eq!(load(&config.to_string(), NOBODY).unwrap().auth, config.auth);
    let open = example.replace("required", "none");
    assert!(load(&open, NOBODY).unwrap_err().starts_with("server.listen: this is not a loopback"));
}

#[test]
fn a_client_from_the_environment_is_one_of_the_file() {
    let variables = [
        ("KMS_PROXY__AUTH__MODE", "required"),
        ("KMS_PROXY__CLIENT__0__NAME", "a"),
        ("KMS_PROXY__CLIENT__0__TLS_SAN", "a.example,spiffe://prod/a"),
        ("KMS_PROXY__CLIENT__0__ALLOW__0__CHAINS", "orders-*,default"),
        ("KMS_PROXY__CLIENT__0__ALLOW__0__OPERATIONS", "encrypt,read"),
        ("KMS_PROXY__CLIENT__0__MAX_IN_FLIGHT", "7"),
        ("KMS_PROXY__SERVER__TLS__CERT", "c"),
        ("KMS_PROXY__SERVER__TLS__KEY", "k"),
        ("KMS_PROXY__SERVER__TLS__CLIENT_CA", "ca"),
    ];
    let config = load("", variables).unwrap();
    let file = "[server.tls]\ncert = 'c'\nkey = 'k'\nclient_ca = 'ca'\n\
                [auth]\nmode = 'required'\n[[client]]\nname = 'a'\nmax_in_flight = 7\n\
                tls_san = ['A.example', 'spiffe://prod/a']\n\
                allow = [{ chains = ['orders-*', 'default'], operations = ['read', 'encrypt'] }]";
    assert_eq!(config.auth, load(file, NOBODY).unwrap().auth);
}

#[test]
fn clients_that_can_not_be_used_are_named() {
    let digest = "ab".repeat(32);
    let jwt = "jwt = { issuer = 'i', audience = 'a', subject = 's', ";
    let token = format!("token_sha256 = '{digest}'");
    let allow = "allow = [{ chains = ['*'], operations = ['read'] }]\n";
    let one = |more: &str| format!("[[client]]\nname = 'x'\n{allow}{more}\n");
    let other = |more: &str| one(more).replace("'x'", "'y'");
    for (clients, error) in [
        (
            one(""),
            "client.0.name: it has exactly one of tls_san, token_sha256, jwt and aws_access_key_id",
        ),
        (one(&format!("{token}\ntls_san = 'a'")), "client.0.name: it has exactly one of"),
        (one("tls_san = '*.example'"), "client.0.tls_san: it is a DNS name, a URI, an IP"),
        (one("tls_san = 'app:8443'"), "client.0.tls_san: it has a port, and names in"),
        (one("tls_san = ['a', 'CN=app']"), "client.0.tls_san: it is a field of a subject"),
        (one("token_sha256 = 'abc'"), "client.0.token_sha256: it is the SHA-256 of a token"),
        (one("token = 'hunter2'"), "client.0.token: a secret must not be in the file"),
        (one(&format!("{jwt}jwks = 'x' }}")), "client.0.jwt.jwks: no such key; expected one of"),
        (one(&format!("{jwt}}}").replace("', }", "' }")), "client.0.jwt.jwks_file: give either"),
        (
            one(&format!("{jwt}jwks_url = 'http://a.example' }}")),
            "client.0.jwt.jwks_url: it is an https URL",
        ),
        (
            one(&format!("{jwt}jwks_file = 'x', jwks_ca = 'y' }}")),
            "client.0.jwt.jwks_file: jwks_ca and",
        ),
        (
            one(&format!("{jwt}jwks_file = 'x' }}").replace("'i'", "''")),
            "client.0.jwt.issuer: it is not empty",
        ),
        (
            one("aws_access_key_id = 'KPX'"),
            "client.0.aws_access_key_id: must be 4 to 128 letters, digits and _",
        ),
        (
            one("aws_access_key_id = 'KPAA'"),
            "client.0.aws_access_key_id: its secret must be in aws_secret_access_key_file, or",
        ),
        (
            one("aws_access_key_id = 'KPAA'\naws_secret_access_key_file = 's'"),
            "client.0.aws_access_key_id: access keys are for the AWS KMS API: set aws_api.enabled",
        ),
        (
            one("aws_access_key_id = ['KPAA', 'KPAB']\naws_secret_access_key_file = 's'"),
            "client.0.aws_secret_access_key_file: it holds the secret of one aws_access_key_id",
        ),
        (
            one("aws_access_key_id = 'KPAA'\naws_secret_access_key_file = 's'")
                + &other("aws_access_key_id = 'KPAA'\naws_secret_access_key_file = 't'"),
            "client.1.aws_access_key_id: another client is known by the same",
        ),
        (
            one("aws_secret_access_key = 'hunter2'"),
            "client.0.aws_secret_access_key: no such key; expected one of name, ",
        ),
        (one(&token).replace("'x'", "'X'"), "client.0.name: it is 1 to 63"),
        (
            one(&token).replace("'read'", "'reed'"),
            "client.0.allow.0.operations.0: expected one of encrypt, ",
        ),
        (one(&token).replace("['read']", "[]"), "client.0.allow: each client may do something"),
        (
            one(&token).replace("'*'", "'A*'"),
            "client.0.allow.0.chains.0: it is the name of a chain",
        ),
        (one(&format!("{token}\nmax_in_flight = 0")), "client.0.max_in_flight: it is 1 or more"),
        (one("tls_san = 'a'"), "client.0.tls_san: clients are not asked for certificates without"),
        (one(&token) + &one("tls_san = 'a'"), "client.1.name: another client has this name"),
        (
            one(&token) + &other(&token),
            "client.1.token_sha256: another client is known by the same",
        ),
        (
            one("tls_san = 'a'") + &other("tls_san = ['b', 'A']"),
            "client.1.tls_san: another client is known by the same",
        ),
        (
            one(&format!("{jwt}jwks_file = 'x' }}"))
                + &other(&format!("{jwt}jwks_file = 'y' }}").replace("'s'", "'t'")),
            "client.1.jwt.issuer: another client's keys of this issuer are elsewhere",
        ),
    ] {
        let found = load(&format!("[auth]\nmode = 'required'\n{clients}"), NOBODY).unwrap_err();
        assert!(found.starts_with(error), "{clients}\nexpected: {error}\nfound:    {found}");
        assert!(!found.contains("hunter2"));
    }
    let error = load(&one(&token), NOBODY).unwrap_err();
    assert!(error.starts_with("auth.mode: there are clients"), "{error}");
}

#[test]
fn the_region_of_the_aws_api_is_that_of_the_first_root_in_aws_kms() {
    let region = |file: &str| load(file, NOBODY).unwrap().aws_api.region().to_owned();
    let local = "[[root]]\nkind = 'local'\nname = 'a'\n";
    let kms =
        |name: &str, rest: &str| format!("[[root]]\nkind = 'aws-kms'\nname = '{name}'\n{rest}\n");
    let arn = kms("b", "key_id = 'arn:aws:kms:eu-west-3:111122223333:key/a'");
    let other = kms("c", "key_id = 'alias/a'\nregion = 'eu-west-1'");
    assert_eq!(region(""), "us-east-1");
    assert_eq!(region(&format!("{local}{arn}{other}")), "eu-west-3");
    assert_eq!(region(&format!("{other}{arn}")), "eu-west-1");
    assert_eq!(region(&format!("{arn}[aws_api]\nregion = 'eu-north-1'")), "eu-north-1");
}

#[test]
fn calls_are_forwarded_with_the_settings_of_a_root_in_the_region() {
    let key = "[[aws_api.key]]\nkey_id = 'a'\nchain = 'orders'\n";
    let kms = "[[root]]\nkind = 'aws-kms'\nname = 'b'\nkey_id = 'alias/a'\nregion = 'eu-west-1'\n\
               endpoint = 'https://kms.example'\n";
    let found = |api: &str| {
        let config = load(&format!("{kms}[aws_api]\nenabled = true\n{api}"), NOBODY).unwrap();
        let root::Config::AwsKms(root) = config.aws_api.kms(&config.roots)? else { panic!() };
        Some((root.region, root.endpoint.is_some()))
    };
    let region = |region: &str| Some(region.to_owned());
    assert_eq!(found(""), None, "no key is mapped");
    assert_eq!(found(&format!("forward = 'none'\n{key}")), None);
    assert_eq!(found(key), Some((region("eu-west-1"), true)));
    assert_eq!(found("forward = 'all'"), Some((region("eu-west-1"), true)));
    let elsewhere = found(&format!("region = 'eu-west-2'\n{key}"));
    assert_eq!(elsewhere, Some((region("eu-west-2"), false)));
    // Its chain is created at the start.
    let config = load(&format!("[aws_api]\nenabled = true\n{key}"), NOBODY).unwrap();
    let names = config.service.chain.names.iter().map(ChainName::as_str);
    assert_eq!(names.collect::<Vec<_>>(), ["orders"]);
}
