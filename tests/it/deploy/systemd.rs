//! The systemd unit, by the tools of a real systemd, and what the service tells its manager. No
//! systemd starts it here.

use std::process::Command;

use rustix::process::Signal;
use tokio::net::UnixDatagram;

use crate::support::tools::printed;
use crate::support::{BINARY, Setup, root, until};

fn analyze(arguments: &[&str]) -> String {
    let missing = "systemd-analyze is not there: run `make servers`, or install Debian's systemd";
    let mut analyze = Command::new("systemd-analyze");
    let output = analyze.arg("--no-pager").args(arguments).output().expect(missing);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    printed(output);
    said
}

#[test]
fn the_unit_is_valid_and_confined() {
    let unit = std::fs::read_to_string(root().join("deploy/systemd/kms-proxy.service")).unwrap();
    let installed = "/usr/local/bin/kms-proxy";
    assert!(unit.contains(&format!("ExecStart={installed} serve ")));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kms-proxy.service");
    std::fs::write(&file, unit.replace(installed, BINARY)).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(analyze(&["verify", file]), "", "a setting that is not known is only warned of");
    // Of 100: an empty unit has 96.
    analyze(&["security", "--offline=true", "--threshold=15", file]);
}

#[tokio::test]
async fn a_service_manager_is_notified_when_the_service_is_ready_and_when_it_stops() {
    let setup = Setup::new();
    let socket = UnixDatagram::bind(setup.file("notify")).unwrap();
    let next = async || {
        let mut buffer = [0; 256];
        let received = socket.recv(&mut buffer);
        let received = tokio::time::timeout(std::time::Duration::from_secs(180), received).await;
        let len = received.expect("a notification").unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let setup = setup.clone().env("NOTIFY_SOCKET", setup.file("notify").display());
    let setup = setup.set("SERVER__DRAIN_DELAY", "1s");
    let service = setup.start().await;
    assert_eq!(next().await, "READY=1\n");
    service.encrypt("default", "aGVsbG8=").await;
    service.signal(Signal::TERM);
    assert_eq!(next().await, "STOPPING=1\n");
    assert_eq!(service.ended().await.0, Some(0));

    // A manager that is gone stops nothing.
    drop(socket);
    std::fs::remove_file(setup.file("notify")).unwrap();
    let service = setup.start().await;
    service.logged("systemd could not be notified").await;
    until("it serves", async || service.try_encrypt("default", "AAAA").await.unwrap().ok()).await;
    service.stop().await;
}
