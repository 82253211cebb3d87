//! Settings that can't be used, and what is shown of secrets.

use super::*;

fn check(more: &str) -> Result<(), String> {
    let base = "name = 'a'\naddress = 'https://vault:8200'\nkey = 'k'\n";
    toml::from_str::<Config>(&format!("{base}{more}")).map_err(|error| error.to_string())?.check()
}

#[test]
fn one_login_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "s.x\n").unwrap();
    let file = file.display();
    for (settings, error) in [
        (format!("token_file = '{file}'"), None),
        (format!("role_id = 'r'\nsecret_id_file = '{file}'"), None),
        (String::new(), Some("there is no login")),
        ("role_id = 'r'".to_owned(), Some("role_id needs a secret id")),
        (format!("secret_id_file = '{file}'"), Some("a secret id needs role_id")),
        (format!("role_id = ' '\nsecret_id_file = '{file}'"), Some("a secret id needs role_id")),
        (
            format!("token_file = '{file}'\nrole_id = 'r'\nsecret_id_file = '{file}'"),
            Some("there are two logins"),
        ),
        ("token_file = '/no/such/file'".to_owned(), Some("/no/such/file: ")),
        ("token_file = '/dev/null'".to_owned(), Some("/dev/null does not contain a token")),
        ("token = 'hunter2'".to_owned(), Some("unknown field `token`")),
        ("secret_id = 'hunter2'".to_owned(), Some("unknown field `secret_id`")),
    ] {
        match (check(&settings), error) {
            (Ok(()), None) => {}
            (Err(found), Some(error)) => assert!(found.contains(error), "{settings}: {found}"),
            (found, _) => panic!("{settings}: {found:?}"),
        }
    }
    std::fs::write(dir.path().join("secret"), "two words").unwrap();
    assert!(
        check(&format!("token_file = '{file}'")).unwrap_err().contains("does not contain a token")
    );
    std::fs::write(dir.path().join("secret"), "x".repeat(4097)).unwrap();
    assert!(
        check(&format!("token_file = '{file}'")).unwrap_err().contains("does not contain a token")
    );

    let twice = Config {
        token: secret("s.hunter2"),
        token_file: Some(PathBuf::from("f")),
        ..config("https://vault")
    };
    let error = twice.check().unwrap_err();
    assert!(error.contains("token is set twice") && !error.contains("hunter2"), "{error}");
}

#[test]
fn addresses_and_names_are_checked() {
    type Change = fn(&mut Config);
    let with = |change: Change| {
        let mut config = Config { token: secret("s.x"), ..config("https://vault.example:8200") };
        change(&mut config);
        config.check()
    };
    with(|_| {}).unwrap();
    with(|config| config.address = "http://[::1]:8200/behind/a/proxy/".to_owned()).unwrap();
    with(|config| config.mount = "/deep/transit/".to_owned()).unwrap();
    with(|config| config.namespace = Some("team/a/".to_owned())).unwrap();
    let address: [Change; 6] = [
        |config| config.address = String::new(),
        |config| config.address = "vault:8200".to_owned(),
        |config| config.address = "ftp://vault".to_owned(),
        |config| config.address = "https://user:hunter2@vault".to_owned(),
        |config| config.address = "https://vault?token=hunter2".to_owned(),
        |config| config.address = "https://vault#x".to_owned(),
    ];
    for change in address {
        let error = with(change).unwrap_err();
        assert!(error.contains("address must be a URL") && !error.contains("hunter2"), "{error}");
    }
    for address in ["https://vault:8200/v1", "https://vault:8200/behind/v1/"] {
        let config = Config { address: address.to_owned(), ..config("https://vault") };
        let error = config.check().unwrap_err();
        assert!(error.contains("address must not end in /v1"), "{error}");
    }
    let names: [(Change, &str); 9] = [
        (|config| config.mount = String::new(), "mount"),
        (|config| config.mount = "a//b".to_owned(), "mount"),
        (|config| config.mount = "a/../sys".to_owned(), "mount"),
        (|config| config.mount = "a?b".to_owned(), "mount"),
        (|config| config.key = "a/b".to_owned(), "key"),
        (|config| config.key = "..".to_owned(), "key"),
        (|config| config.key = "a b".to_owned(), "key"),
        (|config| config.namespace = Some("a\nb".to_owned()), "namespace"),
        (|config| config.auth_mount = "a%2f".to_owned(), "auth_mount"),
    ];
    for (change, name) in names {
        let error = with(change).unwrap_err();
        assert!(error.starts_with(name), "{name}: {error}");
    }
    for timeout in [Duration::from_millis(9), Duration::from_secs(11)] {
        let config = Config { token: secret("s.x"), timeout, ..config("https://vault") };
        assert_eq!(config.check().unwrap_err(), "timeout must be between 10ms and 10s");
    }
}

#[test]
fn plain_http_beyond_this_machine_is_in_the_open() {
    for (address, in_the_open) in [
        ("http://127.0.0.1:8200", false),
        ("http://[::1]:8200", false),
        ("http://localhost:8200", false),
        ("https://vault.example:8200", false),
        ("http://vault.example:8200", true),
        ("http://10.0.0.1", true),
        ("http://localhost.example", true),
    ] {
        assert_eq!(config(address).is_in_the_open(), in_the_open, "{address}");
    }
}

#[test]
fn no_secret_is_printed() {
    let config = Config {
        token: secret("hunter2"),
        secret_id: secret("hunter2"),
        ..config("https://vault")
    };
    let printed = format!("{config:?}");
    assert!(!printed.contains("hunter2") && printed.contains("https://vault"), "{printed}");
}
