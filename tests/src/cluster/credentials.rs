//! Who may talk to the API server: bearer tokens, and the kubeconfigs that carry them.
//!
//! Tokens stand in a file that the API server reads at start. The agent's token names the
//! ServiceAccount that `deploy/` binds, so that it has exactly the rights of a real installation:
//! what the manifests forget to grant fails in the tests too.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Port of the API server.
pub const PORT: u16 = 6443;

/// Who a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// May do everything: the test itself, and the controller manager at start.
    Admin,
    /// The ServiceAccount `kube-system/lb-agent`, as bound by `deploy/`.
    Agent,
}

impl Identity {
    /// Everybody.
    pub const ALL: [Self; 2] = [Self::Admin, Self::Agent];

    fn token(self) -> &'static str {
        match self {
            Self::Admin => "token-of-the-admin",
            Self::Agent => "token-of-the-agent",
        }
    }

    /// The line of the token file: token, user, uid, groups.
    fn line(self) -> String {
        let (user, groups) = match self {
            Self::Admin => ("admin", "system:masters"),
            Self::Agent => (
                "system:serviceaccount:kube-system:lb-agent",
                "system:serviceaccounts,system:serviceaccounts:kube-system",
            ),
        };
        format!("{},{user},{user},\"{groups}\"\n", self.token())
    }
}

/// Writes the API server's token file.
///
/// # Errors
/// The file can't be written.
pub fn write_tokens(path: &Path) -> Result<()> {
    let lines: String = Identity::ALL.into_iter().map(Identity::line).collect();
    fs::write(path, lines).with_context(|| format!("writing tokens to {}", path.display()))
}

/// Writes a kubeconfig for `identity` to `path`.
///
/// The authority is the self-signed certificate that the API server makes at its first start, named
/// by path: it may not exist yet.
///
/// # Errors
/// The file can't be written.
pub fn write_kubeconfig(
    path: &Path,
    identity: Identity,
    server: IpAddr,
    authority: &Path,
) -> Result<()> {
    let url = format!("https://{}", SocketAddr::new(server, PORT));
    let text = format!(
        "apiVersion: v1
kind: Config
clusters:
- name: test
  cluster: {{server: \"{url}\", certificate-authority: \"{authority}\"}}
users:
- name: user
  user: {{token: {token}}}
contexts:
- name: test
  context: {{cluster: test, user: user}}
current-context: test
",
        authority = authority.display(),
        token = identity.token(),
    );
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", path.display()))
}
