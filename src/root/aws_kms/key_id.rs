//! The names of a key of AWS KMS: `key_id`, and the ARN in a response. It makes no call.

/// Checks the form of `key_id`.
pub(super) fn check(key_id: &str) -> Result<(), String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b":/_-".contains(&b);
    let is_arn = !key_id.starts_with("arn:") || resource(key_id).is_some();
    if (1..=2048).contains(&key_id.len()) && key_id.bytes().all(fits) && is_arn {
        return Ok(());
    }
    Err("key_id: it is the id or the ARN of a key, or alias/NAME, or the ARN of an alias"
        .to_owned())
}

/// The region of an ARN.
pub(super) fn region(key_id: &str) -> Option<&str> {
    resource(key_id).map(|(region, _)| region)
}

/// Whether `text` has the form of a region, which becomes part of a host name.
pub(super) fn is_region(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(fits)
}

/// Whether the key that `key_id` names can have this ARN. This is true for every alias.
pub(super) fn may_be(key_id: &str, arn: &str) -> bool {
    let is_alias = |name: &str| name.starts_with("alias/");
    match resource(key_id) {
        Some((_, name)) if is_alias(name) => true,
        Some(_) => key_id == arn,
        None if is_alias(key_id) => true,
        None => resource(arn).and_then(|(_, name)| name.strip_prefix("key/")) == Some(key_id),
    }
}

/// Region and resource of an ARN: `arn:PARTITION:kms:REGION:ACCOUNT:RESOURCE`.
fn resource(arn: &str) -> Option<(&str, &str)> {
    let parts: Vec<_> = arn.splitn(6, ':').collect();
    match parts[..] {
        ["arn", _, "kms", region, _, name] if is_region(region) => {
            (name.starts_with("key/") || name.starts_with("alias/")).then_some((region, name))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn ids_arns_and_aliases_name_a_key() {
        let multi_region = format!("mrk-{}", ID.replace('-', ""));
        let arn = |rest: &str| format!("arn:aws-cn:kms:cn-north-1:111122223333:{rest}");
        for good in [ID, &multi_region, "alias/kms-proxy/main", &arn("key/x"), &arn("alias/x")] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let other = arn("key/x").replace(":kms:", ":s3:");
        for bad in ["", "a b", "k\u{e9}y", "key\n", &arn("secret/x"), "arn:aws:kms", &other] {
            assert!(check(bad).unwrap_err().starts_with("key_id: "), "{bad}");
        }
        assert!(check(&"a".repeat(2049)).is_err());
    }

    #[test]
    fn an_arn_knows_its_region() {
        assert_eq!(region(&format!("arn:aws:kms:eu-west-1:1:key/{ID}")), Some("eu-west-1"));
        assert_eq!(region("arn:aws:kms:eu-west-1:1:alias/a"), Some("eu-west-1"));
        assert_eq!((region(ID), region("alias/a")), (None, None));
        assert!(!is_region("") && !is_region("evil.example/") && !is_region("EU"));
    }

    #[test]
    fn an_answer_by_another_key_is_noticed() {
        let arn = format!("arn:aws:kms:eu-west-1:1:key/{ID}");
        let other = arn.replace("1234abcd", "1234abce");
        for same in [ID, &arn] {
            assert!(may_be(same, &arn) && !may_be(same, &other) && !may_be(same, ID), "{same}");
        }
        for alias in ["alias/a", "arn:aws:kms:eu-west-1:1:alias/a"] {
            assert!(may_be(alias, &arn) && may_be(alias, &other), "{alias}");
        }
    }
}
