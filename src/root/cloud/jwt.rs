//! JWTs that prove who the service is, signed with RSA. It knows no issuer and no audience.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair};
use base64_simd::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::pem;
use crate::secret::SecretBytes;

/// How a JWT is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::root) enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PSS with SHA-256.
    Ps256,
}

/// Signs `claims` with the RSA key in `pem`. `header` has what is added to `alg` and `typ`.
///
/// # Errors
/// What is wrong with the key, for an operator.
pub(in crate::root) fn sign(
    pem: &[u8],
    algorithm: Algorithm,
    header: &[(&str, &str)],
    claims: &Value,
) -> Result<SecretBytes, String> {
    let key = rsa_key(pem)?;
    let (name, encoding): (_, &'static dyn RsaEncoding) = match algorithm {
        Algorithm::Rs256 => ("RS256", &RSA_PKCS1_SHA256),
        Algorithm::Ps256 => ("PS256", &RSA_PSS_SHA256),
    };
    let fields = [("alg", name), ("typ", "JWT")];
    let fields = fields.iter().chain(header);
    let fields = fields.map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
    let header = Value::Object(fields.collect()).to_string();
    let header = URL_SAFE_NO_PAD.encode_to_string(header);
    let claims = URL_SAFE_NO_PAD.encode_to_string(claims.to_string());
    let signed = format!("{header}.{claims}");
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(encoding, &SystemRandom::new(), signed.as_bytes(), &mut signature)
        .map_err(|_| "the key can't sign".to_owned())?;
    let signature = URL_SAFE_NO_PAD.encode_to_string(signature);
    Ok(SecretBytes::new(format!("{signed}.{signature}").into_bytes()))
}

/// The RSA key in `pem`.
pub(in crate::root) fn rsa_key(pem: &[u8]) -> Result<RsaKeyPair, String> {
    let key = pem::private_key(pem)?;
    let der = key.secret_der();
    RsaKeyPair::from_pkcs8(der)
        .or_else(|_| RsaKeyPair::from_der(der))
        .map_err(|_| "the private key is not RSA of 2048 to 8192 bits".to_owned())
}
