//! The server's own tokens: what other servers, and workers, come with.
//!
//! Inputs: the settings `token` and `agent-token`, and what an earlier start kept. Outputs: `server/token`, with which a
//! server joins the cluster and a worker may; and `server/agent-token`, which is good for workers only, where one is set.
//!
//! Invariant: a secret that was given or kept is never replaced by one made here.

use std::path::{Path, PathBuf};

use rkube_pki::join_token::{self, Credential, JoinToken};
use rkube_pki::{PkiError, authority, files};

use crate::config::{Paths, Secret, ServerConfig};

/// The users of tokens, as k3s names them.
const SERVER: &str = "server";
const NODE: &str = "node";

#[derive(Debug, thiserror::Error)]
pub(crate) enum TokensError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("{path} is empty: put the token back, or remove the file to have a new one made")]
    Empty { path: PathBuf },
}

/// The secrets with which others may come.
pub(super) struct Tokens {
    pub(super) server: Credential,
    pub(super) agent: Option<Credential>,
}

impl Tokens {
    /// Takes what was given or kept, or makes it, and writes the files with the hash of the cluster's authority.
    pub(super) fn open(config: &ServerConfig, paths: &Paths, authority: &str) -> Result<Self, TokensError> {
        let ca_hash = authority::certificates(authority, "cluster CA")?.first().map(|der| join_token::ca_hash(der));
        let write = |path: &Path, credential: &Credential| {
            let text = format!("{}\n", JoinToken { ca_hash: ca_hash.clone(), credential: credential.clone() }.reveal());
            if files::read(path)?.as_deref() != Some(text.as_str()) {
                files::write(path, text.as_bytes(), files::PRIVATE)?;
            }
            Ok::<_, PkiError>(())
        };
        let server = match known(config, paths)? {
            Some(credential) => credential,
            None => join_token::generate_shared(SERVER)?,
        };
        write(&paths.token(), &server)?;
        let agent = config.agent_token.as_ref().map(|given| parse(given.reveal(), NODE)).transpose()?;
        if let Some(agent) = &agent {
            write(&paths.agent_token(), agent)?;
        }
        Ok(Self { server, agent })
    }

    /// What is sent by whoever comes with one of them.
    pub(super) fn bearers(&self) -> impl Iterator<Item = String> {
        [Some(&self.server), self.agent.as_ref()].into_iter().flatten().map(Credential::bearer)
    }
}

/// The server's secret, as it was given or kept.
pub(super) fn known(config: &ServerConfig, paths: &Paths) -> Result<Option<Credential>, TokensError> {
    let text = match &config.token {
        Some(given) => Some(Secret::reveal(given).to_owned()),
        None => files::read(&paths.token())?,
    };
    if config.token.is_none() && text.as_ref().is_some_and(|text| text.trim().is_empty()) {
        return Err(TokensError::Empty { path: paths.token() });
    }
    Ok(text.map(|text| parse(&text, SERVER)).transpose()?)
}

/// Makes a secret and keeps it, before there is an authority whose hash could go with it.
pub(super) fn make(paths: &Paths) -> Result<String, PkiError> {
    let credential = join_token::generate_shared(SERVER)?;
    let text = format!("{}\n", JoinToken { ca_hash: None, credential: credential.clone() }.reveal());
    files::write(&paths.token(), text.as_bytes(), files::PRIVATE)?;
    Ok(credential.bearer())
}

/// A secret stands for `user` here, whatever its text says.
fn parse(text: &str, user: &str) -> Result<Credential, PkiError> {
    Ok(match JoinToken::parse(text)?.credential {
        Credential::Shared { secret, .. } => Credential::Shared { user: user.to_owned(), secret },
        bootstrap => bootstrap,
    })
}
