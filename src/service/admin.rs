//! What operators do, each in a file of its own: chains and KEKs, roots that are added and removed,
//! and the key of a Kubernetes plugin.

mod chains;
pub(super) mod kubernetes_key;
pub(super) mod roots;
