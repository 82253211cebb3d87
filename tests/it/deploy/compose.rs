//! `docker-compose.yml` without an engine: its schema, what it mounts and whom it names, and then
//! its parts as they are, run together as processes of this machine.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::{check_config, image};
use crate::support::aws::{aws_kms, environment};
use crate::support::etcd::Etcd;
use crate::support::kms::Moto;
use crate::support::tools::{admin, printed, promtool, test_env, yaml_file};
use crate::support::{BINARY, Service, Setup, root};

fn compose() -> Value {
    yaml_file(&root().join("docker-compose.yml"))
}

fn list(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What is mounted where, of a service: files of ours alone.
fn mounts(service: &Value) -> Vec<(&str, &str)> {
    let mounts = list(&service["volumes"]).map(|volume| volume.split_once(':').unwrap());
    mounts.filter(|(source, _)| source.starts_with('.')).collect()
}

#[test]
fn the_compose_file_is_valid_and_all_that_it_names_is_there() {
    let mut check = Command::new(test_env("check-jsonschema"));
    check.args(["--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]);
    printed(check.current_dir(root()).output().unwrap());
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let volumes: BTreeSet<_> = compose["volumes"].as_object().unwrap().keys().collect();
    let mut ports = BTreeSet::new();
    for (name, service) in services {
        let image = service["image"].as_str().unwrap();
        assert!(image.contains(':') && !image.ends_with(":latest"), "{name}: {image}");
        for volume in list(&service["volumes"]) {
            let (source, rest) = volume.split_once(':').unwrap();
            if source.starts_with('.') {
                assert!(root().join(source).exists(), "{name} mounts {source}");
                assert!(rest.ends_with(":ro"), "{name} may change {source}");
            } else {
                assert!(volumes.contains(&source.to_owned()), "{name}: {source}");
            }
        }
        let after: Vec<_> = match &service["depends_on"] {
            Value::Object(after) => after.keys().map(String::as_str).collect(),
            after => list(after).collect(),
        };
        assert!(after.iter().all(|after| services.contains_key(*after)), "{name}: {after:?}");
        for port in list(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name} is there for everybody: {port}");
            assert!(ports.insert(port.rsplit_once(':').unwrap().0.to_owned()), "twice: {port}");
        }
    }
    for name in ["kms-proxy-0", "kms-proxy-1"] {
        assert_eq!(services[name]["build"], ".");
        let config = mounts(&services[name])[0];
        assert_eq!(services[name]["command"][2], config.1.trim_end_matches(":ro"));
        check_config(&read(config.0), tempfile::tempdir().unwrap().path());
    }
    let config: toml::Value = toml::from_str(&read("deploy/compose/kms-proxy.toml")).unwrap();
    let root = config["root"][0]["endpoint"].as_str().unwrap();
    let endpoints = config["store"]["endpoints"].as_array().unwrap().iter();
    let hosts = endpoints.map(|url| url.as_str().unwrap()).chain([root]);
    for url in hosts {
        let host = url.trim_start_matches("http://").split(':').next().unwrap();
        assert!(services.contains_key(host), "{url}");
    }
}

#[test]
fn prometheus_and_grafana_of_compose_find_their_files_and_each_other() {
    let compose = compose();
    let services = &compose["services"];
    let dir = tempfile::tempdir().unwrap();
    let mut config = read("deploy/compose/prometheus.yml");
    for (source, target) in mounts(&services["prometheus"]) {
        let source = root().join(source).display().to_string();
        config = config.replace(target.trim_end_matches(":ro"), &source);
    }
    let file = dir.path().join("prometheus.yml");
    std::fs::write(&file, config).unwrap();
    let said = printed(promtool(&["check", "config", file.to_str().unwrap()]));
    assert!(said.contains("30 rules found"), "{said}");
    let config = yaml_file(&file);
    for target in list(&config["scrape_configs"][0]["static_configs"][0]["targets"]) {
        let (host, port) = target.split_once(':').unwrap();
        assert!(services[host].is_object(), "{target}");
        assert_eq!(port, "9090");
    }
    let mounts = mounts(&services["grafana"]);
    let source = |target: &str| {
        let found = mounts.iter().find(|(_, to)| to.trim_end_matches(":ro") == target);
        root().join(found.unwrap_or_else(|| panic!("nothing at {target}")).0)
    };
    let data = source("/etc/grafana/provisioning/datasources").join("prometheus.yaml");
    let data = &yaml_file(&data)["datasources"][0];
    assert_eq!(
        (&data["type"], &data["url"]),
        (&json!("prometheus"), &json!("http://prometheus:9090"))
    );
    let provider = source("/etc/grafana/provisioning/dashboards").join("kms-proxy.yaml");
    let provider = yaml_file(&provider)["providers"][0]["options"]["path"].clone();
    assert!(source(provider.as_str().unwrap()).join("kms-proxy.json").exists());
}

/// The environment of a service.
fn variables<'a>(compose: &'a Value, name: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let variables = compose["services"][name]["environment"].as_object().unwrap();
    variables.iter().map(|(name, value)| (&**name, value.as_str().unwrap()))
}

/// Runs a script of the Compose file, as its container would.
async fn script(name: &str, variables: &[(&str, String)]) -> Output {
    let mut command = tokio::process::Command::new("sh");
    command.arg(root().join("deploy/compose").join(name));
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.env("NO_PROXY", "127.0.0.1").output().await.unwrap()
}

#[tokio::test]
async fn the_parts_of_the_compose_file_run_together_and_its_numbers_move() {
    let members = Etcd::cluster::<3>().await;
    let moto = Moto::start();
    let kms = format!("http://{}", moto.address);
    for _ in 0..2 {
        // The second time it finds the key that is there.
        printed(script("kms-key.sh", &[("KMS", kms.clone())]).await);
    }
    let keys = moto.call("ListKeys", json!({})).await;
    assert_eq!(keys["Keys"].as_array().unwrap().len(), 1, "{keys}");

    // The same file, with the names of containers as they are here.
    let mut config = read("deploy/compose/kms-proxy.toml");
    for (index, member) in members.iter().enumerate() {
        config = config.replace(&format!("http://etcd-{index}:2379"), &member.url());
    }
    let archive = tempfile::tempdir().unwrap();
    let (volume, path) = ("/var/lib/kms-proxy/", "/var/lib/kms-proxy/archive");
    let mounted = &compose()["services"]["kms-proxy-0"]["volumes"][1];
    assert_eq!(
        mounted.as_str(),
        Some(format!("archive:{}", volume.trim_end_matches('/')).as_str())
    );
    assert!(config.contains(path));
    config = config.replace(volume, &format!("{}/", archive.path().display()));
    config = config.replace("http://kms:5000", &kms).replace("0.0.0.0:9090", "127.0.0.1:0");
    let compose = compose();
    let start = async |name: &str| {
        let mut setup = Setup::new();
        let file = setup.file("kms-proxy.toml");
        std::fs::write(&file, &config).unwrap();
        setup = setup.env("KMS_PROXY_CONFIG", file.display());
        for (name, value) in variables(&compose, name) {
            setup =
                setup.env(name, value.replace(volume, &format!("{}/", archive.path().display())));
        }
        // A loaded etcd is not an outage.
        let setup = setup.set("STORE__TIMEOUT", "10s").set("SERVER__REQUEST_TIMEOUT", "60s");
        setup.start().await
    };
    let replicas = [start("kms-proxy-0").await, start("kms-proxy-1").await];
    let servers = replicas.each_ref().map(Service::url).join(" ");
    let load = [("SERVERS", servers), ("PAUSE", "0.05".to_owned()), ("ROUNDS", "10".to_owned())];
    let output = script("load.sh", &load).await;
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    printed(output);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for replica in &replicas {
        // As the image asks, at the address that Compose gives it.
        let mut health = Command::new(BINARY);
        health.args(image::healthcheck()).env_clear().env("KMS_PROXY_SERVER", admin(replica));
        printed(health.output().unwrap());
        let url = format!("{}/metrics", admin(replica));
        let metrics = client.get(url).send().await.unwrap().text().await.unwrap();
        let value = |name: &str| -> f64 {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
        };
        let done = |operation: &str, chain: &str, outcome: &str| {
            let labels =
                format!("chain=\"{chain}\",operation=\"{operation}\",outcome=\"{outcome}\"");
            value(&format!("kms_proxy_operations_total{{{labels}}}"))
        };
        for chain in ["default", "invoices", "orders"] {
            // 128 in a batch and one alone, ten times.
            assert_eq!(done("encrypt", chain, "ok"), 1_290.0);
            assert_eq!(done("decrypt", chain, "ok"), 30.0);
        }
        assert_eq!(done("decrypt", "default", "invalid_ciphertext"), 1.0);
        // Programs of AWS use it with any credentials, as the comment in the file says.
        let described =
            aws_kms(&environment(&replica.url()), &["describe-key", "--key-id", "alias/orders"]);
        let arn = "arn:aws:kms:eu-central-1:123456789012:key/orders";
        assert_eq!(described["KeyMetadata"]["Arn"], arn);
        assert!(value("kms_proxy_root_calls_avoided_total") > 3_900.0);
    }
    for replica in replicas {
        replica.stop().await;
    }
    for replica in ["audit-0", "audit-1"] {
        let file = archive.path().join(format!("{replica}.jsonl"));
        let lines = std::fs::read_to_string(&file).unwrap();
        let decrypts = lines.lines().filter(|line| line.contains("\"operation\":\"decrypt\""));
        // 3 chains, 10 rounds, and one that is wrong.
        assert_eq!(decrypts.count(), 3 * 30 + 1, "{lines}");
        let verified = Command::new(BINARY).args(["audit", "verify"]).arg(&file).output().unwrap();
        assert!(printed(verified).contains("0 lines not proved yet"), "{replica}");
    }
    for chain in ["default", "invoices", "orders"] {
        let objects = std::fs::read_dir(archive.path().join("archive/v1").join(chain)).unwrap();
        assert!(objects.count() >= 2, "the settings of {chain}, and its KEK");
    }
}
