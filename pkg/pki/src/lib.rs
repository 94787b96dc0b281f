//! Certificate authorities, leaf certificates, service account keys, kubeconfig files and join tokens.
