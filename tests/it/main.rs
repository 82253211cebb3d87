//! The integration tests, in one binary: what can be seen from outside the library.
//!
//! Each module is one subject. A test that needs a tool which is not there fails, and names the
//! command that installs it.

#[cfg(test)]
mod api;
#[cfg(test)]
mod architecture;
#[cfg(test)]
mod archive;
#[cfg(test)]
mod archive_format;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod aws_api;
#[cfg(test)]
mod aws_kms;
#[cfg(test)]
mod azure_key_vault;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod cli_streams;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod deploy;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod files;
#[cfg(test)]
mod gcp_kms;
#[cfg(test)]
mod graceful;
#[cfg(test)]
mod hot_backup;
#[cfg(test)]
mod identities;
#[cfg(test)]
mod init;
#[cfg(test)]
mod inline;
#[cfg(test)]
mod instructions;
#[cfg(test)]
mod kubernetes;
#[cfg(test)]
mod last_used;
#[cfg(test)]
mod library;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod load_balancers;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod mistakes;
#[cfg(test)]
mod monitoring;
#[cfg(test)]
mod openapi;
#[cfg(test)]
mod outgoing;
#[cfg(test)]
mod package;
#[cfg(test)]
mod passphrase;
#[cfg(test)]
mod pkcs11;
#[cfg(test)]
mod production;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod roots;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod starting;
#[cfg(test)]
mod status;
#[cfg(test)]
mod store;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod vault_transit;
#[cfg(test)]
mod vectors;
#[cfg(test)]
mod wording;
