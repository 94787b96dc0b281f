//! Join tokens: what an agent needs to trust the server and to be trusted by it.
//!
//! ```text
//! K10<sha256 of the cluster CA certificate, hex>::<user>:<secret>    as k3s writes it
//! K10<sha256 ...>::<id>.<secret>                                     a bootstrap token, CA pinned
//! <id>.<secret>                                                      a bootstrap token as kubeadm has it
//! <secret>                                                           the server's own token
//! ```
//! The hash pins the CA: an agent verifies the certificate before it sends the secret.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::PkiError;

const PREFIX: &str = "K10";
const BOOTSTRAP_ID_LENGTH: usize = 6;
const BOOTSTRAP_SECRET_LENGTH: usize = 16;
/// Tokens are short; anything longer is a mistake, not a token.
const TOKEN_LENGTH_MAX: usize = 1_024;

/// A parsed token. `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Lower-case hex of the SHA-256 of the CA's DER, if the token pins one.
    pub ca_hash: Option<String>,
    pub credential: Credential,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// `abcdef.0123456789abcdef`, a Secret of type `bootstrap.kubernetes.io/token`.
    Bootstrap { id: String, secret: String },
    /// The server's shared secret, with the user it stands for (`server` or `node`).
    Shared { user: String, secret: String },
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("ca_hash", &self.ca_hash).finish_non_exhaustive()
    }
}

impl JoinToken {
    /// Parses any of the forms above.
    pub fn parse(text: &str) -> Result<Self, PkiError> {
        let bad = |detail: &str| PkiError::Token { detail: format!("the token is malformed: {detail}") };
        let text = text.trim();
        if text.is_empty() || text.len() > TOKEN_LENGTH_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad("it is empty, too long, or has characters a token cannot have"));
        }
        let Some(pinned) = text.strip_prefix(PREFIX).filter(|rest| rest.contains("::")) else {
            return Ok(Self { ca_hash: None, credential: Credential::parse(text) });
        };
        let (hash, credential) = pinned.split_once("::").ok_or_else(|| bad("`::` is missing"))?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hash {
            return Err(bad("the CA hash after K10 is not 64 hexadecimal digits"));
        }
        if credential.is_empty() {
            return Err(bad("nothing follows `::`"));
        }
        Ok(Self { ca_hash: Some(hash.to_ascii_lowercase()), credential: Credential::parse(credential) })
    }

    /// Whether `ca_der` is the CA this token pins. A token that pins none accepts any: the caller warns.
    pub fn accepts(&self, ca_der: &[u8]) -> bool {
        self.ca_hash.as_ref().is_none_or(|pinned| *pinned == ca_hash(ca_der))
    }

    /// The full text, secret included: for the token file and for `rkube token create`.
    pub fn reveal(&self) -> String {
        let credential = match &self.credential {
            Credential::Bootstrap { id, secret } => format!("{id}.{secret}"),
            Credential::Shared { user, secret } => format!("{user}:{secret}"),
        };
        match &self.ca_hash {
            Some(hash) => format!("{PREFIX}{hash}::{credential}"),
            None => credential,
        }
    }
}

impl Credential {
    fn parse(text: &str) -> Self {
        if let Some((user, secret)) = text.split_once(':') {
            return Self::Shared { user: user.to_owned(), secret: secret.to_owned() };
        }
        match text.split_once('.') {
            Some((id, secret)) if is_bootstrap(id, secret) => {
                Self::Bootstrap { id: id.to_owned(), secret: secret.to_owned() }
            }
            _ => Self::Shared { user: "node".to_owned(), secret: text.to_owned() },
        }
    }

    /// What is sent as the bearer token.
    pub fn bearer(&self) -> String {
        match self {
            Self::Bootstrap { id, secret } => format!("{id}.{secret}"),
            Self::Shared { secret, .. } => secret.clone(),
        }
    }
}

/// The form of `[a-z0-9]{6}.[a-z0-9]{16}`.
pub fn is_bootstrap(id: &str, secret: &str) -> bool {
    is_bootstrap_id(id) && secret.len() == BOOTSTRAP_SECRET_LENGTH && has_alphabet(secret)
}

/// The form of `[a-z0-9]{6}`.
pub fn is_bootstrap_id(id: &str) -> bool {
    id.len() == BOOTSTRAP_ID_LENGTH && has_alphabet(id)
}

fn has_alphabet(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The signature of `content` by a bootstrap token: a compact JWS (HS256) without its middle part.
pub fn sign_detached(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Whether `signature` is what the token makes of `content`.
pub fn is_signed(content: &str, id: &str, secret: &str, signature: &str) -> bool {
    verify_slices_are_equal(sign_detached(content, id, secret).as_bytes(), signature.as_bytes()).is_ok()
}

/// Lower-case hex of the SHA-256 of a certificate's DER.
pub fn ca_hash(ca_der: &[u8]) -> String {
    digest(&SHA256, ca_der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A random bootstrap credential.
pub fn generate_bootstrap() -> Result<Credential, PkiError> {
    Ok(Credential::Bootstrap { id: random(BOOTSTRAP_ID_LENGTH)?, secret: random(BOOTSTRAP_SECRET_LENGTH)? })
}

/// A random shared secret of 160 bits and more.
pub fn generate_shared(user: &str) -> Result<Credential, PkiError> {
    Ok(Credential::Shared { user: user.to_owned(), secret: random(32)? })
}

/// `length` characters of `[a-z0-9]`, without bias.
fn random(length: usize) -> Result<String, PkiError> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    /// The largest multiple of 36 in a byte: larger bytes are drawn again.
    const FAIR: u8 = 252;
    let source = SystemRandom::new();
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut bytes = [0; 32];
        source
            .fill(&mut bytes)
            .map_err(|_| PkiError::Generate { what: "token", detail: "the system has no randomness".to_owned() })?;
        for byte in bytes.into_iter().filter(|&byte| byte < FAIR).take(length - text.len()) {
            text.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_back_as_written() {
        let hash = "a".repeat(64);
        for text in [
            format!("K10{hash}::server:sesame"),
            format!("K10{hash}::abcdef.0123456789abcdef"),
            "abcdef.0123456789abcdef".to_owned(),
            "node:sesame".to_owned(),
        ] {
            assert_eq!(JoinToken::parse(&text).unwrap().reveal(), text);
        }
    }

    #[test]
    fn a_bare_secret_is_the_nodes_shared_secret() {
        let token = JoinToken::parse(" sesame\n").unwrap();
        assert!(token.credential == Credential::Shared { user: "node".to_owned(), secret: "sesame".to_owned() });
    }

    #[test]
    fn malformed_tokens_are_named_and_not_repeated() {
        for text in ["", "K10zz::server:sesame", &format!("K10{}::", "a".repeat(64)), "two words"] {
            let error = JoinToken::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("the token is malformed"), "{text:?}: {error}");
            assert!(!error.contains("sesame"));
        }
    }

    #[test]
    fn a_pinned_token_accepts_its_ca_only() {
        let token = JoinToken::parse(&format!("K10{}::node:x", ca_hash(b"ours"))).unwrap();
        assert!(token.accepts(b"ours"));
        assert!(!token.accepts(b"theirs"));
    }

    #[test]
    fn generated_bootstrap_tokens_have_the_form() {
        let Credential::Bootstrap { id, secret } = generate_bootstrap().unwrap() else { panic!("a bootstrap token") };
        assert!(is_bootstrap(&id, &secret));
    }
}
