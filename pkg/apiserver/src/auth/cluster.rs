//! The authenticators of a cluster, asked in upstream's order: a front proxy's headers, client certificates, then
//! bearer tokens.
//!
//! Behaves as `pkg/kubeapiserver/authenticator/config.go`, v1.36.

use futures_util::future::BoxFuture;

use super::basic::{CertificateAuthenticator, StaticTokens, bearer_token};
use super::bootstrap_token::BootstrapTokens;
use super::request_header::RequestHeaderAuthenticator;
use super::service_account::Verifier;
use super::{Authenticated, AuthenticationError, Authenticator, Credentials};

pub struct ClusterAuthenticator {
    pub front_proxy: RequestHeaderAuthenticator,
    pub certificates: CertificateAuthenticator,
    pub tokens: StaticTokens,
    pub service_accounts: Verifier,
    pub bootstrap: BootstrapTokens,
}

impl ClusterAuthenticator {
    async fn token(&self, token: &str, audiences: &[String]) -> Result<Option<Authenticated>, AuthenticationError> {
        if let Some(user) = self.tokens.find(token) {
            return Ok(Some(Authenticated { user: user.clone(), audiences: Vec::new() }));
        }
        if self.service_accounts.is_ours(token) {
            return self.service_accounts.verify(token, audiences).await.map(Some);
        }
        let user = self.bootstrap.verify(token).await?;
        Ok(user.map(|user| Authenticated { user, audiences: Vec::new() }))
    }
}

impl Authenticator for ClusterAuthenticator {
    fn authenticate<'a>(
        &'a self,
        credentials: &'a Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Authenticated>, AuthenticationError>> {
        Box::pin(async move {
            // What one authenticator refuses, another may accept: a proxy's certificate that is not believed may be a
            // user's, and a certificate that is not good does no harm to a token that is.
            if let Ok(Some(user)) = self.front_proxy.user(credentials) {
                return Ok(Some(Authenticated { user, audiences: Vec::new() }));
            }
            let certificate = self.certificates.user(credentials);
            if let Ok(Some(user)) = certificate {
                return Ok(Some(Authenticated { user, audiences: Vec::new() }));
            }
            let Some(token) = bearer_token(credentials.headers) else { return certificate.map(|_| None) };
            match self.token(token, &[]).await? {
                Some(known) => Ok(Some(known)),
                None => Err(AuthenticationError("invalid bearer token".to_owned())),
            }
        })
    }

    fn authenticate_token<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Authenticated>, AuthenticationError>> {
        Box::pin(self.token(token, audiences))
    }
}
