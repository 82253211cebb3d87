//! The lines about a backup: one before its first byte, and one about its end.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{full, of_request, setup};
use crate::archive::{directory, many, root as with_local};
use crate::support::until;

/// The states and outcomes of the lines of a backup.
fn states(lines: &[Value]) -> Vec<(&str, &str)> {
    let text = |value: &'static str| move |line: &Value| line[value].as_str().unwrap().to_owned();
    for line in lines {
        assert_eq!((text("operation")(line), text("call")(line)), {
            ("manage".to_owned(), "GET /v1/backup".to_owned())
        });
    }
    lines
        .iter()
        .map(|it| (it["change"]["state"].as_str().unwrap(), it["outcome"].as_str().unwrap()))
        .collect()
}

#[tokio::test]
async fn a_backup_has_a_line_at_its_start_and_one_at_its_end() {
    let setup = full();
    let service = setup.start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.get(format!("{}/v1/backup", service.url())).header("x-request-id", "one");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    // A client that does not read to the end has left.
    assert!(response.bytes().await.unwrap().ends_with(b"\n"));
    let lines = until("the end", async || {
        let lines = of_request(&setup, "one");
        (lines.len() == 2).then_some(lines)
    })
    .await;
    assert_eq!(states(&lines), [("started", "ok"), ("completed", "ok")]);
    assert_eq!((&lines[1]["auth"], &lines[1]["api"]), (&json!("none"), &json!("http")));
    assert_eq!(lines[0]["peer"], lines[1]["peer"]);
    service.stop().await;
}

/// So many KEKs make a backup that is larger than the buffers of a connection.
const KEKS: u64 = 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_client_leaves_is_aborted() {
    let setup = setup();
    let (key, archive) = (setup.file("root.key"), setup.file("archive"));
    let setup = directory(with_local(setup, &key), 0, &archive);
    many::fill(&archive, KEKS);
    let recovered = setup.clone().set("STORE__PATH", setup.data().display());
    let output = recovered.run(&["store", "recover"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Its root opens none of these KEKs.
    let output = setup.run(&["root", "init"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let service = setup.start_ready_or_not().await;
    let address = service.url().trim_start_matches("http://").to_owned();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /v1/backup HTTP/1.1\r\nhost: localhost\r\nx-request-id: left\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert_eq!(states(&of_request(&setup, "left")), [("started", "ok")], "before the response");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(of_request(&setup, "left").len(), 1, "nothing is known about the end");
    drop(stream);
    let lines = until("the end", async || {
        let lines = of_request(&setup, "left");
        (lines.len() == 2).then_some(lines)
    })
    .await;
    assert_eq!(states(&lines), [("started", "ok"), ("aborted", "aborted")]);
    service.stop().await;
}
