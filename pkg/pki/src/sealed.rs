//! Text that only who knows a secret can read: what servers of one cluster tell one another through a datastore that
//! others may read.
//!
//! ```text
//! {"version": 1, "iterations": n, "salt": base64, "nonce": base64, "data": base64}
//! ```
//! The key is PBKDF2-HMAC-SHA256 of the secret, the cipher AES-256-GCM. What the text says of itself is authenticated
//! with the data.
//!
//! Invariant: nothing is sealed by an empty secret, and no text makes a reader work longer than [`ITERATIONS_MAX`].

use std::num::NonZeroU32;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::pbkdf2;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::PkiError;

const VERSION: u64 = 1;
/// What OWASP asks of PBKDF2-HMAC-SHA256; a fifth of a second.
const ITERATIONS: u32 = 600_000;
const ITERATIONS_MAX: u32 = 10_000_000;
const SALT_BYTES: usize = 16;

/// Seals `content` by `secret`.
pub fn seal(secret: &str, content: &[u8]) -> Result<String, PkiError> {
    seal_with(secret, content, ITERATIONS)
}

/// What was sealed, if `secret` is the one it was sealed by; else `None`.
///
/// # Errors
/// The text is none that [`seal`] makes.
pub fn unseal(secret: &str, sealed: &str) -> Result<Option<Vec<u8>>, PkiError> {
    let bad = |detail: &str| PkiError::Sealed { detail: detail.to_owned() };
    let value: Value = serde_json::from_str(sealed).map_err(|_| bad("it is not JSON"))?;
    if value["version"] != VERSION {
        return Err(bad("it is of another version"));
    }
    let bytes = |field: &str| {
        let text = value[field].as_str().ok_or_else(|| bad("a member is missing"))?;
        STANDARD.decode(text).map_err(|_| bad("a member is not base64"))
    };
    let iterations = value["iterations"].as_u64().and_then(|count| u32::try_from(count).ok());
    let iterations = iterations
        .filter(|count| *count <= ITERATIONS_MAX)
        .and_then(NonZeroU32::new)
        .ok_or_else(|| bad("its iterations"))?;
    let salt = bytes("salt")?;
    let nonce: [u8; NONCE_LEN] = bytes("nonce")?.try_into().map_err(|_| bad("its nonce"))?;
    let mut data = bytes("data")?;
    let opened = key(secret, &salt, iterations)?.open_in_place(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(described(&salt, iterations)),
        &mut data,
    );
    Ok(opened.ok().map(|content| content.to_vec()))
}

fn seal_with(secret: &str, content: &[u8], iterations: u32) -> Result<String, PkiError> {
    let failed = |detail: &str| PkiError::Generate { what: "sealed text", detail: detail.to_owned() };
    if secret.is_empty() {
        return Err(failed("the secret is empty"));
    }
    let iterations = NonZeroU32::new(iterations).ok_or_else(|| failed("no iterations"))?;
    let mut salt = [0; SALT_BYTES];
    SystemRandom::new().fill(&mut salt).map_err(|_| failed("the system has no randomness"))?;
    let mut data = content.to_vec();
    let nonce = key(secret, &salt, iterations)?
        .seal_in_place_append_tag(Aad::from(described(&salt, iterations)), &mut data)
        .map_err(|_| failed("the cipher refused"))?;
    let text = json!({
        "version": VERSION, "iterations": iterations.get(), "salt": STANDARD.encode(salt),
        "nonce": STANDARD.encode(nonce.as_ref()), "data": STANDARD.encode(&data),
    });
    Ok(text.to_string())
}

fn key(secret: &str, salt: &[u8], iterations: NonZeroU32) -> Result<RandomizedNonceKey, PkiError> {
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, secret.as_bytes(), &mut key);
    RandomizedNonceKey::new(&AES_256_GCM, &key)
        .map_err(|_| PkiError::Generate { what: "key", detail: "the cipher refused it".to_owned() })
}

fn described(salt: &[u8], iterations: NonZeroU32) -> String {
    format!("rkube sealed {VERSION} {iterations} {}", STANDARD.encode(salt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_opens_what_was_not_changed() {
        let sealed = seal_with("sesame", b"content", 10).unwrap();
        assert!(!sealed.contains("content") && !sealed.contains("sesame"));
        assert_eq!(unseal("sesame", &sealed).unwrap().unwrap(), b"content");
        for secret in ["Sesame", "", "sesame "] {
            assert_eq!(unseal(secret, &sealed).unwrap(), None);
        }
        assert_ne!(seal_with("sesame", b"content", 10).unwrap(), sealed, "two never look alike");
        let changed = |field: &str, new: Value| {
            let mut value: Value = serde_json::from_str(&sealed).unwrap();
            value[field] = new;
            unseal("sesame", &value.to_string())
        };
        assert_eq!(changed("iterations", json!(11)).unwrap(), None);
        assert_eq!(changed("salt", json!("AAAA")).unwrap(), None);
        assert_eq!(changed("data", json!("AAAA")).unwrap(), None);
        for (field, new) in [
            ("iterations", json!(u32::MAX)),
            ("iterations", json!(0)),
            ("version", json!(2)),
            ("nonce", json!("AAAA")),
            ("data", json!("!")),
            ("salt", Value::Null),
        ] {
            assert!(changed(field, new.clone()).is_err(), "{field} {new}");
        }
        assert!(unseal("sesame", "garbage").is_err());
        assert!(seal("", b"content").is_err());
    }
}
