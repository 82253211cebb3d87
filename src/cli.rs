//! The command line: parses arguments, runs a command, returns its exit code. Data goes to stdout,
//! messages to stderr.

use std::process::ExitCode;

use clap::builder::FalseyValueParser;
use clap::{Parser, Subcommand};
use clap_complete::Shell;

mod audit;
mod backup;
mod certificates;
mod chain;
mod chains;
mod check;
mod ciphertext;
mod client;
mod count;
mod data;
mod datakey;
mod doctor;
mod init;
mod inspect;
mod kek;
mod keks;
mod lines;
mod manual;
mod meter;
mod output;
mod process;
mod production;
mod progress;
mod range;
mod root;
mod serve;
mod status;
mod stdio;
mod store;
mod stream;
mod tls;
mod token;

use stdio::print;

const EXAMPLES: &str = "\
Examples:
  kms-proxy serve                           # data in ./kms-proxy-data
  echo 'my secret' | kms-proxy encrypt --aad 'row 7' > secret.kp
  kms-proxy decrypt --aad 'row 7' < secret.kp
  kms-proxy encrypt --stream < backup.tar > backup.tar.kp      # any size
  kms-proxy rotate && kms-proxy status
  kms-proxy rewrap < secret.kp > new.kp     # under the new KEK; the payload is not sent

Exit codes:
  0  success
  1  the service refused or can't be reached, the input is invalid, or a store has a problem
  2  wrong usage, or a configuration that can't be used";

/// Encryption as a service under a key chain: one call to the root key is enough for up to two
/// million encryptions.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    /// Allow debuggers and core dumps of this process
    #[arg(
        long,
        global = true,
        hide = true,
        env = "KMS_PROXY_DEBUGGABLE",
        value_parser = FalseyValueParser::new()
    )]
    debuggable: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service until SIGTERM or SIGINT
    #[command(after_help = serve::SETTINGS)]
    Serve(serve::Args),
    /// Ask six questions, and write a configuration and the token of a first client
    Init(init::Args),
    /// Check the configuration and print the effective settings, without secrets
    #[command(after_help = check::help())]
    CheckConfig(check::Args),
    /// Encrypt stdin
    Encrypt(data::EncryptArgs),
    /// Decrypt an envelope from stdin
    Decrypt(data::DecryptArgs),
    /// Rewrap an envelope from stdin under the primary KEK; its payload is not sent
    Rewrap(data::RewrapArgs),
    /// Generate a random key and its envelope
    Datakey(datakey::Args),
    /// Make a new primary KEK and print its id
    Rotate(chains::RotateArgs),
    /// Show the health of the service, its chains and its parts, and what to do about problems
    Status(chains::HealthArgs),
    /// List, create or change key chains
    #[command(subcommand)]
    Chain(chain::Command),
    /// List, disable, enable or destroy KEKs
    #[command(subcommand)]
    Kek(kek::Command),
    /// Initialise, inspect, add or remove roots
    Root(root::Args),
    /// Back up the store of a running service
    Backup(backup::Args),
    /// Copy, back up, verify or repair a store
    #[command(subcommand)]
    Store(store::Command),
    /// Verify and search the audit log
    #[command(subcommand)]
    Audit(audit::Command),
    /// Generate bearer tokens for clients
    #[command(subcommand)]
    Token(token::Command),
    /// Print the header of an envelope as JSON; needs no key and no service
    Inspect(inspect::Args),
    /// Check whether the service is ready: exit code 0 or 1
    Healthcheck(chains::HealthArgs),
    /// Test a KMS plugin of Kubernetes with the calls of kube-apiserver
    Doctor(doctor::Args),
    /// Print the OpenAPI document of the service
    Openapi,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the man page, or write those of all commands
    Man(manual::ManArgs),
    /// Print docs/command-line.md
    #[command(hide = true)]
    Reference,
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// The service refused or can't be reached, or the input is invalid.
    Refused(String),
    /// Wrong usage, or a configuration that can't be used.
    Usage(String),
    /// The message was already written, or the reader of stdout closed the pipe.
    Silent,
}

type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    fn refused(message: impl Into<String>) -> Self {
        Self::Refused(message.into())
    }
}

/// Runs the command of `cli` and reports a failure on stderr.
pub(crate) fn run(cli: Cli) -> ExitCode {
    if !cli.debuggable {
        process::hide();
    }
    let result = match cli.command {
        Command::Serve(args) => serve::serve(&args),
        Command::Init(args) => init::run(&args),
        Command::CheckConfig(args) => check::run(&args),
        Command::Encrypt(args) => client::block_on(data::encrypt(args)),
        Command::Decrypt(args) => client::block_on(data::decrypt(args)),
        Command::Rewrap(args) => client::block_on(data::rewrap(args)),
        Command::Datakey(args) => client::block_on(datakey::run(args)),
        Command::Chain(command) => client::block_on(chain::run(command)),
        Command::Rotate(args) => client::block_on(chains::rotate(args)),
        Command::Status(args) => client::block_on(status::status(args)),
        Command::Kek(command) => client::block_on(kek::run(command)),
        Command::Backup(args) => client::block_on(backup::run(args)),
        Command::Root(args) => root::run(args),
        Command::Store(command) => client::block_on(store::run(command)),
        Command::Audit(command) => audit::run(command),
        Command::Token(command) => token::run(&command),
        Command::Inspect(args) => inspect::run(args),
        Command::Healthcheck(args) => client::block_on(chains::healthcheck(args)),
        Command::Doctor(args) => client::block_on(doctor::run(args)),
        Command::Openapi => print(kms_proxy::http::openapi().as_bytes()),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man(args) => manual::man(args),
        Command::Reference => manual::reference(),
    };
    let (code, message) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Refused(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
        Err(Failure::Silent) => return ExitCode::from(1),
    };
    stdio::eprint(&message);
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_are_read() {
        for good in [
            "serve",
            "serve --config a.toml --listen 127.0.0.1:0 --data-dir /data",
            "check-config --config a.toml",
            "check-config --production --accept root-local,audit-none --accept tls-none",
            "init --root local --output a.toml --token-file a.token --non-interactive",
            "encrypt --chain orders --aad text --raw --server http://10.0.0.1:8080/",
            "decrypt --aad-base64 AA== --timeout 1m",
            "rewrap --lines --chain a",
            "rotate --chain a --force",
            "rotate --server https://kms.example --ca ca.crt --cert a.crt --key a.key",
            "status --json --admin http://127.0.0.1:9090",
            "kek disable 7841c0b3f2a94d1e8c55e02f6b9d1a37 --chain orders",
            "kek disable 7841c0b3f2a94d1e8c55e02f6b9d1a37 --force",
            "kek missing --chain a --chain b --json",
            "kek enable 7841c0b3f2a94d1e8c55e02f6b9d1a37",
            "kek destroy 7841c0b3f2a94d1e8c55e02f6b9d1a37",
            "kek destroy 7841c0b3f2a94d1e8c55e02f6b9d1a37 --yes --force",
            "root init",
            "root init --config a.toml --root hsm",
            "root status --json",
            "root rewrap --root main --chain a --chain b",
            "root remove --root main",
            "store copy --from dir:/a --to backup:/b --chain orders --chain default",
            "store copy --from config:a.toml --to config: --keep-primary",
            "store copy --from config: --to backup:-",
            "backup --to 2026-11-24.backup",
            "backup --to -",
            "chain list --json",
            "chain create orders --suite aes-256-gcm --rotate-after-age 90d --max-uses 10",
            "chain set orders --rotate-after-uses 10",
            "kek list --chain orders --json",
            "datakey --bytes 16 --chain orders --aad text --key-file data.key --raw",
            "encrypt --max-size 1GiB",
            "encrypt --stream --chain orders --aad text --output big.kp",
            "decrypt --range 1G-2G --output part",
            "decrypt --range 1M-",
            "healthcheck --json --admin http://127.0.0.1:9090",
            "store verify",
            "store verify backup:/b --config a.toml",
            "store restored --config a.toml --yes",
            "audit verify a.jsonl b.jsonl --from checkpoint",
            "audit find --chain orders --aad row --aad-key-file key --since 24h --until 1h a",
            "audit key --config a.toml",
            "token new",
            "token new --aws",
            "token new --aws --secret-key-file key",
            "encrypt --token-file a",
            "inspect",
            "inspect kp:AQID",
            "healthcheck --server http://[::1]:8080",
            "doctor --socket unix:///run/kms.sock",
            "openapi",
            "completions fish",
            "man",
            "man --out pages",
        ] {
            let arguments = std::iter::once("kms-proxy").chain(good.split(' '));
            assert!(Cli::try_parse_from(arguments).is_ok(), "{good}");
        }
        for (bad, kind) in [
            ("serve --listen localhost", ErrorKind::ValueValidation),
            ("serve extra", ErrorKind::UnknownArgument),
            ("check-config --accept root-local", ErrorKind::MissingRequiredArgument),
            ("check-config --production --accept root", ErrorKind::InvalidValue),
            ("encrypt --chain Orders", ErrorKind::ValueValidation),
            ("encrypt --aad a --aad-base64 AA==", ErrorKind::ArgumentConflict),
            ("encrypt --aad-base64 A", ErrorKind::ValueValidation),
            ("encrypt --server ftp://127.0.0.1", ErrorKind::ValueValidation),
            ("encrypt --cert a.crt", ErrorKind::MissingRequiredArgument),
            ("encrypt --server 127.0.0.1:8080", ErrorKind::ValueValidation),
            ("encrypt --timeout soon", ErrorKind::ValueValidation),
            ("rewrap --lines --raw", ErrorKind::ArgumentConflict),
            ("encrypt --max-size much", ErrorKind::ValueValidation),
            ("encrypt --range 1-2", ErrorKind::UnknownArgument),
            ("decrypt --stream", ErrorKind::UnknownArgument),
            ("decrypt --range 2-1", ErrorKind::ValueValidation),
            ("decrypt --range -1G", ErrorKind::UnknownArgument),
            ("chain create Orders", ErrorKind::ValueValidation),
            ("chain set orders --suite aes-128-gcm", ErrorKind::UnknownArgument),
            ("datakey --raw", ErrorKind::MissingRequiredArgument),
            ("datakey --bytes 8", ErrorKind::ValueValidation),
            ("kek disable 7841", ErrorKind::ValueValidation),
            ("root make", ErrorKind::InvalidSubcommand),
            ("store copy --from dir:/a", ErrorKind::MissingRequiredArgument),
            ("store copy --from /a --to dir:/b", ErrorKind::ValueValidation),
            ("store copy --from dir: --to dir:/b", ErrorKind::ValueValidation),
            ("store verify somewhere", ErrorKind::ValueValidation),
            ("token new --secret-key-file key", ErrorKind::MissingRequiredArgument),
            ("audit verify", ErrorKind::MissingRequiredArgument),
            ("audit verify a --key x", ErrorKind::ValueValidation),
            ("audit find a --since soon", ErrorKind::ValueValidation),
            ("backup", ErrorKind::MissingRequiredArgument),
            ("doctor", ErrorKind::MissingRequiredArgument),
            ("doctor --socket /run/kms.sock", ErrorKind::ValueValidation),
            ("completions cmd", ErrorKind::InvalidValue),
            ("frobnicate", ErrorKind::InvalidSubcommand),
        ] {
            let arguments = std::iter::once("kms-proxy").chain(bad.split(' '));
            let error = Cli::try_parse_from(arguments).err().map(|error| error.kind());
            assert_eq!(error, Some(kind), "{bad}");
        }
    }
}
