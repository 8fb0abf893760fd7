//! `lb-agent doctor`.

use clap::ValueEnum;

use super::RunArgs;

pub(super) const DOCTOR_USAGE: &str =
    "lb-agent doctor [-o table|json|yaml] [options of `lb-agent run`]";

pub(super) const DOCTOR_AFTER: &str = "\
Looks at the kernel, the capabilities of this process, mounts, sysctls, other service proxies, devices,
addresses and the pinned maps, and compares these with what the API server or the manifests say now.
Changes nothing, and works while the agent is down; what can't be looked at is said with the reason.

The options are those of `lb-agent run`. Without --kubeconfig, --master, --manifests and --config all are
taken from the running agent, if there is one; of one in a container only inside of that container
(kubectl exec), where its files are.

Exit status:
  0  nothing worse than info
  1  the examination could not be made
  2  the command line could not be understood
  3  warnings: something works less well than it could, or may break later
  4  errors: Services don't work, or wouldn't after the next start
";

/// `lb-agent doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: DoctorFormat,
    /// What the agent is told.
    #[command(flatten)]
    pub run: RunArgs,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    /// For people; below a finding what to do about it
    #[default]
    Table,
    /// One JSON array
    Json,
    /// The same as YAML
    Yaml,
}
