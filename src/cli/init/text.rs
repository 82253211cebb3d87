//! The configuration as text with comments. It asks, reads and writes nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use kms_proxy::status::DOCUMENTS;

use super::plan::{Identities, Plan, Root, Store};

/// The ports that it listens on.
const HTTP: u16 = 8080;
pub(super) const HTTPS: u16 = 8443;
pub(super) const ADMIN: u16 = 9090;

/// The configuration. `digest` is that of the new token.
pub(super) fn render(plan: &Plan, digest: &str, path: &Path) -> String {
    let file = word(path);
    let parts = [
        format!(
            "# Written by `kms-proxy init`. All settings: {DOCUMENTS}configuration.md\n\
             # What it lacks for production: kms-proxy check-config --production --config {file}\n"
        ),
        root(&plan.root),
        store(&plan.store),
        archive(plan),
        server(plan),
        clients(plan, digest),
        audit(plan),
        "[chain]\n\
         # Created at the start, beside the chain `default`.\n\
         # names = [\"orders\"]\n"
            .to_owned(),
    ];
    parts.join("\n")
}

/// Whether it serves other machines: without a certificate or identities, this one alone.
pub(super) fn is_open(plan: &Plan) -> bool {
    plan.tls.is_some() && plan.identities != Identities::None
}

/// What it listens on, each with its setting.
pub(super) fn addresses(plan: &Plan) -> [(&'static str, SocketAddr); 2] {
    let host = if is_open(plan) { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
    let port = if plan.tls.is_some() { HTTPS } else { HTTP };
    [("listen", port), ("admin_listen", ADMIN)].map(|(key, port)| (key, (host, port).into()))
}

fn server(plan: &Plan) -> String {
    let [(_, listen), (_, admin_listen)] = addresses(plan);
    let mut text = format!(
        "[server]\n\
         listen = \"{listen}\"\n\
         # Health and metrics, by plain HTTP and without identities: let nobody else reach it.\n\
         # The default port of Prometheus itself is 9090 too.\n\
         admin_listen = \"{admin_listen}\"\n"
    );
    if is_open(plan) {
        text += "# How long requests are served after SIGTERM, until the load balancer notices.\n\
                 drain_delay = \"5s\"\n";
    }
    if let Some(tls) = &plan.tls {
        let ca = tls.client_ca.as_deref();
        let ca = ca.map(|ca| format!(", client_ca = {}", quoted(ca))).unwrap_or_default();
        let (cert, key) = (quoted(&tls.cert), quoted(&tls.key));
        text += "# The service reads these files again when they change.\n";
        text += &format!("tls = {{ cert = {cert}, key = {key}{ca} }}\n");
    }
    text
}

fn root(root: &Root) -> String {
    let kind = match root {
        Root::AwsKms { key_id } => format!(
            "kind = \"aws-kms\"\n\
             key_id = {}\n\
             # By default the region is that of the ARN, or of AWS_REGION.\n\
             # region = \"eu-central-1\"\n",
            quoted(key_id)
        ),
        Root::AzureKeyVault { key_id } => format!(
            "kind = \"azure-key-vault\"\n\
             key_id = {}\n\
             # For an AES key of a Managed HSM. The default is for an RSA key.\n\
             # algorithm = \"A256KW\"\n",
            quoted(key_id)
        ),
        Root::GcpKms { key_id } => format!(
            "kind = \"gcp-kms\"\n\
             key_id = {}\n\
             # By default the credentials are found as Google's libraries find them.\n\
             # credentials_file = \"/etc/kms-proxy/gcp.json\"\n",
            quoted(key_id)
        ),
        Root::VaultTransit { address, key, token_file } => format!(
            "kind = \"vault-transit\"\naddress = {}\nkey = {}\n\
             # An agent must renew this token. For AppRole set role_id and secret_id_file.\n\
             token_file = {}\n",
            quoted(address),
            quoted(key),
            quoted(token_file)
        ),
        Root::Pkcs11 { module, token, key, pin_file } => format!(
            "kind = \"pkcs11\"\nmodule = {}\ntoken_label = {}\nkey_label = {}\npin_file = {}\n",
            quoted(module),
            quoted(token),
            quoted(key),
            quoted(pin_file)
        ),
        Root::Passphrase { file } => format!(
            "kind = \"passphrase\"\n\
             # Back it up: without it all data is lost.\n\
             passphrase_file = {}\n",
            quoted(file)
        ),
        Root::Local => "# For development: anyone who copies its key file can open every KEK.\n\
                        kind = \"local\"\n"
            .to_owned(),
    };
    format!(
        "# The key that wraps the KEKs. The name is part of every wrap: do not change it.\n\
         [[root]]\n\
         name = \"main\"\n{kind}"
    )
}

fn store(store: &Store) -> String {
    match store {
        Store::File { path } => format!(
            "# For one process: replicas need etcd.\n[store]\nkind = \"file\"\npath = {}\n",
            quoted(path)
        ),
        Store::Etcd { endpoints } => {
            let endpoints: Vec<_> = endpoints.iter().map(|url| quoted(url)).collect();
            format!(
                "[store]\nkind = \"etcd\"\nendpoints = [{}]\n\
                 # tls = {{ ca = \"/etc/etcd/ca.crt\", cert = \"/etc/etcd/tls.crt\", key = \
                 \"/etc/etcd/tls.key\" }}\n",
                endpoints.join(", ")
            )
        }
        Store::Inline => {
            "# No store: each envelope contains its wrapped KEK, processes share only \
                          the root,\n# and no KEK can be disabled.\n\
                          [store]\nkind = \"inline\"\n"
                .to_owned()
        }
    }
}

fn archive(plan: &Plan) -> String {
    let Some(archive) = &plan.archive else {
        return "# No archive: without backups, all data is lost with the store.\n\
                # [[archive]]\n\
                # name = \"main\"\n\
                # kind = \"s3\"\n\
                # url = \"s3://BUCKET/PREFIX\"\n"
            .to_owned();
    };
    let key = if archive.kind == "dir" {
        "# The file kms-proxy-archive must exist in it.\npath"
    } else {
        "# The credentials come from the environment.\nurl"
    };
    format!(
        "# A copy of every wrapped KEK, made before the KEK encrypts.\n\
         [[archive]]\n\
         name = \"main\"\n\
         kind = \"{}\"\n\
         {key} = {}\n",
        archive.kind,
        quoted(&archive.place)
    )
}

fn clients(plan: &Plan, digest: &str) -> String {
    let identity = match &plan.identities {
        Identities::None => {
            return "# Anyone who reaches the service may do everything.\n\
                    [auth]\nmode = \"none\"\n"
                .to_owned();
        }
        Identities::Token => format!("token_sha256 = \"{digest}\"\n"),
        Identities::Certificate { san } => format!("tls_san = {}\n", quoted(san)),
        Identities::Jwt { issuer, audience, subject, jwks } => {
            let source = if jwks.contains("://") { "jwks_url" } else { "jwks_file" };
            format!(
                "[client.jwt]\nissuer = {}\naudience = {}\nsubject = {}\n{source} = {}\n",
                quoted(issuer),
                quoted(audience),
                quoted(subject),
                quoted(jwks)
            )
        }
    };
    let operator = "name = \"operator\"\n\
                    allow = [{ chains = [\"*\"], \
                    operations = [\"read\", \"rotate\", \"manage\"] }]\n\
                    max_in_flight = 10\n";
    let operator = match plan.token_client() {
        Some("operator") => format!("[[client]]\n{operator}token_sha256 = \"{digest}\"\n"),
        _ => {
            let lines: String = operator.lines().map(|line| format!("# {line}\n")).collect();
            format!("# [[client]]\n{lines}# token_sha256 = \"from kms-proxy token new\"\n")
        }
    };
    format!(
        "[auth]\n\
         mode = \"required\"\n\
         \n\
         # One for each application, with the chains and operations that it needs.\n\
         [[client]]\n\
         name = \"app\"\n\
         allow = [{{ chains = [\"default\"], operations = [\"encrypt\", \"decrypt\", \"rewrap\", \
         \"datakey\"] }}]\n\
         max_in_flight = 1000\n\
         {identity}\n\
         # For people: it lists chains, rotates and destroys KEKs, and makes backups.\n\
         {operator}"
    )
}

fn audit(plan: &Plan) -> String {
    match &plan.audit {
        Some(target) => format!(
            "# It has a line for each decrypt, and counts encrypts; audit.rule changes that.\n\
             [audit]\nfile = {}\n",
            quoted(target)
        ),
        None => "# No audit log: nothing records who decrypted what.\n\
                 # [audit]\n\
                 # file = \"/var/log/kms-proxy/audit.jsonl\"\n"
            .to_owned(),
    }
}

/// A path as a shell takes it.
pub(super) fn word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
