//! The operations of operators: chains and KEKs, adding and removing roots, and the key id of
//! Kubernetes.

mod chains;
pub(super) mod kubernetes_key;
mod listing;
mod presence;
pub(super) mod roots;
