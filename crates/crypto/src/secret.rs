//! Secret bytes: wiped on drop, without `Debug`, `Clone`, comparison by `==`, or serde.

use aws_lc_rs::rand;
use zeroize::{Zeroize, Zeroizing};

/// A 256-bit key. Lives on the heap at one address and is wiped when dropped.
pub struct Key32(Box<[u8; 32]>);

impl Key32 {
    /// A new key from the system's random source.
    ///
    /// # Panics
    /// When that source fails; there is no safe way to go on then.
    pub fn generate() -> Self {
        let mut bytes = Box::new([0u8; 32]);
        rand::fill(bytes.as_mut_slice()).expect("the system's random source answers");
        Self(bytes)
    }

    /// Takes a key out of `bytes`, which are wiped; none unless there are exactly 32.
    pub fn take(bytes: &mut [u8]) -> Option<Self> {
        let mut key = Box::new([0u8; 32]);
        let fits = bytes.len() == key.len();
        if fits {
            key.copy_from_slice(bytes);
        }
        bytes.zeroize();
        fits.then_some(Self(key))
    }

    /// The bytes. Whoever copies them must wipe the copy.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Key32 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Secret bytes of any length, wiped when dropped.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// `len` bytes from the system's random source.
    ///
    /// # Panics
    /// When that source fails.
    pub fn random(len: usize) -> Self {
        let mut bytes = Zeroizing::new(vec![0u8; len]);
        rand::fill(&mut bytes).expect("the system's random source answers");
        Self(bytes)
    }

    /// The bytes. Whoever copies them must wipe the copy.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
