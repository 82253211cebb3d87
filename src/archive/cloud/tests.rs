//! The battery on moto's S3 over HTTP, and tests that concern buckets only.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use object_store::aws::AmazonS3ConfigKey;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use super::super::settings::S3;
use super::super::{Archive as _, contract};
use super::*;

/// moto's server. Dropping it ends the process.
struct Moto {
    child: Child,
    url: String,
}

impl Moto {
    fn start() -> Self {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = root.join("target/test-env/bin/moto_server");
        let mut child = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run `make test-env`", program.display()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let url = lines.find_map(|line| {
            let (_, address) = line.split_once("Running on ")?;
            Some(address.trim().to_owned())
        });
        // It logs every request, and would wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url: url.expect("moto prints where it listens; run `make test-env`") }
    }

    async fn create_bucket(&self, name: &str) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let body = "<CreateBucketConfiguration><LocationConstraint>eu-central-1\
                    </LocationConstraint></CreateBucketConfiguration>";
        let made = http.put(format!("{}/{name}", self.url)).body(body).send().await.unwrap();
        assert!(made.status().is_success(), "{made:?}");
    }

    fn config(&self, url: &str) -> Config {
        Config::S3(S3 {
            name: "bucket".to_owned(),
            url: url.to_owned(),
            region: Some("eu-central-1".to_owned()),
            endpoint: Some(self.url.clone()),
            ca: None,
            timeout: Duration::from_secs(60),
        })
    }

    fn archive(&self, url: &str) -> Archive {
        Archive::with(&self.config(url), &variables()).unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn variables() -> connect::Variables {
    let variables = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "planted")];
    variables.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_of_s3_keeps_the_contract() {
    let moto = Moto::start();
    for bucket in ["backups", "others"] {
        moto.create_bucket(bucket).await;
    }
    // moto checks a condition before it writes, without a lock.
    contract::sequential(&moto.archive("s3://backups/kms-proxy/a")).await;
    contract::sequential(&moto.archive("s3://others")).await;

    // Prefixes keep archives apart, also where one begins with the other.
    let other = moto.archive("s3://backups/kms-proxy/a-2");
    assert_eq!(other.list("", None, 9).await.unwrap(), [""; 0]);
    let mut runner = TestRunner::default();
    for case in 0..8 {
        let history = contract::history().new_tree(&mut runner).unwrap().current();
        contract::agrees_with_memory(&other, &format!("case/{case}/"), &history).await;
    }
}

#[tokio::test]
async fn a_list_of_more_than_a_page_is_complete() {
    let moto = Moto::start();
    moto.create_bucket("backups").await;
    let archive = moto.archive("s3://backups");
    let keys: Vec<String> = (0..1100).map(|i| format!("v1/orders/{i:04}.json")).collect();
    for key in &keys {
        contract::applied(&archive, key, b"1", Condition::Absent).await;
    }
    assert_eq!(archive.list("v1/", None, 5000).await.unwrap(), keys);
    assert_eq!(archive.list("v1/", Some(&keys[40]), 1020).await.unwrap(), keys[41..1061]);
}

#[tokio::test]
async fn the_endpoint_of_the_environment_is_used_and_that_of_the_setting_takes_precedence() {
    let moto = Moto::start();
    moto.create_bucket("backups").await;
    let nowhere = "http://127.0.0.1:1";
    let (set, unset) = (Some(moto.url.clone()), None);
    for (endpoint, urls) in [
        (&unset, &[("AWS_ENDPOINT_URL", &*moto.url)][..]),
        (&unset, &[("AWS_ENDPOINT_URL_S3", &moto.url), ("AWS_ENDPOINT_URL", nowhere)]),
        (&set, &[("AWS_ENDPOINT_URL_S3", nowhere), ("AWS_ENDPOINT_URL", nowhere)]),
    ] {
        let mut config = moto.config("s3://backups");
        if let Config::S3(s3) = &mut config {
            s3.endpoint.clone_from(endpoint);
        }
        let urls = urls.iter().map(|(key, url)| ((*key).to_owned(), (*url).to_owned()));
        let variables = variables().into_iter().chain(urls).collect();
        let archive = Archive::with(&config, &variables).unwrap();
        assert_eq!(archive.list("", None, 9).await.unwrap(), [""; 0], "{endpoint:?}");
    }
}

#[test]
fn variables_with_an_endpoint_have_the_meaning_that_awss_sdks_give_them() {
    let s3 = |name: &str| S3 {
        name: name.to_owned(),
        url: "s3://b".to_owned(),
        region: None,
        endpoint: None,
        ca: None,
        timeout: Duration::from_secs(10),
    };
    let of = |variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        connect::endpoint_of(&Config::S3(s3("x")), &variables.collect())
    };
    let (all, s3) = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3");
    let ignore = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS";
    let (one, two) = ("https://one.example", "https://two.example:9000");
    for (variables, expected) in [
        (&[][..], None),
        (&[(all, one)], Some(one)),
        (&[(all, one), (s3, two)], Some(two)),
        (&[(all, one), (s3, "")], Some(one)),
        (&[(all, one), (s3, two), (ignore, "True")], None),
        (&[(all, one), (ignore, "false")], Some(one)),
        (&[("AWS_ENDPOINT_URL_KMS", one)], None),
        (&[(s3, "http://localhost:9000")], Some("http://localhost:9000")),
    ] {
        assert_eq!(of(variables), Ok(expected.map(str::to_owned)), "{variables:?}");
    }
    // The settings have none, whatever its name is.
    let names = [all, s3, "AWS_ENDPOINT", "AWS_REGION"];
    let variables: connect::Variables = names.map(|name| (name.to_owned(), one.to_owned())).into();
    let settings = connect::s3_of(&variables);
    for (key, expected) in [
        (AmazonS3ConfigKey::Endpoint, None),
        (AmazonS3ConfigKey::S3Endpoint, None),
        (AmazonS3ConfigKey::Region, Some(one)),
    ] {
        assert_eq!(settings.get_config_value(&key).as_deref(), expected, "{key:?}");
    }
    for url in ["http://s3.example", "s3.example", "https://user:planted@s3.example"] {
        let error = of(&[(s3, url), (all, one)]).unwrap_err();
        assert!(error.starts_with("AWS_ENDPOINT_URL_S3 must be a URL such as"), "{error}");
        assert!(!error.contains("planted"), "{error}");
    }
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_not_an_empty_archive() {
    let moto = Moto::start();
    let archive = moto.archive("s3://mistyped/kms-proxy");
    let key = "v1/orders/chain.json";
    let unchanged = Condition::Unchanged(Version("\"0\"".to_owned()));
    let errors = [
        archive.get(key).await.map(drop).unwrap_err(),
        archive.list("v1/", None, 9).await.map(drop).unwrap_err(),
        archive.put(key, vec![1], Condition::Absent).await.map(drop).unwrap_err(),
        archive.put(key, vec![1], unchanged).await.map(drop).unwrap_err(),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(matches!(error, Error::Denied(_)), "{text}");
        assert!(text.contains("s3://mistyped/kms-proxy: there is no such bucket"), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_respond_is_an_error_after_the_timeout() {
    // It accepts connections, and does not respond.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    for (endpoint, timeout) in [(endpoint, 300), ("http://127.0.0.1:1".to_owned(), 60_000)] {
        let config = Config::S3(S3 {
            name: "bucket".to_owned(),
            url: "s3://backups".to_owned(),
            region: Some("eu-central-1".to_owned()),
            endpoint: Some(endpoint),
            ca: None,
            timeout: Duration::from_millis(timeout),
        });
        let archive = Archive::with(&config, &variables()).unwrap();
        let error = archive.get("v1/orders/chain.json").await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Unavailable(_)), "{text}");
        assert!(text.contains("s3://backups") && !text.contains("planted"), "{text}");
        assert!(!format!("{archive:?}").contains("planted"));
    }
}

#[test]
fn each_kind_takes_its_credentials_from_the_variables_of_its_provider() {
    use super::super::settings::{Azure, Gcs};
    let (name, timeout) = ("x".to_owned(), Duration::from_secs(10));
    let gcs = |url: &str| {
        let (name, url) = (name.clone(), url.to_owned());
        Config::Gcs(Gcs { name, url, endpoint: None, ca: None, timeout })
    };
    let azure = |account: Option<&str>| {
        let (name, url) = (name.clone(), "az://container/p".to_owned());
        let account = account.map(str::to_owned);
        Config::Azure(Azure { name, url, account, endpoint: None, ca: None, timeout })
    };
    let set = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    let opened = |config: &Config, variables| Archive::with(config, &variables).map(|it| it.kind());
    assert_eq!(opened(&gcs("gs://b/p"), set("GOOGLE_BEARER_TOKEN", "t")), Ok("gcs"));
    assert_eq!(opened(&azure(Some("acc")), set("AZURE_STORAGE_ACCOUNT_KEY", "QUJD")), Ok("azure"));
    assert_eq!(opened(&azure(None), set("AZURE_STORAGE_ACCOUNT_NAME", "acc")), Ok("azure"));
    let error = opened(&azure(None), Vec::new()).unwrap_err();
    assert!(error.to_lowercase().contains("account"), "{error}");
    // Half of a pair is an error, and no other source of credentials is used.
    let moto = Config::S3(S3 {
        name: "x".to_owned(),
        url: "s3://b".to_owned(),
        region: None,
        endpoint: None,
        ca: None,
        timeout,
    });
    assert!(opened(&moto, set("AWS_SECRET_ACCESS_KEY", "planted")).is_err());
}
