//! Other programs than boto3: the command line of AWS, the AWS Encryption SDK and the SDK for Rust.

use std::path::Path;

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use aws_smithy_http_client::Builder as HttpClient;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use serde_json::{Value, json};

use super::{APP, READER, Secured, WRAPS, Wire, World, over_both};
use crate::support::aws::{Language, aws_kms, bytes};
use crate::support::kms::REGION;

/// A file with the bytes of base64 text, as the command line reads them.
fn fileb(path: &Path, base64: &Value) -> String {
    let bytes = base64_simd::STANDARD.decode_to_vec(base64.as_str().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
    format!("fileb://{}", path.display())
}

#[test]
fn the_command_line_of_aws_does_with_the_service_what_it_does_with_kms() {
    over_both(async |wire| use_the_command_line(&Secured::start(wire).await));
}

fn use_the_command_line(secured: &Secured) {
    let (world, program) = (&secured.world, secured.environment(APP));
    let aws = |args: &[&str]| aws_kms(&program, args);
    let (file, context) = (world.setup.file("blob"), ["--encryption-context", "tenant=7"]);
    let plaintext = json!("aGVsbG8=");
    let hello = fileb(&world.setup.file("plaintext"), &plaintext);
    let with_context = |args: &[&str]| aws(&[args, &context].concat());

    let made = with_context(&["encrypt", "--key-id", "alias/orders", "--plaintext", &hello]);
    assert_eq!(made["KeyId"], json!(world.key));
    let blob = fileb(&file, &made["CiphertextBlob"]);
    let opened = with_context(&["decrypt", "--ciphertext-blob", &blob]);
    assert_eq!((&opened["Plaintext"], &opened["KeyId"]), (&plaintext, &json!(world.key)));

    let args = ["re-encrypt", "--ciphertext-blob", &blob, "--destination-key-id", &world.key];
    let moved = aws(&[&args[..], &["--source-encryption-context", "tenant=7"]].concat());
    assert_eq!(moved["SourceKeyId"], json!(world.key));
    let blob = fileb(&file, &moved["CiphertextBlob"]);
    assert_eq!(aws(&["decrypt", "--ciphertext-blob", &blob])["Plaintext"], plaintext);

    let made = aws(&["generate-data-key", "--key-id", &world.key, "--key-spec", "AES_256"]);
    let blob = fileb(&file, &made["CiphertextBlob"]);
    let args = ["decrypt", "--key-id", "alias/orders", "--ciphertext-blob", &blob];
    assert_eq!(aws(&args)["Plaintext"], made["Plaintext"]);

    let described = aws(&["describe-key", "--key-id", "alias/orders"]);
    assert_eq!(described["KeyMetadata"]["Arn"], json!(world.key));
    // Only what the client may use is listed.
    let listed = aws(&["list-aliases"]);
    let names: Vec<_> =
        listed["Aliases"].as_array().unwrap().iter().map(|alias| &alias["AliasName"]).collect();
    assert!(names.contains(&&json!("alias/orders")), "{listed}");
    assert_eq!(world.calls(), (WRAPS, 0));
}

#[test]
fn messages_of_the_aws_encryption_sdk_are_read_after_the_switch_and_new_ones_cost_no_call() {
    over_both(use_the_encryption_sdk);
}

async fn use_the_encryption_sdk(wire: Wire) {
    let world = World::start().await;
    let key = json!(world.key);
    let write = |plaintext: &str, provider: &Value| json!({"write": bytes(plaintext.as_bytes()), "provider": provider});
    let strict = json!({"strict": [key]});
    let discovery = json!({"discovery": true});
    // Before the switch a message may be for the key of another program too.
    let both = json!({"keyrings": [key, world.root]});
    let single = json!({"keyrings": [key]});
    let mut before = world.before(Language::Python);
    let old: Vec<_> = [("strict", &strict), ("both", &both)]
        .map(|(text, provider)| (text, before.good(&write(text, provider))["message"].clone()))
        .into();
    drop(before);

    let service = world.serve("", "", wire).await;
    let mut program = world.after(Language::Python, &service);
    world.calls();
    for (text, message) in &old {
        for provider in [&strict, &discovery, &single] {
            let opened = program.good(&json!({"read": message, "provider": provider}));
            assert_eq!(opened["plaintext"], bytes(text.as_bytes()), "{provider}");
            assert!(opened["keys"].as_array().unwrap().contains(&key), "{opened}");
        }
    }
    // Discovery tries the keys of a message in turn until one opens it.
    let (wraps, decrypts) = world.calls();
    assert!(wraps == 0 && (6..=8).contains(&decrypts), "{wraps} wraps, {decrypts} decrypts");

    let other = format!("arn:aws:kms:{REGION}:123456789012:key/other");
    let multiple = json!({"keyrings": [key, other]});
    for (name, provider) in [("strict", &strict), ("single", &single), ("multiple", &multiple)] {
        let message = program.good(&write(name, provider))["message"].clone();
        let of_other = json!({"strict": [other]});
        let mut readers = vec![&strict, &discovery, &single, &multiple];
        readers.extend((name == "multiple").then_some(&of_other));
        for reader in readers {
            let opened = program.good(&json!({"read": message, "provider": reader}));
            assert_eq!(opened["plaintext"], bytes(name.as_bytes()), "{name}: {reader}");
        }
        let reader = json!({"strict": [world.root]});
        let refused = program.tell(&json!({"read": message, "provider": reader}));
        // By the key that it was made with, it names the provider or the data key.
        let error = refused["error"].as_str().unwrap();
        assert!(["MasterKeyProviderError", "DecryptKeyError"].contains(&error), "{refused}");
    }
    assert_eq!(world.calls(), (0, 0));
}

/// The SDK for Rust with the credentials of a client, as `aws_config` makes it from the environment.
fn rust_sdk(secured: &Secured, (id, secret): (&str, &str)) -> aws_sdk_kms::Client {
    let credentials = Credentials::new(id, secret, None, None, "test");
    // It does not read AWS_CA_BUNDLE: a program with a private authority passes it to the client.
    let ca = std::fs::read(secured.world.pki.ca()).unwrap();
    let trusted = TrustStore::empty().with_pem_certificate(ca);
    let tls = TlsContext::builder().with_trust_store(trusted).build().unwrap();
    let provider = Provider::Rustls(CryptoMode::AwsLc);
    let https = HttpClient::new().tls_provider(provider).tls_context(tls).build_https();
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(secured.service.url())
        .credentials_provider(credentials)
        .http_client(https);
    aws_sdk_kms::Client::from_conf(config.build())
}

#[test]
fn the_sdk_for_rust_does_with_the_service_what_it_does_with_kms() {
    over_both(async |wire| use_the_sdk_for_rust(&Secured::start(wire).await).await);
}

async fn use_the_sdk_for_rust(secured: &Secured) {
    let kms = rust_sdk(secured, APP);
    let encrypt = kms.encrypt().key_id("alias/orders").plaintext(Blob::new(b"hello"));
    let made = encrypt.encryption_context("tenant", "7").send().await.unwrap();
    assert_eq!(made.key_id(), Some(secured.world.key.as_str()));
    let blob = made.ciphertext_blob().unwrap().clone();
    let decrypt = kms.decrypt().ciphertext_blob(blob.clone()).encryption_context("tenant", "7");
    let opened = decrypt.key_id(&secured.world.key).send().await.unwrap();
    assert_eq!(opened.plaintext().unwrap().as_ref(), b"hello");
    let wrong = kms.decrypt().ciphertext_blob(blob.clone()).send().await.unwrap_err();
    assert!(wrong.as_service_error().unwrap().is_invalid_ciphertext_exception(), "{wrong:?}");

    let data_key = kms.generate_data_key().key_id(&secured.world.key);
    let data_key = data_key.key_spec(DataKeySpec::Aes256).send().await.unwrap();
    let opened = kms.decrypt().ciphertext_blob(data_key.ciphertext_blob().unwrap().clone());
    assert_eq!(opened.send().await.unwrap().plaintext(), data_key.plaintext());

    let moved = kms.re_encrypt().ciphertext_blob(blob).source_encryption_context("tenant", "7");
    let moved = moved.destination_key_id("alias/orders").send().await.unwrap();
    assert_eq!(moved.source_key_id(), Some(secured.world.key.as_str()));
    let described = kms.describe_key().key_id("alias/orders").send().await.unwrap();
    let metadata = described.key_metadata().unwrap();
    assert!(metadata.enabled() && metadata.creation_date().is_some(), "{metadata:?}");

    let denied = rust_sdk(secured, READER).encrypt().key_id("alias/orders");
    let denied = denied.plaintext(Blob::new(b"hello")).send().await.unwrap_err();
    assert_eq!(denied.code(), Some("AccessDeniedException"), "{denied:?}");
    let unsigned = rust_sdk(secured, (APP.0, READER.1)).describe_key().key_id("alias/orders");
    let unsigned = unsigned.send().await.unwrap_err();
    assert_eq!(unsigned.code(), Some("InvalidSignatureException"), "{unsigned:?}");
    assert_eq!(secured.world.calls(), (WRAPS, 0));
}
