//! An archive in a directory of another file system, which becomes full, and is unmounted and
//! mounted again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::json;

use super::{HELLO, directory, root};
use crate::support::etcd::Etcd;
use crate::support::{Service, Setup, decrypt_all, tell, until};

/// A directory that is the root of a small file system, if this machine allows the test to mount one.
struct Disk {
    /// Where the file system is.
    disk: PathBuf,
    /// Where the archive is: what is mounted there can be unmounted without a loss.
    path: PathBuf,
    is_mounted: bool,
}

impl Disk {
    fn new(setup: &Setup) -> Self {
        let (disk, path) = (setup.file("disk"), setup.file("mounted"));
        for path in [&disk, &path] {
            super::create(path);
        }
        let options = ["-t", "tmpfs", "-o", "size=128k,mode=700", "archive"];
        let is_mounted = run("mount", &options, &disk);
        let disk = Self { disk, path, is_mounted };
        disk.attach();
        let device = |path| fs::metadata(path).unwrap().dev();
        let is_another = device(&disk.path) != device(&setup.file(""));
        assert_eq!(is_another, is_mounted);
        tell(match is_mounted {
            true => "the archive is on a second file system, a tmpfs",
            false => "the archive is on the file system of the store: this user may not mount one",
        });
        disk
    }

    /// Mounts it.
    fn attach(&self) {
        if self.is_mounted {
            assert!(run("mount", &["--bind", self.disk.to_str().unwrap()], &self.path));
        }
    }

    /// Unmounts it: an empty directory is left, as at every mount point.
    fn detach(&self) {
        if self.is_mounted {
            assert!(run("umount", &["--lazy"], &self.path));
        }
    }

    /// Leaves no space for another object; where nothing is mounted, by a limit on the size of
    /// files. The error that a write has then.
    fn fill(&self, service: &Service) -> &'static str {
        if !self.is_mounted {
            limit(service, Some(16));
            return "File too large";
        }
        let filler = self.path.join("filler");
        fs::write(&filler, vec![0; 1 << 20]).expect_err("more than it has");
        "No space left on device"
    }

    fn free(&self, service: &Service) {
        if self.is_mounted {
            fs::remove_file(self.path.join("filler")).unwrap();
        } else {
            limit(service, None);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for path in [&self.path, &self.disk] {
            if self.is_mounted {
                run("umount", &["--lazy"], path);
            }
        }
    }
}

fn run(program: &str, options: &[&str], path: &Path) -> bool {
    let output = Command::new(program).args(options).arg(path).output();
    output.is_ok_and(|output| output.status.success())
}

/// Limits the size of the files that the service writes.
fn limit(service: &Service, bytes: Option<u64>) {
    const NONE: Rlimit = Rlimit { current: None, maximum: None };
    prlimit(Some(service.pid()), Resource::Fsize, Rlimit { current: bytes, ..NONE }).unwrap();
}

/// Waits until the archive is reported with `part` in the detail.
async fn reported(service: &Service, part: &str) {
    until(part, async || {
        let (_, readiness) = service.get("/readyz").await;
        let checks = readiness["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "archive:nas").unwrap();
        assert_eq!(check["status"], "degraded", "{check}");
        check["detail"].as_str().unwrap().contains(part).then_some(())
    })
    .await;
}

/// A rotation is refused, and encrypts and decrypts continue.
async fn refuses_rotations(service: &Service, why: &str) {
    let before = service.encrypt("default", HELLO).await;
    let (status, answer) = service.post("/v1/rotate", json!({})).await;
    assert_eq!((status.as_u16(), &answer["code"]), (503, &json!("archive_unavailable")));
    assert!(answer["detail"].as_str().unwrap().contains(why), "{answer}");
    reported(service, why).await;
    let after = service.encrypt("default", HELLO).await;
    assert_eq!(before.kek_id(), after.kek_id());
    decrypt_all(service, &[before, after]).await;
}

/// Rotations succeed again.
async fn rotates(service: &Service) {
    let before = service.encrypt("default", HELLO).await;
    until("a rotation", async || {
        let (status, _) = service.post("/v1/rotate", json!({})).await;
        (status == 200).then_some(())
    })
    .await;
    let after = service.encrypt("default", HELLO).await;
    assert_ne!(before.kek_id(), after.kek_id());
    until("a complete archive", async || {
        (service.get("/readyz").await.1["status"] == "ok").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_on_another_disk_that_is_full_or_unmounted_holds_up_rotations_only() {
    let etcd = Etcd::start().await;
    let setup = Setup::new();
    let disk = Disk::new(&setup);
    fs::write(disk.path.join("kms-proxy-archive"), "").unwrap();
    let key = setup.file("root.key");
    let setup = directory(root(setup, &key), 0, &disk.path);
    let setup = setup.on_etcd(&etcd);
    let service = setup.start().await;
    let first = service.encrypt("default", HELLO).await;
    rotates(&service).await;

    let error = disk.fill(&service);
    refuses_rotations(&service, error).await;
    disk.free(&service);
    rotates(&service).await;
    let left = fs::read_dir(disk.path.join(".new")).unwrap().count();
    assert_eq!(left, 0, "incomplete files are removed");

    if disk.is_mounted {
        disk.detach();
        refuses_rotations(&service, "mount the disk").await;
        assert_eq!(fs::read_dir(&disk.path).unwrap().count(), 0, "nothing is written below it");
        disk.attach();
        rotates(&service).await;
    }
    service.stop().await;
    // What the directory holds is complete.
    let setup = setup.set("STORE__PREFIX", "/empty");
    let service = setup.start().await;
    decrypt_all(&service, &[first]).await;
}
