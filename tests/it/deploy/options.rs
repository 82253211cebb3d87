//! What can be chosen of the Helm chart: each option reaches the manifests, and the Jobs for
//! backups are run against real stores.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::helm::{example, has, helm, includes, list, one, render, template, valid};
use crate::support::etcd::Etcd;
use crate::support::tools::{printed, yaml_file};
use crate::support::{Setup, decrypt_all, root, run};

const NAME: &str = "proxy-kms-proxy";

/// The pods that manifests make, those of Jobs and tests included.
fn pods(manifests: &[Value]) -> Vec<&Value> {
    let pods = manifests.iter().filter_map(|manifest| match manifest["kind"].as_str()? {
        "Pod" => Some(&manifest["spec"]),
        "Deployment" | "DaemonSet" | "Job" => Some(&manifest["spec"]["template"]["spec"]),
        "CronJob" => Some(&manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]),
        _ => None,
    });
    pods.collect()
}

const BACKUP: [&str; 4] = [
    "--set",
    "backup.enabled=true",
    "--set",
    "restore.enabled=true,restore.file=a.backup,restore.existingClaim=",
];

#[test]
fn as_an_optional_part_of_another_chart_it_is_rendered_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let charts = dir.path().join("charts");
    std::fs::create_dir(&charts).unwrap();
    let chart = root().join("helm/kms-proxy");
    printed(Command::new("cp").arg("-r").args([&chart, &charts]).output().unwrap());
    let parent = "apiVersion: v2\nname: parent\nversion: 1.0.0\ndependencies:\n\
        - name: kms-proxy\n  version: 0.2.0\n  condition: kms-proxy.enabled\n";
    std::fs::write(dir.path().join("Chart.yaml"), parent).unwrap();
    let values = yaml_file(&root().join(example("etcd-aws-kms")));
    for enabled in [true, false] {
        let mut values = values.clone();
        values["enabled"] = json!(enabled);
        let file = dir.path().join("values.yaml");
        std::fs::write(&file, json!({"kms-proxy": values}).to_string()).unwrap();
        let parent = dir.path().to_str().unwrap();
        let manifests = valid(&printed(helm(&["template", "proxy", parent])));
        assert_eq!(has(&manifests, "Deployment"), enabled);
        assert_eq!(manifests.is_empty(), !enabled);
    }
}

#[test]
fn without_a_security_context_of_its_own_every_pod_takes_what_the_cluster_gives() {
    let keys = ["runAsUser", "runAsGroup", "fsGroup"];
    let each = keys.map(|key| format!("podSecurityContext.{key}=null"));
    let each: Vec<_> = each.iter().flat_map(|key| ["--set", key]).collect();
    for emptied in [&["--set", "podSecurityContext=null"][..], &each] {
        let manifests = render(&example("etcd-aws-kms"), &[emptied, &BACKUP[..2]].concat());
        let pods = pods(&manifests);
        assert_eq!(pods.len(), 3, "the service, its test, and the backup");
        for pod in pods {
            let expected =
                json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
            assert_eq!(pod["securityContext"], expected);
        }
    }
    // The group that kubelet gives volumes to is a group of the process.
    for pod in pods(&render(&example("file-single"), &[])) {
        let security = &pod["securityContext"];
        assert_eq!(security["fsGroup"], security["runAsGroup"]);
    }
}

#[test]
fn each_option_reaches_the_manifests() {
    let values = json!({
        "commonLabels": {"team": "crypto"},
        "extraContainers": [{"name": "agent", "image": "agent:1"}],
        "extraArgs": ["--data-dir", "/tmp/data"],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/true"]}}},
        "startupProbe": {"failureThreshold": 7},
        "livenessProbe": {"periodSeconds": 33},
        "readinessProbe": {"initialDelaySeconds": 2},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2}},
        "minReadySeconds": 11,
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.0.0.10"]},
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["hsm"]}],
        "autoscaling": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}}},
        "podDisruptionBudget": {"minAvailable": 2},
        "networkPolicy": {"egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]},
        "ingress": {
            "enabled": true,
            "className": "haproxy",
            "annotations": {"haproxy.org/ssl-passthrough": "true"},
            "hosts": [{"host": "kms.example"}],
            "tls": [{"secretName": "kms-tls", "hosts": ["kms.example"]}],
        },
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("values.yaml");
    std::fs::write(&file, values.to_string()).unwrap();
    let manifests = render(&example("etcd-aws-kms"), &["-f", file.to_str().unwrap()]);
    for manifest in &manifests {
        assert_eq!(manifest["metadata"]["labels"]["team"], "crypto", "{manifest}");
    }
    let deployment = &one(&manifests, "Deployment", NAME)["spec"];
    assert_eq!(deployment["strategy"], values["updateStrategy"]);
    assert_eq!(deployment["minReadySeconds"], 11);
    assert!(deployment["selector"]["matchLabels"]["team"].is_null(), "a selector can't change");
    let pod = &deployment["template"]["spec"];
    for key in ["dnsPolicy", "dnsConfig", "hostAliases"] {
        assert_eq!(pod[key], values[key]);
    }
    assert_eq!(pod["containers"][1], values["extraContainers"][0]);
    let container = &pod["containers"][0];
    assert_eq!(container["args"][3], "--data-dir");
    assert_eq!(container["lifecycle"], values["lifecycle"]);
    for (probe, kept) in [
        ("startupProbe", json!({"periodSeconds": 2})),
        ("livenessProbe", json!({"failureThreshold": 6})),
        ("readinessProbe", json!({"httpGet": {"path": "/readyz", "port": "admin"}})),
    ] {
        assert!(includes(&container[probe], &values[probe]), "{}", container[probe]);
        assert!(includes(&container[probe], &kept), "{}", container[probe]);
    }
    let scaler = &one(&manifests, "HorizontalPodAutoscaler", NAME)["spec"];
    assert_eq!(scaler["behavior"], values["autoscaling"]["behavior"]);
    let budget = &one(&manifests, "PodDisruptionBudget", NAME)["spec"];
    assert_eq!((&budget["minAvailable"], &budget["maxUnavailable"]), (&json!(2), &Value::Null));
    let policy = &one(&manifests, "NetworkPolicy", NAME)["spec"];
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["egress"], values["networkPolicy"]["egress"]);
    let ingress = one(&manifests, "Ingress", NAME);
    let wanted = &values["ingress"];
    assert_eq!(ingress["metadata"]["annotations"], wanted["annotations"]);
    assert_eq!(ingress["spec"]["ingressClassName"], "haproxy");
    assert_eq!(ingress["spec"]["tls"], wanted["tls"]);
    let port = &one(&manifests, "Service", NAME)["spec"]["ports"][0]["name"];
    let backend = &ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"];
    assert_eq!((&backend["name"], &backend["port"]["name"]), (&json!(NAME), port));
}

#[test]
fn the_admin_port_is_closed_to_other_namespaces_unless_they_are_named() {
    let from = |name: &str| {
        let manifests = render(&example(name), &[]);
        let ingress = &one(&manifests, "NetworkPolicy", NAME)["spec"]["ingress"][1];
        assert_eq!(ingress["ports"][0]["port"], "admin");
        ingress["from"].clone()
    };
    assert_eq!(from("inline-aws-kms"), json!([{"podSelector": {}}]));
    assert!(from("etcd-aws-kms")[0]["namespaceSelector"]["matchLabels"].is_object());
}

#[test]
fn the_document_of_the_chart_has_every_value() {
    let document = std::fs::read_to_string(root().join("helm/kms-proxy/README.md")).unwrap();
    let schema = std::fs::read(root().join("helm/kms-proxy/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let rows: Vec<_> = document.lines().filter(|line| line.starts_with("| `")).collect();
    for value in schema["properties"].as_object().unwrap().keys().filter(|key| *key != "global") {
        let quoted = format!("`{value}`");
        assert!(rows.iter().any(|row| row.contains(&quoted)), "{value} is not in the README");
    }
}

/// Runs the container of a Job with `dir` in place of its root directory.
fn run_job(pod: &Value, name: &str, dir: &Path) -> std::process::Output {
    let args = list(&pod["containers"][0]["args"]).map(|arg| {
        let arg = arg.as_str().unwrap().replace("$(POD_NAME)", name);
        let at = |path: &str| format!(":{}{path}", dir.display());
        arg.replace(":/backups", &at("/backups")).replace(":/etc", &at("/etc"))
    });
    let args: Vec<_> = args.collect();
    run(&args.iter().map(String::as_str).collect::<Vec<_>>(), b"")
}

#[tokio::test]
async fn the_backup_of_the_cron_job_comes_back_by_the_restore_job() {
    let (old, new) = (Etcd::start().await, Etcd::start().await);
    let setup = Setup::new().on_etcd(&old);
    let service = setup.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;

    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("backups")).unwrap();
    let manifests = |etcd: &Etcd, more: &[&str]| {
        let store = json!({"kind": "etcd", "endpoints": [etcd.url()]});
        let store = format!("config.store={store}");
        let manifests =
            render(&example("inline-aws-kms"), &[&["--set-json", &store], more].concat());
        let config = &one(&manifests, "ConfigMap", NAME)["data"]["kms-proxy.toml"];
        let file = dir.path().join("etc/kms-proxy/config/kms-proxy.toml");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, config.as_str().unwrap()).unwrap();
        manifests
    };
    let made = manifests(&old, &["--set", "backup.enabled=true"]);
    let cron = &one(&made, "CronJob", "-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let claim = one(&made, "PersistentVolumeClaim", "-backup");
    assert_eq!(cron["volumes"][0]["persistentVolumeClaim"]["claimName"], claim["metadata"]["name"]);
    for pod in ["proxy-1", "proxy-2"] {
        printed(run_job(cron, pod, dir.path()));
    }
    service.stop().await;

    let restore = [
        "--set",
        "backup.enabled=true,restore.enabled=true,restore.file=proxy-2.backup",
        "--set",
        "autoscaling.enabled=true",
    ];
    let made = manifests(&new, &restore);
    let job = made.iter().find(|manifest| manifest["kind"] == "Job").unwrap();
    let deployment = &one(&made, "Deployment", NAME)["spec"];
    assert_eq!(deployment["replicas"], 0, "no service may be there first");
    assert!(!has(&made, "HorizontalPodAutoscaler"));
    printed(run_job(&job["spec"]["template"]["spec"], "restore-1", dir.path()));
    let setup = setup.set("STORE__ENDPOINTS", new.url());
    decrypt_all(&setup.start().await, &[sealed]).await;
}

#[test]
fn jobs_mount_what_the_configuration_of_the_store_names() {
    let manifests = render(&example("etcd-aws-kms"), &BACKUP);
    let jobs = pods(&manifests);
    let jobs = jobs.iter().filter(|pod| pod["restartPolicy"] == "Never");
    let mounts = jobs.map(|pod| {
        let paths = list(&pod["containers"][0]["volumeMounts"]).map(|mount| &mount["mountPath"]);
        paths.cloned().collect::<Vec<_>>()
    });
    let mounts: Vec<_> = mounts.collect();
    assert_eq!(mounts, [["/backups", "/etc/kms-proxy/config", "/run/secrets/etcd"]; 2]);
    // etcd of the node itself is reached as the service reaches it.
    let on_node = render(&example("kubernetes-plugin"), &BACKUP[..2]);
    assert!(pods(&on_node).iter().all(|pod| pod["hostNetwork"] == true));
    // The store `file` is in a claim, which only a restore can use: no service runs then.
    let restore = ["--set", "restore.enabled=true,restore.file=a,restore.existingClaim=b"];
    let manifests = render(&example("file-single"), &restore);
    let job = manifests.iter().find(|manifest| manifest["kind"] == "Job").unwrap();
    let volumes = &job["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["persistentVolumeClaim"]["claimName"], "b");
    assert_eq!(volumes[1]["persistentVolumeClaim"]["claimName"], "proxy-kms-proxy-data");
    assert!(template(&example("kubernetes-plugin"), &restore).stdout.is_empty());
}

#[test]
fn an_archive_of_kind_dir_is_in_a_claim_that_service_and_jobs_mount() {
    let restore = ["--set", "restore.enabled=true,restore.file=a,restore.existingClaim=b"];
    let manifests = render(&example("file-single"), &restore);
    let pods = pods(&manifests);
    let pods = pods.iter().filter(|pod| pod["containers"][0]["name"] != "healthcheck");
    let mut mounted = 0;
    for pod in pods.filter(|pod| pod["volumes"].is_array()) {
        let volume = list(&pod["volumes"]).find(|volume| volume["name"] == "archive").unwrap();
        assert_eq!(volume["persistentVolumeClaim"], json!({"claimName": "kms-proxy-archive"}));
        let mount = list(&pod["containers"][0]["volumeMounts"]);
        let mount = { mount }.find(|mount| mount["name"] == "archive").unwrap();
        assert_eq!(*mount, json!({"name": "archive", "mountPath": "/archive"}));
        mounted += 1;
    }
    assert_eq!(mounted, 2, "the service and the restore");
    let config = &one(&manifests, "ConfigMap", NAME)["data"]["kms-proxy.toml"];
    let config: toml::Value = toml::from_str(config.as_str().unwrap()).unwrap();
    assert_eq!(config["archive"][0]["path"].as_str(), Some("/archive/kms-proxy"));
    // A mount by other values counts as well.
    let other = [
        "--set-json",
        r#"archiveMounts=[]"#,
        "--set-json",
        r#"extraVolumes=[{"name":"nas","nfs":{"server":"nas","path":"/"}}]"#,
        "--set-json",
        r#"extraVolumeMounts=[{"name":"nas","mountPath":"/archive/"}]"#,
    ];
    assert!(has(&render(&example("file-single"), &other), "Deployment"));
}

#[test]
fn the_policy_of_archives_and_credentials_by_reference_reach_the_service() {
    let policy = r#"config.archive_policy={"require":"any","on_failure":"continue"}"#;
    let manifests = render(&example("pkcs11"), &["--set-json", policy]);
    let config = &one(&manifests, "ConfigMap", NAME)["data"]["kms-proxy.toml"];
    let config: toml::Value = toml::from_str(config.as_str().unwrap()).unwrap();
    assert_eq!(config["archive"][0]["endpoint"].as_str(), Some("https://minio.storage:9000"));
    assert_eq!(config["archive_policy"]["require"].as_str(), Some("any"));
    assert_eq!(config["archive_policy"]["on_failure"].as_str(), Some("continue"));
    let pod = &one(&manifests, "Deployment", NAME)["spec"]["template"]["spec"];
    let secret =
        list(&pod["containers"][0]["env"]).find(|it| it["name"] == "AWS_SECRET_ACCESS_KEY");
    let from = &secret.unwrap()["valueFrom"]["secretKeyRef"];
    assert_eq!(*from, json!({"name": "kms-proxy-archive", "key": "secret"}));
}
