//! Why something was not served. Each reason is a metric label and has a cause and a cure.

/// A drop reason; its number is part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum DropReason {
    /// The Service has no usable endpoint anywhere: refused.
    NoEndpoints = 1,
    /// Policy Local, and no endpoint on this node: dropped in silence.
    NoLocalEndpoint = 2,
    /// No free source port for this backend.
    SnatExhausted = 3,
    /// The flow table refused an entry.
    FlowTable = 4,
    /// No route to the backend or back to the client.
    NoRoute = 5,
    /// The device towards the backend has no address of this family, or isn't one of ours.
    NoSourceAddress = 6,
    /// The packet could not be rewritten (truncated under its headers, or not writable).
    Rewrite = 7,
    /// A table was inconsistent for a moment: a slot without backend.
    Inconsistent = 8,
    /// An ICMP answer could not be built, or was due to a fragment that mustn't get one.
    Answer = 9,
    /// The hop limit of a packet that gets no answer (an ICMP error, a later fragment) ran out here.
    HopLimit = 10,
    /// A port that no Service has on a live ClusterIP: refused.
    UnknownPort = 11,
    /// A load balancer address whose source ranges don't hold the client: dropped in silence.
    SourceRange = 12,
    /// An address of a Service range that no Service has, or a port or protocol there that a Service
    /// doesn't have: not let out of the node.
    UnownedAddress = 13,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::NoEndpoints,
        Self::NoLocalEndpoint,
        Self::SnatExhausted,
        Self::FlowTable,
        Self::NoRoute,
        Self::NoSourceAddress,
        Self::Rewrite,
        Self::Inconsistent,
        Self::Answer,
        Self::HopLimit,
        Self::UnknownPort,
        Self::SourceRange,
        Self::UnownedAddress,
    ];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::NoLocalEndpoint => "no_local_endpoint",
            Self::SnatExhausted => "snat_exhausted",
            Self::FlowTable => "flow_table",
            Self::NoRoute => "no_route",
            Self::NoSourceAddress => "no_source_address",
            Self::Rewrite => "rewrite",
            Self::Inconsistent => "inconsistent",
            Self::Answer => "answer",
            Self::HopLimit => "hop_limit",
            Self::UnknownPort => "unknown_port",
            Self::SourceRange => "source_range",
            Self::UnownedAddress => "unowned_address",
        }
    }

    /// From its number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u32 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn every_reason_is_listed_under_its_own_number() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index + 1);
            assert_eq!(DropReason::from_number(reason as u32), Some(reason));
        }
        assert_eq!(DropReason::from_number(0), None);
    }
}
