//! Configurations, each with what comes of it: typed settings, or an error that names the key.

use super::*;

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

[log]
level = "warn,kms_proxy::http=debug"
format = "text"

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

[auth]
mode = "none"
"#;

#[test]
fn nothing_at_all_gives_the_defaults() {
    let config = Config::from_sources(None, [], &Flags::default()).unwrap();
    assert_eq!(
        config,
        Config {
            server: http::Config::default(),
            log: telemetry::Config::default(),
            store: store::Config::default(),
            roots: vec![local("local", None)],
            service: service::Config::default(),
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
    assert_eq!(config.log.format, Some(telemetry::Format::Text));
    assert_eq!(config.store.data_dir(), Path::new("/data"));
    assert_eq!(config.roots.iter().map(root::Config::name).collect::<Vec<_>>(), ["main", "old"]);
    assert_eq!(config.roots.last(), Some(&local("old", Some("/data/old.key"))));
    let service::Config { names, suite, limits, destroy_delay, wait, .. } = &config.service;
    assert_eq!(names.iter().map(ChainName::as_str).collect::<Vec<_>>(), ["orders", "invoices"]);
    assert_eq!(*suite, Suite::Aes256Gcm);
    let age = 30 * 24 * 60 * 60;
    assert_eq!(*limits, Limits { rotate_after_uses: 1000, max_uses: 2000, rotate_after_age: age });
    assert_eq!((*destroy_delay, *wait), (Duration::from_secs(120), request_timeout));
    let service::Config { dek_entries, dek_max_age, keks, .. } = config.service;
    assert_eq!((dek_entries, dek_max_age, keks), (0, Duration::from_secs(60), 1));
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
        ("KMS_PROXY__ROOT__2__NAME", "third"),
        ("KMS_PROXY__ROOT__2__KIND", "local"),
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
    assert_eq!(config.roots[1..], [local("old", Some("/data/new.key")), local("third", None)]);
    assert_eq!(config.service.names.len(), 3);
    assert_eq!(config.service.suite, Suite::Aes128Gcm);
    assert_eq!(config.service.limits.max_uses, 3000);
    assert_eq!(config.service.dek_max_age, Duration::from_secs(120));

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
        let found: Vec<_> = config.service.names.iter().map(ChainName::as_str).collect();
        assert_eq!(found, names, "{text:?}");
    }
    let error = load("", [("KMS_PROXY__CHAIN__NAMES", "[a")]).unwrap_err();
    assert_eq!(error, "chain.names (KMS_PROXY__CHAIN__NAMES): it is no TOML array");
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
        ("servr = 1", "servr: no such key; expected one of server, log, "),
        ("[server]\nlisten_on = 'x'", "server.listen_on: no such key; expected one of listen, "),
        ("[server]\ntls = { cert = 'x' }", "server.tls: no such key"),
        ("[[client]]\nname = 'x'", "client: no such key"),
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
        ("[server]\nmax_connections = 0", "server.max_connections: it is 1 to 1000000"),
        ("[server]\nmax_body = '4MB'", "server.max_body: a size is written like"),
        ("[server]\nmax_body = 1", "server.max_body: it is 1024 to 1073741824"),
        ("[server]\nrequest_timeout = 10", "server.request_timeout: a duration is written like"),
        ("[server]\nrequest_timeout = '0s'", "server.request_timeout: it is 10ms to 1h"),
        ("[server]\nlisten = 2026-01-01", "server.listen: expected an IP address"),
        ("[server]\nadmin_listen = '127.0.0.1:8080'", "server.admin_listen: it is server.listen"),
        ("[server]\nlisten = '0.0.0.0:8080'", "server.listen: it is not a loopback address"),
        ("[server]\nadmin_listen = '[::]:9'", "server.admin_listen: it is not a loopback address"),
        ("[log]\nlevel = 'loud'", "log.level: expected off, error, warn"),
        ("[log]\nformat = 'xml'", "log.format: expected json or text"),
        ("[store]\nkind = 'etcd'", "store.kind: expected file"),
        ("root = 1", "root: expected a list"),
        ("root = []", "root: there must be one"),
        ("[[root]]\nname = 'a'", "root.0.kind: it is missing"),
        ("[[root]]\nkind = 'local'", "root.0.name: it is missing"),
        ("[[root]]\nkind = 'loca'\nname = 'a'", "root.0.kind: expected local or passphrase"),
        ("[[root]]\nkind = 'local'\nname = ''", "root.0.name: it is 1 to 63 of a-z"),
        (
            "[[root]]\nkind = 'local'\nname = 'a'\nkey = 1",
            "root.0.key: no such key; expected one of kind, name, key_file",
        ),
        ("[chain]\nnames = 'a'", "chain.names: expected a list"),
        ("[chain]\nnames = ['a', 'B']", "chain.names.1: a chain name is 1 to 63"),
        ("[chain]\nnames = ['a', 'b', 'a']", "chain.names.2: this name is there already"),
        ("[chain]\nsuite = 'aes'", "chain.suite: expected aes-128-gcm or aes-256-gcm"),
        ("[chain]\nmax_uses = 4294967297", "chain: max_uses is at most 4294967296"),
        ("[chain]\nmax_uses = 1000", "chain: rotate_after_uses is at most max_uses"),
        ("[chain]\nrotate_after_age = '59s'", "chain: rotate_after_age is at least 60 seconds"),
        ("[chain]\ndestroy_delay = '119s'", "chain.destroy_delay: it is 2m to 36500d"),
        ("[chain]\ndestroy_delay = '36501d'", "chain.destroy_delay: it is 2m to 36500d"),
        ("[chain]\nrotate_after_age = '36501d'", "chain.rotate_after_age: it is 1m to 36500d"),
        ("[cache]\nkeks = 0", "cache.keks: it is 1 to"),
        ("[cache]\ndek_max_age = '0s'", "cache.dek_max_age: it is more than nothing"),
        ("[auth]\nmode = 'required'", "auth.mode: expected none"),
        ("a = 1\n= 2", "k.toml, line 2: this is no TOML: "),
        (&format!("{root}{root}"), "root.1.name: another root has this name"),
    ] {
        let found = load(file, NOBODY).unwrap_err();
        assert!(found.starts_with(error), "{file}\nexpected: {error}\nfound:    {found}");
    }
}

#[test]
fn errors_name_the_variable() {
    for (name, value, error) in [
        ("SERVER__LISTNE", "x", "server.listne (KMS_PROXY__SERVER__LISTNE): no such key"),
        ("SERVER", "x", "server (KMS_PROXY__SERVER): expected a table"),
        ("SERVER__MAX_BODY", "x", "server.max_body (KMS_PROXY__SERVER__MAX_BODY): a size is"),
        ("SERVER__LISTEN", "[::]:1", "server.listen (KMS_PROXY__SERVER__LISTEN): it is not a loop"),
        ("SERVER__INSECURE", "1", "server.insecure (KMS_PROXY__SERVER__INSECURE): expected a bool"),
        ("CACHE__KEKS", "-1", "cache.keks (KMS_PROXY__CACHE__KEKS): expected a whole number"),
        ("CHAIN__SUITE", "x", "chain.suite (KMS_PROXY__CHAIN__SUITE): expected aes-128-gcm or"),
        ("CHAIN__NAMES", "a,B", "chain.names.1: a chain name is"),
        ("ROOT__1__KIND", "local", "root.1 (KMS_PROXY__ROOT__1__KIND): the next index is 0"),
        ("ROOT__X__KIND", "local", "root: expected a list"),
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
        "root.0.passphrase: a secret does not stand in the file; \
         give root.0.passphrase_file or KMS_PROXY__ROOT__0__PASSPHRASE"
    );
    for (file, error) in [
        (
            &*format!("{root}passphrase_file = 'f'"),
            "it is given twice: passphrase_file is there too",
        ),
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
    let config = load("[server]\nlisten = '0.0.0.0:8080'\ninsecure = true", NOBODY).unwrap();
    assert!(config.is_exposed());
    let flags = Flags { listen: Some("0.0.0.0:80".parse().unwrap()), data_dir: None };
    assert!(load_with("", NOBODY, &flags).unwrap_err().starts_with("server.listen: it is not"));
}

#[test]
fn what_is_printed_can_be_read_back() {
    for file in ["", FULL] {
        let config = load(file, NOBODY).unwrap();
        let printed = config.to_string();
        let read = load(&printed, NOBODY).unwrap();
        assert_eq!(read.to_string(), printed);
        let Config { server, log, store, roots, service } = read;
        assert_eq!((server, log.level, store), (config.server, config.log.level, config.store));
        assert_eq!((roots.len(), service), (config.roots.len(), config.service));
    }
    let printed = load("[store]\npath = '/data'", NOBODY).unwrap().to_string();
    assert!(printed.contains("key_file = \"/data/root.key\"\n"), "{printed}");
    assert!(printed.contains("format = \""), "{printed}");
}

#[test]
fn an_unreadable_file_is_named() {
    let error = Config::load(Some(Path::new("/no/such/file.toml")), &Flags::default());
    assert!(error.unwrap_err().to_string().starts_with("can't read /no/such/file.toml: "));
}
