//! What the users of a cluster should hear of an agent, as events on the objects that it is about.
//!
//! Reasons and actions that kube-proxy has, too, are kube-proxy's, so that whoever looks for them
//! finds them.

use tokio::sync::mpsc;

use crate::cluster::snapshot::ObjectName;
use crate::plan::desired::ServicePortKey;
use crate::serve::service_health::Trouble;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The object.
    pub about: About,
    /// What happened.
    pub kind: Kind,
    /// The particulars and what to do, one line; the writer puts the node's name before it.
    pub note: Option<String>,
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// The agent's own Node.
    Node,
    /// A Service.
    Service(ObjectName),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The agent serves its node.
    Started,
    /// A Service port has no room in the datapath.
    DatapathFull,
    /// A health check port can't be opened.
    HealthCheckClosed,
}

impl Kind {
    /// Something doesn't work.
    pub fn is_warning(self) -> bool {
        match self {
            Self::Started => false,
            Self::DatapathFull | Self::HealthCheckClosed => true,
        }
    }

    /// For `kubectl get events --field-selector reason=…`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Started => "Starting",
            Self::DatapathFull => "DatapathFull",
            Self::HealthCheckClosed => "FailedToStartServiceHealthcheck",
        }
    }

    /// What the agent was doing.
    pub fn action(self) -> &'static str {
        match self {
            Self::Started => "StartKubeProxy",
            Self::DatapathFull => "Program",
            Self::HealthCheckClosed => "Listen",
        }
    }
}

impl Notice {
    /// The agent serves its node.
    pub fn started() -> Self {
        Self { about: About::Node, kind: Kind::Started, note: None }
    }

    /// A Service port is not in the datapath.
    pub fn unfit(key: &ServicePortKey, reason: &str) -> Self {
        let note = format!("{key} is not in the datapath of a node: {reason}");
        Self {
            about: About::Service(key.service.clone()),
            kind: Kind::DatapathFull,
            note: Some(note),
        }
    }

    /// A health check port can't be opened.
    pub fn health_check_closed(trouble: &Trouble) -> Self {
        Self {
            about: About::Service(trouble.service.clone()),
            kind: Kind::HealthCheckClosed,
            note: Some(trouble.to_string()),
        }
    }
}

/// To whoever writes events.
#[derive(Clone, Debug)]
pub struct Notices(Option<mpsc::Sender<Notice>>);

impl Notices {
    /// Without a `sender` (there is no API server) nobody hears.
    pub fn new(sender: Option<mpsc::Sender<Notice>>) -> Self {
        Self(sender)
    }

    /// Sends one, unless too many wait already: log and metrics say the same.
    pub fn send(&self, notice: Notice) {
        let Some(sender) = &self.0 else { return };
        if let Err(error) = sender.try_send(notice) {
            tracing::debug!(%error, "no event");
        }
    }
}
