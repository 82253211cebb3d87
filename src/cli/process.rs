//! What the process asks of the system for itself: that nobody looks at its memory, and enough file
//! descriptors.
//!
//! Root, and the same user before this ran, can still read the memory.

use rustix::process::{Resource, Rlimit};

/// Switches core dumps off, and with them ptrace, `/proc/PID/mem` and the like for all but root.
/// `kms-proxy --debuggable`, or `KMS_PROXY_DEBUGGABLE=true`, leaves it out.
pub(super) fn hide() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // If the kernel refuses, the process works without this protection.
    let limited = rustix::process::setrlimit(Resource::Core, none);
    if limited.and(no_dumps()).is_err() {
        super::stdio::tell("core dumps could not be switched off");
    }
}

#[cfg(target_os = "linux")]
fn no_dumps() -> rustix::io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

#[cfg(not(target_os = "linux"))]
fn no_dumps() -> rustix::io::Result<()> {
    Ok(())
}

/// Takes as many file descriptors as the system allows: each connection needs one, and shells give
/// 1,024. How many there are then; `None` when there is no limit.
pub(super) fn take_descriptors() -> Option<u64> {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match rustix::process::setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.current,
        Err(_) => before,
    }
}
