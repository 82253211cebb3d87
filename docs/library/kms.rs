use std::error::Error;
use std::fs::File;
use std::path::Path;

use kms_proxy::root::aws_kms;
use kms_proxy::{KeyChain, export};

/// Opens the chain in the file `path`, or starts a new one there, under the key `key_id` of AWS
/// KMS. Region and credentials come from the environment, as the AWS SDK reads them.
pub async fn open(key_id: &str, path: &Path) -> Result<KeyChain, Box<dyn Error>> {
    let root = aws_kms::Root::open(&aws_kms::Config::new("main", key_id))?;
    if path.exists() {
        return Ok(export::read(&root, &mut File::open(path)?).await?);
    }
    let chain = KeyChain::new()?;
    export::write_with_half_the_uses(&chain, &root, &mut File::create_new(path)?).await?;
    Ok(chain)
}
