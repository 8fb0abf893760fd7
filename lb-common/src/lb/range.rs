//! Addresses that belong to Services, and those who have none: nothing for them leaves the node.
//!
//! Sockets have been led to endpoints before a packet was built, and flows are known. A packet that
//! still has an address of a Service range at egress is for nobody: the address isn't given to a
//! Service, or the Service has no such port or protocol there (an echo request, for example). The
//! default route would lead it out of the cluster, where somebody else may have the address.
//! kube-proxy drops it likewise (nftables/proxier.go, chain `cluster-ips-check`).
//!
//! So does what sockets send that are led to nobody, because their packets are to be dropped in silence.

use super::{DropReason, Verdict, drop_untold};
use crate::abi::ServiceIndex;
use crate::env::Env;
use crate::packet::ReadHeader;

/// A packet that belongs to no flow is about to leave, whatever its protocol.
#[inline(always)]
pub(super) fn leave<F: ReadHeader, E: Env<F>>(env: &mut E) -> Verdict {
    let Some(address) = env.load::<F::Addr>(E::IP_OFFSET + F::DESTINATION_OFFSET) else {
        return Verdict::Pass;
    };
    let destination = F::widen(address);
    // Counted when the socket was led there.
    if destination.is_discard() {
        return Verdict::Drop;
    }
    if env.service_ranges(destination).is_some_and(|ranges| ranges.hold(destination)) {
        return drop_untold(env, ServiceIndex(0), DropReason::UnownedAddress);
    }
    Verdict::Pass
}
