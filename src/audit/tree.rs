//! The Merkle tree of RFC 6962, section 2.1, as a compact range: the hashes of its complete
//! subtrees. That is at most 64 hashes, whatever the number of leaves.
//!
//! It knows bytes, and not what a leaf means.

use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The hash of a leaf.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    short::<8>([&[0], leaf, &[]])
        .unwrap_or_else(|| Sha256::new().chain_update([0]).chain_update(leaf).finalize().into())
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    short::<2>([&[1], left, right]).unwrap_or_default()
}

/// The SHA-256 of parts that fit in `BLOCKS` blocks with their padding; `None` if they do not. It
/// pads the message itself (FIPS 180-4, section 5.1.1): for short public messages a hasher, which
/// is wiped, takes as long as the hash.
fn short<const BLOCKS: usize>(parts: [&[u8]; 3]) -> Option<Hash> {
    let mut blocks = [[0; 64]; BLOCKS];
    let mut len = 0;
    for part in parts {
        blocks.as_flattened_mut().get_mut(len..len + part.len())?.copy_from_slice(part);
        len += part.len();
    }
    let used = blocks.get_mut(..(len + 1 + 8).div_ceil(64))?;
    *used.as_flattened_mut().get_mut(len)? = 0x80;
    let bits = u64::try_from(len).ok()?.checked_mul(8)?;
    *used.as_flattened_mut().last_chunk_mut()? = bits.to_be_bytes();
    let mut state = INITIAL;
    compress256(&mut state, used);
    let mut hash = [0; 32];
    for (bytes, word) in hash.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    Some(hash)
}

/// The initial hash value of SHA-256 (FIPS 180-4, section 5.3.3).
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// A tree to which leaves are appended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// One hash for each bit that is set in `size`, the largest subtree first.
    range: Vec<Hash>,
}

impl Tree {
    /// The tree with this number of leaves and this compact range, the largest subtree first.
    /// `None` if the number of hashes is not the one that the size requires.
    #[must_use]
    pub fn from_parts(size: u64, range: Vec<Hash>) -> Option<Self> {
        (range.len() == size.count_ones() as usize).then_some(Self { size, range })
    }

    /// Appends the leaf with this [`leaf_hash`].
    pub fn append(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // Each subtree of the same height as the new one is joined with it.
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.range.pop() else { break };
            hash = node_hash(&left, &hash);
        }
        self.range.push(hash);
        self.size += 1;
    }

    /// The number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The compact range, the largest subtree first.
    #[must_use]
    pub fn range(&self) -> &[Hash] {
        &self.range
    }

    /// The root hash. That of the empty tree is the hash of nothing.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut hashes = self.range.iter().rev();
        let Some(smallest) = hashes.next() else { return Sha256::digest([]).into() };
        hashes.fold(*smallest, |right, left| node_hash(left, &right))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        base16ct::lower::decode_vec(text).unwrap()
    }

    /// The leaves and roots that the implementations of Certificate Transparency are tested with
    /// (github.com/google/certificate-transparency, merkletree/merkle_tree_test.cc).
    #[test]
    fn published_vectors() {
        let leaves = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = Tree::default();
        assert_eq!(
            tree.root().to_vec(),
            hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        );
        for (leaf, root) in leaves.into_iter().zip(roots) {
            tree.append(leaf_hash(&hex(leaf)));
            assert_eq!(tree.root().to_vec(), hex(root), "{} leaves", tree.size());
        }
    }

    /// At each length around those at which the padding takes another block, and where a message
    /// is no longer short.
    #[test]
    fn a_short_message_has_the_hash_that_others_compute() {
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(600).collect();
        for len in 0..bytes.len() {
            let (leaf, rest) = (&bytes[..len], &bytes[len..]);
            let expected: Hash =
                Sha256::new().chain_update([0]).chain_update(leaf).finalize().into();
            assert_eq!(leaf_hash(leaf), expected, "{len}");
            let both = short::<10>([leaf, &[], &rest[..rest.len().min(20)]]);
            let expected = Sha256::digest(&bytes[..600.min(len + 20)]).into();
            assert_eq!(both, Some(expected), "{len}");
        }
        assert_eq!((short::<2>([&[0; 119]; 3]), short::<1>([&[], &[0; 56], &[]])), (None, None));
        assert!(short::<1>([&[], &[0; 55], &[]]).is_some());
    }

    /// The definition in RFC 6962, section 2.1, word for word.
    fn defined_root(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => leaf_hash(leaf),
            _ => {
                let k = leaves.len().next_power_of_two() / 2;
                node_hash(&defined_root(&leaves[..k]), &defined_root(&leaves[k..]))
            }
        }
    }

    proptest! {
        #[test]
        fn the_root_is_the_one_that_rfc_6962_defines(
            leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..70),
            cut in 0_usize..70,
        ) {
            let mut tree = Tree::default();
            for (at, leaf) in leaves.iter().enumerate() {
                if at == cut {
                    tree = Tree::from_parts(tree.size(), tree.range().to_vec()).unwrap();
                }
                tree.append(leaf_hash(leaf));
            }
            prop_assert_eq!(tree.root(), defined_root(&leaves));
            prop_assert_eq!(tree.range().len(), tree.size().count_ones() as usize);
            prop_assert_eq!(Tree::from_parts(tree.size() + 1, tree.range().to_vec()).is_some(),
                (tree.size() + 1).count_ones() == tree.size().count_ones());
        }
    }
}
