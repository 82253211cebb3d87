//! The names of a key of Cloud KMS: `key_id`, and the name of a version in a response. It makes no
//! call.

/// Checks the form of `key_id`.
pub(super) fn check(key_id: &str) -> Result<(), String> {
    if key_id.contains("/cryptoKeyVersions/") {
        return Err("key_id: it names one version; leave out /cryptoKeyVersions/ and what follows"
            .to_owned());
    }
    if key_id.len() <= 1024 && parts(key_id).is_some() {
        return Ok(());
    }
    Err("key_id: it is projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY".to_owned())
}

/// The number of the version in `name`, if it is a version of the key `key_id`.
pub(super) fn version(key_id: &str, name: &str) -> Option<u32> {
    let (key, version) = name.split_once("/cryptoKeyVersions/")?;
    let ([project, rest @ ..], [other, of_other @ ..]) = (parts(key_id)?, parts(key)?);
    // A project has a name and a number, and a response may contain either.
    let is_number = |project: &str| project.bytes().all(|b| b.is_ascii_digit());
    let is_same = project == other || is_number(project) != is_number(other);
    // Parsing alone would take a sign and zeros in front, which Cloud KMS never writes.
    let version: u32 = version.parse().ok().filter(|it: &u32| it.to_string() == version)?;
    if version == 0 {
        return None;
    }
    (is_same && rest == of_other).then_some(version)
}

/// Project, location, ring and key. They are inserted into URLs unescaped.
fn parts(key_id: &str) -> Option<[&str; 4]> {
    let parts: Vec<_> = key_id.split('/').collect();
    let ["projects", project, "locations", location, "keyRings", ring, "cryptoKeys", key] =
        parts[..]
    else {
        return None;
    };
    let fits = |more: &str, name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| {
                b.is_ascii_alphanumeric() || b"_-".contains(&b) || more.bytes().any(|m| m == b)
            })
    };
    // The projects of a domain are named `example.com:project`.
    let is_project = fits(".:", project) && !project.starts_with('.');
    let rest = [location, ring, key];
    (is_project && rest.iter().all(|name| fits("", name))).then_some([project, location, ring, key])
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "projects/p-1/locations/europe-west3/keyRings/r_1/cryptoKeys/kms-proxy";

    #[test]
    fn a_key_is_named_as_a_resource() {
        for good in [KEY, &KEY.replace("p-1", "example.com:p-1"), &KEY.replace("p-1", "123")] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "kms-proxy",
            &format!("/{KEY}"),
            &format!("{KEY}/"),
            &format!("{KEY}?x"),
            &KEY.replace("p-1", ""),
            &KEY.replace("p-1", ".."),
            &KEY.replace("r_1", ".."),
            &KEY.replace("r_1", "r%2f"),
            &KEY.replace("keyRings", "keyrings"),
            &KEY.replace("kms-proxy", &"k".repeat(1024)),
        ] {
            assert!(check(bad).unwrap_err().starts_with("key_id: it is projects/"), "{bad}");
        }
        let version = format!("{KEY}/cryptoKeyVersions/1");
        assert!(check(&version).unwrap_err().contains("leave out /cryptoKeyVersions/"));
    }

    #[test]
    fn a_version_of_another_key_is_noticed() {
        let named = |key: &str, version: &str| format!("{key}/cryptoKeyVersions/{version}");
        assert_eq!(version(KEY, &named(KEY, "12")), Some(12));
        assert_eq!(version(KEY, &named(&KEY.replace("p-1", "99"), "12")), Some(12));
        for bad in [
            named(&KEY.replace("p-1", "p-2"), "1"),
            named(&KEY.replace("kms-proxy", "other"), "1"),
            named(KEY, "0"),
            named(KEY, "x"),
            named(KEY, "+1"),
            named(KEY, "01"),
            named(KEY, "1/"),
            named(KEY, "4294967296"),
            KEY.to_owned(),
        ] {
            assert_eq!(version(KEY, &bad), None, "{bad}");
        }
    }
}
