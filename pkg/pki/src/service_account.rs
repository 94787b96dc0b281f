//! Service account keys and the tokens they sign.
//!
//! Behaves as `pkg/serviceaccount/jwt.go`, v1.36: key ids are the SHA-256 of the public key, ES256 for
//! our own keys, RS256 for RSA keys an administrator brings.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;

use crate::authority::pem;
use crate::{PkiError, files};

/// Who issues tokens that live in Secrets and never expire.
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// Bytes a token may have; ours are about 1 KiB.
const TOKEN_SIZE_MAX: usize = 16 * 1024;

/// Signs tokens with the newest key and verifies them with all.
#[derive(Clone)]
pub struct ServiceAccountKeys {
    signing: (Header, EncodingKey),
    verifying: Vec<VerifyingKey>,
}

#[derive(Clone)]
struct VerifyingKey {
    id: String,
    algorithm: Algorithm,
    key: DecodingKey,
    jwk: Value,
}

impl std::fmt::Debug for ServiceAccountKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<&str> = self.verifying.iter().map(|key| key.id.as_str()).collect();
        f.debug_struct("ServiceAccountKeys").field("ids", &ids).finish_non_exhaustive()
    }
}

impl ServiceAccountKeys {
    /// Loads the key pair at `private` and `public`, or makes one. `public` may hold more keys than ours:
    /// tokens signed by them stay valid while an administrator rotates.
    pub fn load_or_generate(private: &Path, public: &Path) -> Result<Self, PkiError> {
        let private_pem = match files::read(private)? {
            Some(text) => text,
            None => {
                let key = KeyPair::generate()
                    .map_err(|error| PkiError::Generate { what: "service account key", detail: error.to_string() })?;
                files::write(private, key.serialize_pem().as_bytes(), files::PRIVATE)?;
                key.serialize_pem()
            }
        };
        let what = private.display().to_string();
        let mut keys = Self::from_pem(&private_pem, &what)?;
        let public_pem = match files::read(public)? {
            Some(text) => text,
            None => {
                let spki = key_pair(&private_pem, &what)?.subject_public_key_info();
                let text = pem("PUBLIC KEY", &spki);
                files::write(public, text.as_bytes(), files::PUBLIC)?;
                text
            }
        };
        for other in SubjectPublicKeyInfoDer::pem_slice_iter(public_pem.as_bytes()) {
            let other = other
                .map_err(|error| PkiError::Key { what: public.display().to_string(), detail: error.to_string() })?;
            let other = verifying_key(&other, &public.display().to_string())?;
            if keys.verifying.iter().all(|known| known.id != other.id) {
                keys.verifying.push(other);
            }
        }
        Ok(keys)
    }

    /// A new key that is kept nowhere.
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate()
            .map_err(|error| PkiError::Generate { what: "service account key", detail: error.to_string() })?;
        Self::from_pem(&key.serialize_pem(), "service account key")
    }

    fn from_pem(private_pem: &str, what: &str) -> Result<Self, PkiError> {
        let key = key_pair(private_pem, what)?;
        let ours = verifying_key(&key.subject_public_key_info(), what)?;
        let mut header = Header::new(ours.algorithm);
        header.typ = None;
        header.kid = Some(ours.id.clone());
        let encoding = match ours.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(private_pem.as_bytes())
                .map_err(|error| PkiError::Key { what: what.to_owned(), detail: error.to_string() })?,
            _ => EncodingKey::from_ec_der(key.serialized_der()),
        };
        Ok(Self { signing: (header, encoding), verifying: vec![ours] })
    }

    /// Signs `claims` as they are.
    pub fn sign(&self, claims: &Value) -> Result<String, PkiError> {
        let bad = |detail: String| PkiError::Token { detail };
        let (header, key) = &self.signing;
        jsonwebtoken::encode(header, claims, key).map_err(|error| bad(format!("signing a token: {error}")))
    }

    /// The claims of a token one of our keys signed. Times, audiences and bound objects are the caller's
    /// to check, against its own clock and caches.
    pub fn verify(&self, token: &str) -> Result<Value, PkiError> {
        let bad = |detail: &str| PkiError::Token { detail: detail.to_owned() };
        if token.len() > TOKEN_SIZE_MAX {
            return Err(bad("the token is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| bad("the token is not a JWT"))?;
        let candidates = self
            .verifying
            .iter()
            .filter(|key| key.algorithm == header.alg && header.kid.as_ref().is_none_or(|id| *id == key.id));
        for candidate in candidates {
            let mut validation = Validation::new(candidate.algorithm);
            validation.validate_exp = false;
            validation.validate_nbf = false;
            validation.validate_aud = false;
            validation.required_spec_claims.clear();
            if let Ok(data) = jsonwebtoken::decode::<Value>(token, &candidate.key, &validation) {
                return Ok(data.claims);
            }
        }
        Err(bad("no key of this cluster signed the token"))
    }

    /// The JSON Web Key Set for `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.verifying.iter().map(|key| &key.jwk).collect::<Vec<_>>() })
    }
}

fn key_pair(pem: &str, what: &str) -> Result<KeyPair, PkiError> {
    KeyPair::from_pem(pem).map_err(|error| PkiError::Key { what: what.to_owned(), detail: error.to_string() })
}

fn verifying_key(spki: &[u8], what: &str) -> Result<VerifyingKey, PkiError> {
    let bad = |detail: String| PkiError::Key { what: what.to_owned(), detail };
    let (_, parsed) = x509_parser::x509::SubjectPublicKeyInfo::from_der(spki).map_err(|e| bad(e.to_string()))?;
    let public_pem = pem("PUBLIC KEY", spki);
    let (algorithm, key) = match parsed.parsed().map_err(|error| bad(error.to_string()))? {
        x509_parser::public_key::PublicKey::RSA(_) => {
            (Algorithm::RS256, DecodingKey::from_rsa_pem(public_pem.as_bytes()))
        }
        x509_parser::public_key::PublicKey::EC(point) if point.key_size() == 256 => {
            (Algorithm::ES256, DecodingKey::from_ec_pem(public_pem.as_bytes()))
        }
        _ => return Err(bad("only RSA and ECDSA P-256 keys sign tokens".to_owned())),
    };
    let key = key.map_err(|error| bad(error.to_string()))?;
    let id = URL_SAFE_NO_PAD.encode(digest(&SHA256, spki).as_ref());
    let mut jwk = Jwk::from_decoding_key(&key, Some(algorithm)).map_err(|error| bad(error.to_string()))?;
    jwk.common.key_id = Some(id.clone());
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    let jwk = serde_json::to_value(&jwk).map_err(|error| bad(error.to_string()))?;
    Ok(VerifyingKey { id, algorithm, key, jwk })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_verify_with_their_key_only_and_keys_are_kept() {
        let ours = tempfile::tempdir().unwrap();
        let theirs = tempfile::tempdir().unwrap();
        let load = |folder: &Path| {
            ServiceAccountKeys::load_or_generate(&folder.join("sa.key"), &folder.join("sa.pub")).unwrap()
        };
        let claims = json!({ "sub": "system:serviceaccount:default:default", "exp": 1 });
        let token = load(ours.path()).sign(&claims).unwrap();
        assert_eq!(load(ours.path()).verify(&token).unwrap(), claims);
        assert!(load(theirs.path()).verify(&token).is_err());
        assert_eq!(load(ours.path()).jwks()["keys"][0]["alg"], "ES256");
        for hostile in ["", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", &"x".repeat(TOKEN_SIZE_MAX + 1)] {
            assert!(load(ours.path()).verify(hostile).is_err());
        }
    }
}
