//! The Helm chart, by a real `helm`: each example is linted, rendered, valid, and its configuration
//! is one that the service takes; what can't be meant is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::{Value, json};

use super::check_config;
use crate::support::lines::Lines;
use crate::support::tools::{printed, test_env, yaml_file};
use crate::support::{root, tell};

/// The oldest that the chart is for, one between, and the newest that there are schemas of.
const KUBERNETES: [&str; 3] = ["1.27", "1.32", "1.37"];

/// What every container must have.
const CONFINED: &str = r#"{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]},"readOnlyRootFilesystem":true}"#;

pub(super) fn helm(arguments: &[&str]) -> Output {
    // Without a home directory it reads no configuration of this machine.
    let home = tempfile::tempdir().unwrap();
    let mut helm = Command::new(test_env("helm"));
    helm.args(arguments).current_dir(root()).env_clear().env("HOME", home.path()).output().unwrap()
}

/// The files below `helm/examples`, in order.
fn examples() -> Vec<PathBuf> {
    let files = std::fs::read_dir(root().join("helm/examples")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

pub(super) fn example(name: &str) -> String {
    format!("helm/examples/{name}.yaml")
}

/// What `helm template` makes of an example; `more` are further arguments.
pub(super) fn template(example: &str, more: &[&str]) -> Output {
    let chart = ["template", "proxy", "helm/kms-proxy", "--namespace", "crypto", "-f", example];
    helm(&[&chart[..], more].concat())
}

/// The manifests of an example, all of them valid.
pub(super) fn render(example: &str, more: &[&str]) -> Vec<Value> {
    valid(&printed(template(example, more)))
}

/// The manifests in YAML, all of them valid.
pub(super) fn valid(manifests: &str) -> Vec<Value> {
    // One process for all tests: it keeps the schemas, which are large.
    static VALIDATOR: LazyLock<Mutex<Lines>> = LazyLock::new(|| {
        let mut command = Command::new(test_env("python"));
        command.arg(root().join("tests/deploy/manifests.py")).args(KUBERNETES);
        Mutex::new(Lines::start(command))
    });
    let mut validator = VALIDATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = validator.good(&json!(manifests));
    serde_json::from_value(answer).unwrap()
}

/// Calls `check` with each item, on several threads: most of the time each waits for a process.
pub(super) fn each<T: Sync>(items: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(item);
                }
            });
        }
    });
}

/// The one manifest of this kind whose name ends like that.
pub(super) fn one<'a>(manifests: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_it = |manifest: &&Value| {
        manifest["kind"] == kind && manifest["metadata"]["name"].as_str().unwrap().ends_with(name)
    };
    let found: Vec<_> = manifests.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{kind} {name}: {found:?}");
    found[0]
}

pub(super) fn has(manifests: &[Value], kind: &str) -> bool {
    manifests.iter().any(|manifest| manifest["kind"] == kind)
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Whether `whole` has every member of `part`.
pub(super) fn includes(whole: &Value, part: &Value) -> bool {
    part.as_object().unwrap().iter().all(|(key, value)| whole[key] == *value)
}

#[test]
fn each_example_is_linted_rendered_valid_and_configures_the_service() {
    let examples = examples();
    assert!(examples.len() >= 5);
    each(&examples, |path| {
        let file = path.to_str().unwrap();
        printed(helm(&["lint", "--strict", "helm/kms-proxy", "-f", file]));
        let manifests = render(file, &[]);
        let workload = manifests
            .iter()
            .find(|manifest| manifest["kind"] == "Deployment" || manifest["kind"] == "DaemonSet");
        let pod = &workload.unwrap()["spec"]["template"];
        what_every_pod_has(pod, file);
        let config = one(&manifests, "ConfigMap", "proxy-kms-proxy");
        let dir = tempfile::tempdir().unwrap();
        let paths = check_config(config["data"]["kms-proxy.toml"].as_str().unwrap(), dir.path());
        for path in paths {
            assert!(is_mounted(&pod["spec"], &path), "{file}: {} is not mounted", path.display());
        }
        // What selects pods selects these.
        for selector in ["Service", "PodDisruptionBudget", "NetworkPolicy"] {
            for manifest in manifests.iter().filter(|manifest| manifest["kind"] == selector) {
                let spec = &manifest["spec"];
                let labels =
                    [&spec["selector"]["matchLabels"], &spec["podSelector"]["matchLabels"]];
                let labels = labels.into_iter().find(|labels| labels.is_object());
                let labels = labels.unwrap_or(&spec["selector"]);
                assert!(includes(&pod["metadata"]["labels"], labels), "{file}: {manifest}");
            }
        }
    });
    tell(&format!("Helm examples that were linted, rendered, validated: {}", examples.len()));
}

/// Not root, nothing writable, no token unless it is asked for, secrets by reference.
fn what_every_pod_has(pod: &Value, file: &str) {
    let spec = &pod["spec"];
    let security = &spec["securityContext"];
    assert_eq!(security["runAsNonRoot"], true, "{file}");
    assert!(security["runAsUser"].as_u64().unwrap() > 0, "{file}");
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{file}");
    assert!(spec["automountServiceAccountToken"].is_boolean(), "{file}");
    let confined: Value = serde_json::from_str(CONFINED).unwrap();
    for container in list(&spec["containers"]).chain(list(&spec["initContainers"])) {
        assert_eq!(container["securityContext"], confined, "{file}");
    }
    let container = &spec["containers"][0];
    for (probe, path) in
        [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
    {
        let ask = &container[probe]["httpGet"];
        assert_eq!((&ask["path"], &ask["port"]), (&json!(path), &json!("admin")), "{file}");
    }
    assert!(container["resources"]["limits"]["memory"].is_string(), "{file}");
    for volume in list(&spec["volumes"]).filter(|volume| volume["secret"].is_object()) {
        assert_eq!(volume["secret"]["defaultMode"], 0o440, "{file}: {volume}");
    }
}

/// Whether a path of the configuration is something that the container sees.
fn is_mounted(pod: &Value, path: &Path) -> bool {
    let mut mounts = list(&pod["containers"][0]["volumeMounts"]);
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    mounts.any(|mount| path.starts_with(mount["mountPath"].as_str().unwrap()))
        || pod["automountServiceAccountToken"] == true && path.starts_with(token)
}

#[test]
fn wrong_values_are_refused() {
    let etcd = example("etcd-aws-kms");
    let file = example("file-single");
    let inline = example("inline-aws-kms");
    let changes = [
        (&etcd, "replicaCount=3", "replicaCount"),
        (&etcd, "replicas=0", "replicas"),
        (&etcd, "kind=StatefulSet", "kind"),
        (&etcd, "config.server.listen=0.0.0.0:80", "listen"),
        (&etcd, "config.store.kind=redis", "kind"),
        (&etcd, "config.store.endpoint=x", "endpoint"),
        (&etcd, "config.store.password=hunter2", "password"),
        (&etcd, "config.root=[]", "root"),
        (&etcd, "config.root[0].kind=kms", "kind"),
        (&etcd, "config.root[0].pin=\"1234\"", "pin"),
        (&etcd, "config.root[0].key_id=null", "key_id"),
        (&etcd, "config.chain.max_uses=5000000000", "max_uses"),
        (&etcd, "config.chain.suite=\"aes-128-cbc\"", "suite"),
        (&etcd, "config.client[0].allow[0].operations=[\"decode\"]", "operations"),
        (&etcd, "config.client[0].token=\"kpt_1\"", "token"),
        (&etcd, "config.auth.mode=\"basic\"", "mode"),
        (&etcd, "env=[{\"name\":\"AWS_SECRET_ACCESS_KEY\",\"value\":\"x\"}]", "valueFrom"),
        (&etcd, "env=[{\"name\":\"KMS_PROXY__ROOT__0__PIN\",\"value\":\"x\"}]", "valueFrom"),
        (&etcd, "env=[{\"name\":\"AZURE_STORAGE_ACCOUNT_KEY\",\"value\":\"x\"}]", "valueFrom"),
        (&etcd, "config.archive[0].kind=\"tape\"", "kind"),
        (&etcd, "config.archive[0].secret=\"x\"", "secret"),
        (&etcd, "config.archive[0].url=\"gs://b\"", "url"),
        (&etcd, "config.archive_policy.require=\"two\"", "require"),
        (
            &inline,
            "config.archive=[{\"name\":\"a\",\"kind\":\"s3\",\"url\":\"s3://b\"}]",
            "archive",
        ),
        (&file, "config.archive[0].path=\"/archived\"", "is in no volume of archiveMounts"),
        (&file, "archiveMounts=[]", "is in no volume of archiveMounts"),
        (&file, "archiveMounts[0].existingClaim=\"\"", "existingClaim"),
        (&etcd, "podSecurityContext.runAsUser=0", "runAsUser"),
        (&etcd, "listen.port=80", "port"),
        (&etcd, "image.digest=\"sha256:1\"", "digest"),
        (&etcd, "config.client=[]", "needs callers in config.client"),
        (&etcd, "tls.enabled=false", "plain HTTP"),
        (&etcd, "tls.certManager.enabled=false", "tls.existingSecret"),
        (
            &etcd,
            "tls={\"enabled\":true,\"existingSecret\":\"a\",\"clientCASecret\":\"\",\"clientCertificates\":\"required\"}",
            "needs tls.clientCASecret",
        ),
        (&etcd, "tls.clientCASecret=\"\"", "known by a certificate"),
        (&etcd, "config.auth.mode=\"none\"", "lets everyone decrypt"),
        (&etcd, "plugin.enabled=true", "DaemonSet"),
        (&etcd, "listen.address=\"127.0.0.1\"", "through a Service"),
        (&etcd, "config.root[0]={\"name\":\"a\",\"kind\":\"local\"}", "a key of its own"),
        (&file, "replicas=2", "for one process"),
        (&file, "autoscaling.enabled=true", "for one process"),
        (&file, "kind=\"DaemonSet\"", "for one process"),
        (&file, "persistence.enabled=false", "loses all keys"),
        (&file, "backup.enabled=true", "is for the store etcd"),
        (&file, "restore.enabled=true", "needs restore.file"),
        (&file, "restore={\"enabled\":true,\"file\":\"a\"}", "needs restore.existingClaim"),
        (&etcd, "backup.schedule=\"daily\"", "schedule"),
        (&etcd, "ingress.enabled=true", "needs ingress.hosts"),
        (&etcd, "livenessProbe.httpGet={}", "httpGet"),
    ];
    each(&changes, |(example, change, told)| {
        let (key, value) = change.split_once('=').unwrap();
        // A bare word is a string too.
        let json: Value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        let output = template(example, &["--set-json", &format!("{key}={json}")]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{change} is taken");
        assert!(said.contains(told), "{change}: {said}");
    });
    let output = helm(&["template", "proxy", "helm/kms-proxy"]);
    assert!(!output.status.success(), "what must be chosen has no default");
}

#[test]
fn the_chart_makes_what_a_cluster_with_operators_wants() {
    let manifests = render(&example("etcd-aws-kms"), &[]);
    let name = "proxy-kms-proxy";

    let certificate = &one(&manifests, "Certificate", name)["spec"];
    assert_eq!(certificate["issuerRef"]["kind"], "ClusterIssuer");
    assert_eq!(certificate["issuerRef"]["name"], "internal");
    assert_eq!(certificate["privateKey"]["rotationPolicy"], "Always");
    let names: Vec<_> = list(&certificate["dnsNames"]).collect();
    assert!(names.contains(&&json!("proxy-kms-proxy.crypto.svc")), "{names:?}");
    let deployment = &one(&manifests, "Deployment", name)["spec"];
    let pod = &deployment["template"]["spec"];
    let mut secrets = list(&pod["volumes"]).map(|volume| &volume["secret"]["secretName"]);
    assert!(secrets.any(|secret| *secret == certificate["secretName"]));

    let monitor = &one(&manifests, "ServiceMonitor", name);
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let service = one(&manifests, "Service", "-admin");
    let labels = &service["metadata"]["labels"];
    assert!(includes(labels, &monitor["spec"]["selector"]["matchLabels"]));
    let other = one(&manifests, "Service", name);
    let labels = &other["metadata"]["labels"];
    assert!(!includes(labels, &monitor["spec"]["selector"]["matchLabels"]), "scraped twice");
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&json!("admin"), &json!("/metrics")));
    assert_eq!(service["spec"]["ports"][0]["name"], "admin");

    let rule = one(&manifests, "PrometheusRule", name);
    let alerts = yaml_file(&root().join("helm/kms-proxy/alerts/kms-proxy.yaml"));
    assert_eq!(rule["spec"], alerts);
    let dashboard = one(&manifests, "ConfigMap", "-dashboard");
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let text = dashboard["data"]["kms-proxy.json"].as_str().unwrap();
    let file = std::fs::read(root().join("helm/kms-proxy/dashboards/kms-proxy.json")).unwrap();
    let same: (Value, Value) =
        (serde_json::from_str(text).unwrap(), serde_json::from_slice(&file).unwrap());
    assert_eq!(same.0, same.1);

    assert_eq!(deployment["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    assert!(deployment["replicas"].is_null(), "the autoscaler says how many");
    let scaler = &one(&manifests, "HorizontalPodAutoscaler", name)["spec"];
    assert_eq!(scaler["scaleTargetRef"]["name"], name);
    assert_eq!(one(&manifests, "PodDisruptionBudget", name)["spec"]["maxUnavailable"], 1);
    let spread = list(&pod["topologySpreadConstraints"]).count();
    assert_eq!(spread, 2);
    let account = one(&manifests, "ServiceAccount", name);
    let role = &account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"];
    assert_eq!(role, "arn:aws:iam::111122223333:role/kms-proxy");
    let policy = &one(&manifests, "NetworkPolicy", name)["spec"]["ingress"];
    assert_eq!(policy[0]["ports"][0]["port"], "api");
    assert!(policy[0]["from"][0]["namespaceSelector"]["matchLabels"].is_object());

    let test = one(&manifests, "Pod", "-test");
    assert_eq!(test["metadata"]["annotations"]["helm.sh/hook"], "test");
    let asked = test["spec"]["containers"][0]["args"][2].as_str().unwrap();
    assert_eq!(asked, "http://proxy-kms-proxy-admin:9090");
}

#[test]
fn each_store_gets_what_it_needs() {
    let manifests = render(&example("file-single"), &[]);
    let deployment = &one(&manifests, "Deployment", "proxy-kms-proxy")["spec"];
    assert_eq!(
        (&deployment["replicas"], &deployment["strategy"]["type"]),
        (&json!(1), &json!("Recreate"))
    );
    let claim = one(&manifests, "PersistentVolumeClaim", "-data");
    assert_eq!(claim["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    assert!(!has(&manifests, "PodDisruptionBudget"), "it would hold up the drain of its node");
    let own = ["--set", "persistence.existingClaim=mine"];
    assert!(!has(&render(&example("file-single"), &own), "PersistentVolumeClaim"));

    let manifests = render(&example("pkcs11"), &[]);
    let pod = &one(&manifests, "Deployment", "proxy-kms-proxy")["spec"]["template"]["spec"];
    let from = &pod["initContainers"][0]["volumeMounts"][0]["name"];
    assert!(list(&pod["containers"][0]["volumeMounts"]).any(|mount| mount["name"] == *from));

    let manifests = render(&example("kubernetes-plugin"), &[]);
    let pod = &one(&manifests, "DaemonSet", "proxy-kms-proxy")["spec"]["template"]["spec"];
    let volumes: Vec<_> = list(&pod["volumes"]).collect();
    assert!(volumes.iter().any(|volume| volume["hostPath"]["path"] == "/run/kms-proxy"));
    assert!(volumes.iter().all(|volume| volume["secret"].is_null()), "it must read no Secret");
    assert_eq!(pod["containers"][0]["readinessProbe"]["httpGet"]["host"], "127.0.0.1");
    // A budget can't be counted of what has no number of replicas.
    for kind in ["Service", "Pod", "PodDisruptionBudget"] {
        assert!(!has(&manifests, kind), "{kind}");
    }
}

#[test]
fn other_settings_make_other_pods_and_the_same_ones_do_not() {
    let sum = |more: &[&str]| {
        let manifests = render(&example("inline-aws-kms"), more);
        let deployment = one(&manifests, "Deployment", "proxy-kms-proxy");
        deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone()
    };
    assert_eq!(sum(&[]), sum(&["--set", "replicas=5"]));
    assert_ne!(sum(&[]), sum(&["--set", "config.cache.dek_entries=7"]));
    // The service reads its clients again by itself.
    let client = r#"config.client=[{"name":"more","token_sha256":"TOKEN","allow":[{"chains":["*"],"operations":["read"]}]}]"#;
    let client = client.replace("TOKEN", &"1".repeat(64));
    assert_eq!(sum(&[]), sum(&["--set-json", &client]));
}

#[test]
fn the_configuration_says_what_the_values_say() {
    let more = [
        r#"config.chain={"names":["orders"],"rotate_after_uses":2097152,"max_uses":4294967296}"#,
        r#"config.log.level="info,kms_proxy=debug \"<&>\" ä \\""#,
        r#"config.cache.dek_max_age="5m""#,
        "config.server.insecure=true",
        r#"config.admin={"status":true,"root_call_price":0.015}"#,
    ];
    let more: Vec<_> = more.iter().flat_map(|more| ["--set-json", more]).collect();
    let manifests = render(&example("inline-aws-kms"), &more);
    let text = &one(&manifests, "ConfigMap", "proxy-kms-proxy")["data"]["kms-proxy.toml"];
    let config: toml::Value = toml::from_str(text.as_str().unwrap()).unwrap();
    assert_eq!(config["chain"]["max_uses"].as_integer(), Some(1 << 32));
    assert_eq!(config["chain"]["rotate_after_uses"].as_integer(), Some(1 << 21));
    assert_eq!(config["chain"]["names"][0].as_str(), Some("orders"));
    assert_eq!(config["log"]["level"].as_str(), Some("info,kms_proxy=debug \"<&>\" ä \\"));
    assert_eq!(config["admin"]["root_call_price"].as_float(), Some(0.015));
    assert_eq!(config["admin"]["status"].as_bool(), Some(true));
    assert_eq!(config["server"]["insecure"].as_bool(), Some(true));
    assert_eq!(config["server"]["listen"].as_str(), Some("0.0.0.0:8080"));
    assert_eq!(config["root"][0]["key_id"].as_str(), Some("alias/kms-proxy"));
}

#[test]
fn the_values_configure_the_aws_kms_api() {
    let more = [
        r#"config.aws_api={"enabled":true,"account":"012345678901","forward_cache":"10m"}"#,
        r#"config.aws_api.key=[{"key_id":"mrk-1","aliases":["alias/orders"],"chain":"orders"}]"#,
    ];
    let more: Vec<_> = more.iter().flat_map(|more| ["--set-json", more]).collect();
    let manifests = render(&example("inline-aws-kms"), &more);
    let text = &one(&manifests, "ConfigMap", "proxy-kms-proxy")["data"]["kms-proxy.toml"];
    let text = text.as_str().unwrap();
    let config: toml::Value = toml::from_str(text).unwrap();
    let aws_api = &config["aws_api"];
    assert_eq!(aws_api["enabled"].as_bool(), Some(true));
    assert_eq!(aws_api["account"].as_str(), Some("012345678901"));
    assert_eq!(aws_api["forward_cache"].as_str(), Some("10m"));
    let key = &aws_api["key"][0];
    assert_eq!((key["key_id"].as_str(), key["chain"].as_str()), (Some("mrk-1"), Some("orders")));
    assert_eq!(key["aliases"][0].as_str(), Some("alias/orders"));
    check_config(text, tempfile::tempdir().unwrap().path());
}

/// What the chart sets itself, or gives another place among its values.
const OF_THE_CHART: [&str; 6] = [
    "kubernetes.chain",
    "kubernetes.socket",
    "server.admin_listen",
    "server.listen",
    "server.tls",
    "store.path",
];

#[test]
fn the_values_have_every_setting_and_no_other() {
    let schema = std::fs::read(root().join("helm/kms-proxy/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let mut values = BTreeSet::new();
    settings_of(&schema["properties"]["config"], "", &mut values);
    let document = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
    let documented: BTreeSet<_> = rows.flat_map(|(keys, _)| settings_in(keys)).collect();
    assert!(documented.len() > 60, "{documented:?}");
    let is_in = |part: &str, whole: &str| {
        whole == part || whole.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'))
    };
    for key in documented.iter().map(String::as_str) {
        let known = values.iter().any(|value| is_in(key, value));
        let own = OF_THE_CHART.iter().any(|own| is_in(own, key));
        assert!(known != own, "{key}: a value: {known}, set by the chart: {own}");
    }
    for value in &values {
        // Some stand in the text of others' rows.
        let known = documented.iter().any(|key| is_in(key, value))
            || document.contains(&format!("`{value}`"));
        assert!(known, "config.{value} is no setting");
    }
}

/// The settings in the first column of a row; `.b` after `x.a` is `x.b`.
fn settings_in(column: &str) -> Vec<String> {
    let mut settings = Vec::<String>::new();
    for key in column.split('`').step_by(2).filter(|key| key.contains('.')) {
        let above = settings.last().and_then(|last| last.rsplit_once('.'));
        let above = above.filter(|_| key.starts_with('.')).map_or("", |(above, _)| above);
        settings.push(format!("{above}{key}"));
    }
    settings
}

/// The paths of all settings of a schema; an item of a list is `N`, as in the document.
fn settings_of(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let inner =
        |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let mut is_leaf = true;
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        is_leaf = false;
        settings_of(schema, &inner(name), found);
    }
    for variant in list(&schema["allOf"]) {
        is_leaf = false;
        settings_of(&variant["then"], path, found);
    }
    let items = &schema["items"];
    if items["properties"].is_object() {
        is_leaf = false;
        settings_of(items, &inner("N"), found);
    }
    if is_leaf {
        found.insert(path.to_owned());
    }
}

#[test]
fn the_manifests_beside_the_chart_are_valid() {
    let text = std::fs::read_to_string(root().join("deploy/kubernetes/static-pod.yaml")).unwrap();
    let pod = &valid(&text)[0];
    what_every_pod_has(pod, "static-pod.yaml");
    let volumes: Vec<_> = list(&pod["spec"]["volumes"]).collect();
    let is_of_the_node = |volume: &&Value| volume["hostPath"].is_object();
    assert!(
        volumes.iter().all(is_of_the_node),
        "a static pod can have nothing of the API server's"
    );
    let config = std::fs::read_to_string(root().join("deploy/kubernetes/kms-proxy.toml")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for path in check_config(&config, dir.path()) {
        assert!(is_mounted(&pod["spec"], &path), "{} is not mounted", path.display());
    }
    let socket = "unix:///run/kms-proxy/kms.sock";
    assert!(config.contains(socket));
    let encryption = yaml_file(&root().join("deploy/kubernetes/encryption-configuration.yaml"));
    let kms = &encryption["resources"][0]["providers"][0]["kms"];
    assert_eq!((&kms["apiVersion"], &kms["endpoint"]), (&json!("v2"), &json!(socket)));
}
