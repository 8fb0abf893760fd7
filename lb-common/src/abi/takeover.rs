//! TAKEOVER: who opens flows while another service proxy works, or has worked, on this node.

/// Bits of the only element of TAKEOVER. They outlive the agent: what a packet gets may not change
/// while it is restarted.
pub struct TakeoverFlags;

impl TakeoverFlags {
    /// Another proxy's connections are still carried by the kernel's conntrack: what belongs to no flow
    /// of ours and opens no connection is left to it.
    pub const BESIDE: u32 = 1;
    /// The other proxy opens flows, too: we carry those that we know, and remember those that it
    /// opens. At the beginning, until its flows are known, and at the end, until ours have ended.
    pub const YIELDS: u32 = 1 << 1;
    /// The node was taken over: the next start of the agent is a restart.
    pub const SETTLED: u32 = 1 << 2;
    /// Rules of the other proxy are there, and translate what we leave alone. For the agent; no program
    /// asks.
    pub const RULES: u32 = 1 << 3;
}
