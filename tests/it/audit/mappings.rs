//! The filters that convert lines of the log for other programs, over lines of the real binary.

use std::process::Command;

use super::*;
use crate::support::tools::printed;

/// What a filter makes of the log, one value for each line.
fn mapped(setup: &Setup, filter: &str) -> Vec<Value> {
    let mut jq = Command::new("jq");
    jq.arg("-c").arg("-f").arg(root().join("deploy/audit").join(filter));
    let output = jq.arg(setup.file("audit.jsonl")).output();
    let text = printed(output.expect("jq is missing; run `make servers`"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn the_filters_convert_every_line_about_an_event() {
    let setup = full().set("CHAIN__NAMES", "orders");
    let (token, digest) = run_token();
    let config = setup.file("kms-proxy.toml");
    let client = format!(
        "[[client]]\nname = 'billing'\ntoken_sha256 = '{digest}'\n\
         allow = [{{ chains = ['orders'], operations = ['encrypt', 'decrypt'] }}]\n"
    );
    std::fs::write(&config, client).unwrap();
    let setup = setup.env("KMS_PROXY_CONFIG", config.display()).set("AUTH__MODE", "required");
    let service = setup.start().await;
    let bearer = format!("Bearer {token}");
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let good = [("authorization", &*bearer), ("traceparent", &*traceparent)];
    let body = r#"{"chain":"orders","plaintext":"aGVsbG8=","aad":"cm93IDc="}"#;
    assert_eq!(call(&service, "one", Method::POST, "/v1/encrypt", &good, body).await, 200);
    assert_eq!(call(&service, "two", Method::POST, "/v1/encrypt", &[], body).await, 401);
    service.stop().await;

    let events = events(&log(&setup));
    let at = |id: &str| events.iter().position(|it| it["request_id"] == id).unwrap();
    let (one, two) = (at("one"), at("two"));
    let (address, port) = events[one]["peer"].as_str().unwrap().rsplit_once(':').unwrap();
    let port: u16 = port.parse().unwrap();

    let ocsf = mapped(&setup, "ocsf.jq");
    assert_eq!(ocsf.len(), events.len());
    for (line, event) in ocsf.iter().zip(&events) {
        assert_eq!(line["class_uid"], 6003, "{line}");
        let activity = line["activity_id"].as_u64().unwrap();
        assert_eq!(line["type_uid"], 600_300 + activity, "{line}");
        let time = line["time"].as_u64().unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(time);
        let time = kms_proxy::audit::sealer::rfc3339_millis(time);
        assert_eq!(event["time"], *time, "{line}");
        assert_eq!(line["status_code"], event["outcome"]);
    }
    assert_eq!(ocsf[one]["actor"]["user"]["name"], "billing");
    assert_eq!(ocsf[one]["src_endpoint"], json!({"ip": address, "port": port}));
    assert_eq!(ocsf[one]["resources"][0], json!({"type": "chain", "name": "orders"}));
    assert_eq!((&ocsf[one]["status_id"], &ocsf[two]["status_id"]), (&json!(1), &json!(2)));

    assert_eq!(ocsf[one]["metadata"]["correlation_uid"], TRACE);
    assert_eq!(ocsf[two]["metadata"]["correlation_uid"], Value::Null);

    let ecs = mapped(&setup, "ecs.jq");
    assert_eq!(ecs.len(), events.len());
    for (line, event) in ecs.iter().zip(&events) {
        assert_eq!(line["@timestamp"], event["time"]);
        assert_eq!(line["event"]["action"], event["operation"]);
    }
    assert_eq!(ecs[one]["trace"]["id"], TRACE);
    assert_eq!(ecs[one]["user"]["name"], "billing");
    assert_eq!(ecs[one]["source"], json!({"ip": address, "port": port}));
    assert_eq!(ecs[one]["kms_proxy"]["aad"], events[one]["aad"]);
    assert_eq!(ecs[two]["event"]["outcome"], "failure");
    assert_eq!(ecs[two]["event"]["reason"], "unauthenticated");

    let cloud = mapped(&setup, "cloudevents.jq");
    assert_eq!(cloud.len(), events.len());
    let mut ids = BTreeSet::new();
    for (line, event) in cloud.iter().zip(&events) {
        assert_eq!(line["specversion"], "1.0");
        assert_eq!(&line["data"], event);
        assert!(ids.insert(line["id"].as_str().unwrap().to_owned()), "{line}");
    }
    assert_eq!(cloud[one]["type"], "kms-proxy.audit.encrypt");
    assert_eq!(cloud[one]["subject"], "orders");
}
