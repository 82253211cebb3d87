//! Files and directories as the service finds them: the modes that Kubernetes gives to volumes,
//! directories that other users can write to, and pipes in place of files.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{Setup, decrypt_all, run};

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn mkfifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// What kubelet does to a volume of a pod with `fsGroup`, here with the group of this process.
fn give_to_group(directory: &Path) {
    set_mode(directory, 0o2770);
    for entry in std::fs::read_dir(directory).unwrap() {
        set_mode(&entry.unwrap().path(), 0o660);
    }
}

/// A Secret with one key as kubelet mounts it, and where the key is.
fn mount_secret(volume: &Path, key: &str, contents: &[u8]) -> PathBuf {
    std::fs::create_dir_all(volume.join("..2026_11_28")).unwrap();
    std::fs::write(volume.join("..2026_11_28").join(key), contents).unwrap();
    set_mode(&volume.join("..2026_11_28").join(key), 0o440);
    symlink("..2026_11_28", volume.join("..data")).unwrap();
    symlink(Path::new("..data").join(key), volume.join(key)).unwrap();
    set_mode(volume, 0o3777);
    volume.join(key)
}

#[tokio::test]
async fn a_store_and_its_key_file_open_again_after_kubelet_gave_them_to_the_group_of_the_pod() {
    let setup = Setup::new();
    let service = setup.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    service.stop().await;
    give_to_group(&setup.data());
    let service = setup.start().await;
    decrypt_all(&service, std::slice::from_ref(&sealed)).await;
    service.stop().await;

    let key = std::fs::read(setup.data().join("root.key")).unwrap();
    std::fs::remove_file(setup.data().join("root.key")).unwrap();
    let key = mount_secret(&setup.file("secret"), "root.key", &key);
    let setup = setup.set("ROOT__0__KIND", "local").set("ROOT__0__NAME", "local");
    let setup = setup.set("ROOT__0__KEY_FILE", key.display());
    decrypt_all(&setup.start().await, &[sealed]).await;
}

#[tokio::test]
async fn a_data_directory_that_others_can_write_to_is_refused_with_the_command_that_repairs_it() {
    let setup = Setup::new();
    setup.start().await.stop().await;
    let data = setup.data();
    let data = data.to_str().unwrap();
    for (mode, repair) in [
        (0o777, format!("chmod go-w {data}")),
        (0o1777, format!("use a dedicated directory, such as {data}/kms-proxy")),
    ] {
        set_mode(&setup.data(), mode);
        let (code, log) = setup.fails().await;
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(&format!("its mode is {mode:04o}")) && log.contains(&repair), "{log}");
        let checked = setup.run(&["check-config", "--data-dir", data]);
        let said = String::from_utf8(checked.stderr).unwrap();
        assert!(checked.status.code() == Some(2) && said.contains(&repair), "{said}");
    }
    set_mode(&setup.data(), 0o777);
    let repaired = std::process::Command::new("chmod").args(["go-w", data]).status().unwrap();
    assert!(repaired.success());
    setup.start().await.stop().await;
}

#[tokio::test]
async fn a_named_pipe_in_place_of_any_file_is_refused_and_holds_up_no_start() {
    let pipe = |setup: &Setup| {
        mkfifo(&setup.file("pipe"));
        setup.file("pipe")
    };
    let in_data = |name: &str| {
        let setup = Setup::new();
        std::fs::create_dir(setup.data()).unwrap();
        set_mode(&setup.data(), 0o700);
        mkfifo(&setup.data().join(name));
        setup
    };
    let root = |kind: &str| Setup::new().set("ROOT__0__NAME", "a").set("ROOT__0__KIND", kind);
    let config = Setup::new();
    let config = config.clone().env("KMS_PROXY_CONFIG", pipe(&config).display());
    let passphrase = root("passphrase");
    let passphrase =
        passphrase.clone().set("ROOT__0__PASSPHRASE_FILE", pipe(&passphrase).display());
    let etcd = Setup::new().set("STORE__KIND", "etcd").set("STORE__USERNAME", "a");
    let etcd = etcd.set("STORE__ENDPOINTS", "http://127.0.0.1:1");
    let password = etcd.clone().set("STORE__PASSWORD_FILE", pipe(&etcd).display());
    let vault = root("vault-transit").set("ROOT__0__ADDRESS", "https://127.0.0.1:1");
    let vault = vault.set("ROOT__0__KEY", "kek");
    let token = vault.clone().set("ROOT__0__TOKEN_FILE", pipe(&vault).display());
    let tls = Setup::new();
    let tls = tls.clone().set("SERVER__TLS__CERT", pipe(&tls).display());
    let tls = tls.clone().set("SERVER__TLS__KEY", tls.file("pipe").display());
    for (what, setup) in [
        ("root.key", in_data("root.key")),
        ("store.redb", in_data("store.redb")),
        ("the configuration", config),
        ("passphrase_file", passphrase),
        ("password_file", password),
        ("token_file", token),
        ("tls.cert", tls),
    ] {
        let (code, log) = setup.fails().await;
        assert!(matches!(code, Some(1 | 2)), "{what}: {code:?} {log}");
        let is_named = log.contains("it is a named pipe") || log.contains("pipe is a pipe");
        assert!(is_named, "{what}: {log}");
    }

    // A start does not need the keys of an issuer.
    let config = Setup::new();
    let text = format!(
        "[auth]\nmode = 'required'\n[[client]]\nname = 'a'\n\
         allow = [{{ chains = ['*'], operations = ['read'] }}]\n[client.jwt]\nissuer = 'a'\n\
         audience = 'a'\nsubject = 'a'\njwks_url = 'http://127.0.0.1:1'\njwks_token_file = '{}'\n",
        pipe(&config).display()
    );
    std::fs::write(config.file("config"), text).unwrap();
    let config = config.clone().env("KMS_PROXY_CONFIG", config.file("config").display());
    let service = config.start().await;
    service.logged("it is a named pipe").await;
    service.stop().await;
}

#[tokio::test]
async fn a_backup_is_read_from_a_pipe_and_not_from_what_has_no_end() {
    let setup = Setup::new();
    setup.start().await.stop().await;
    let from = format!("dir:{}", setup.data().display());
    let (file, to) = (setup.file("backup"), format!("dir:{}", setup.file("new").display()));
    let at = format!("backup:{}", file.display());
    assert!(run(&["store", "copy", "--from", &from, "--to", &at], b"").status.success());
    let copy =
        |from: &str, input: &[u8]| run(&["store", "copy", "--from", from, "--to", &to], input);
    let backup = std::fs::read(file).unwrap();
    for (from, input, said) in [
        ("backup:/dev/zero", &b""[..], "it is a device, not a regular file"),
        // 4 KiB are enough to know.
        ("backup:/dev/stdin", &[0; 100_000], "this is no backup of kms-proxy"),
    ] {
        let output = copy(from, input);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{output:?}");
    }
    let output = copy("backup:/dev/stdin", &backup);
    assert!(output.status.success(), "{output:?}");
}
