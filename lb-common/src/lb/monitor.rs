//! What whoever watches is told of a decision, and whether: `lb-agent monitor`.
//!
//! While nobody does, a drop or a new connection costs one load and a branch, and every other packet
//! nothing.

use super::DropReason;
use crate::abi::{
    BackendIndex, Conditions, Event, EventKinds, Flow, FlowFlags, Monitor, Pace, ServiceIndex,
};
use crate::env::{Env, Tables};
use crate::family::Family;
use crate::packet::Work;

const SECOND: u64 = 1_000_000_000;

/// Where in [`Work`] the packet is that an event of a packet hook is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tuple {
    /// [`Work::packet`], as it came.
    Packet = 0,
    /// Likewise, and [`Work::entry`] is the entry of its direction.
    Flow = 1,
    /// [`Work::key`] stands for what an error travels with, and [`Work::entry`] is its entry.
    Error = 2,
}

/// What an event of a packet hook is about: numbers alone, so that a program hands it over in a few steps.
/// Linux 6.1 judges each way to a drop by itself, and a description at the place made it give up.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// The packet.
    pub tuple: Tuple,
    /// The Service port; 0 when none is involved.
    pub service: ServiceIndex,
    /// The endpoint that was chosen for it, when it isn't a flow's; 0 for none.
    pub backend: BackendIndex,
}

impl Subject {
    /// A packet for which no endpoint was chosen.
    #[inline(always)]
    pub fn packet(service: ServiceIndex) -> Self {
        Self { tuple: Tuple::Packet, service, backend: BackendIndex(0) }
    }

    /// A packet of a flow.
    #[inline(always)]
    pub fn flow<F: Family>(flow: &Flow<F>) -> Self {
        Self { tuple: Tuple::Flow, service: flow.service, backend: flow.backend }
    }

    /// Writes what is known of it. Everything else in `event` is the hook's.
    #[inline(always)]
    pub fn describe<F: Family, T: Tables>(
        &self,
        work: &Work<F>,
        tables: &T,
        reason: u8,
        event: &mut Event,
    ) {
        let tuple = if self.tuple == Tuple::Error { &work.key } else { &work.packet.tuple };
        event.service = self.service;
        event.protocol = tuple.protocol as u8;
        event.reason = reason;
        let flow = &work.entry;
        let is_flow = self.tuple != Tuple::Packet;
        if is_flow && flow.flags & FlowFlags::REPLY != 0 {
            // From the endpoint: the client is where it goes.
            let to = &flow.translated;
            F::widen_to(&mut event.client, &to.destination);
            F::widen_to(&mut event.frontend, &to.source);
            F::widen_to(&mut event.backend, &tuple.source);
            event.client_port = to.destination_port;
            event.frontend_port = to.source_port;
            event.backend_port = tuple.source_port;
            return;
        }
        F::widen_to(&mut event.client, &tuple.source);
        F::widen_to(&mut event.frontend, &tuple.destination);
        event.client_port = tuple.source_port;
        event.frontend_port = tuple.destination_port;
        if is_flow {
            F::widen_to(&mut event.backend, &flow.translated.destination);
            event.backend_port = flow.translated.destination_port;
        } else if let Some(chosen) = tables.backend(self.backend) {
            // Element 0 is nobody's, and zero. To write zeros would be a loop (see `Flow::copy_from`).
            event.backend.copy_from(&chosen.address.words());
            event.backend_port = chosen.port;
        }
    }
}

/// Counts what a packet hook doesn't serve, and tells who watches.
#[inline(always)]
pub fn not_served<F: Family, E: Env<F>>(
    env: &E,
    work: &Work<F>,
    subject: Subject,
    reason: DropReason,
) {
    env.count_drop(subject.service, reason);
    if env.watched() & kind(reason as u8) != 0 {
        env.report(work, subject, reason as u8);
    }
}

/// Tells who watches of a flow that a packet opened.
#[inline(always)]
pub fn opened<F: Family, E: Env<F>>(env: &E, work: &Work<F>) {
    if env.watched() & EventKinds::CONNECTIONS != 0 {
        env.report(work, Subject::flow(&work.entry), 0);
    }
}

/// The bit of [`EventKinds`] of an event with this [`Event::reason`].
#[inline(always)]
pub const fn kind(reason: u8) -> u32 {
    const REFUSALS: [u8; 2] = [DropReason::NoEndpoints as u8, DropReason::UnknownPort as u8];
    if reason == 0 {
        EventKinds::CONNECTIONS
    } else if reason == REFUSALS[0] || reason == REFUSALS[1] {
        EventKinds::REFUSALS
    } else {
        EventKinds::DROPS
    }
}

/// Whether somebody wants an event at its time. `is_watched`: WATCHED has the Service.
#[inline(always)]
pub fn wants(
    monitor: &Monitor,
    event: &Event,
    is_watched: impl FnOnce(ServiceIndex) -> bool,
) -> bool {
    let Monitor { until, kinds, address, port, protocol, conditions, .. } = *monitor;
    let has = |condition| conditions & condition != 0;
    event.time < until
        && kinds & kind(event.reason) != 0
        && (!has(Conditions::PROTOCOL) || event.protocol == protocol)
        && (!has(Conditions::PORT) || event.frontend_port == port || event.backend_port == port)
        && (!has(Conditions::ADDRESS)
            || event.client == address
            || event.frontend == address
            || event.backend == address)
        && (!has(Conditions::SERVICES) || is_watched(event.service))
}

/// Whether one more event at `now` (nanoseconds) is within the rate; counts it either way.
#[inline(always)]
pub fn admits(pace: &mut Pace, now: u64, rate: u32) -> bool {
    if now.wrapping_sub(pace.since) >= SECOND {
        pace.since = now;
        pace.events = 0;
    }
    if pace.events >= rate as u64 {
        pace.suppressed += 1;
        return false;
    }
    pace.events += 1;
    true
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::abi::Address;
    use crate::bytes::Be16;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn event(addresses: [&str; 3], reason: u8) -> Event {
        let [client, frontend, backend] = addresses.map(address);
        Event {
            time: 10,
            client,
            frontend,
            backend,
            service: ServiceIndex(7),
            client_port: Be16::new(40_000),
            frontend_port: Be16::new(80),
            backend_port: Be16::new(8080),
            protocol: 6,
            reason,
            ..Event::default()
        }
    }

    #[test]
    fn every_reason_is_of_one_kind_and_two_are_refusals() {
        let refusals = DropReason::ALL
            .into_iter()
            .filter(|reason| kind(*reason as u8) == EventKinds::REFUSALS);
        assert!(refusals.eq([DropReason::NoEndpoints, DropReason::UnknownPort]));
        assert_eq!(kind(DropReason::SourceRange as u8), EventKinds::DROPS);
        assert_eq!(kind(0), EventKinds::CONNECTIONS);
    }

    #[test]
    fn an_event_is_wanted_when_every_condition_that_is_set_holds_in_both_families() {
        const ALL: u32 = EventKinds::CONNECTIONS | EventKinds::DROPS | EventKinds::REFUSALS;
        let everything = Monitor { until: 11, kinds: ALL, ..Monitor::default() };
        let families =
            [["192.0.2.7", "10.96.0.1", "10.244.0.9"], ["2001:db8::7", "fd00:96::1", "fd00::9"]];
        for addresses in families {
            let about = |text: &str| Monitor {
                conditions: Conditions::ADDRESS,
                address: address(text),
                ..everything
            };
            let port = |port| Monitor {
                conditions: Conditions::PORT,
                port: Be16::new(port),
                ..everything
            };
            let protocol =
                |protocol| Monitor { conditions: Conditions::PROTOCOL, protocol, ..everything };
            let services = Monitor { conditions: Conditions::SERVICES, ..everything };
            let both = Monitor {
                conditions: Conditions::PORT | Conditions::ADDRESS,
                port: Be16::new(81),
                ..about(addresses[0])
            };
            for (case, monitor, reason, wanted) in [
                ("everything", everything, 0, true),
                ("nobody", Monitor { kinds: 0, ..everything }, 0, false),
                ("who watched has died", Monitor { until: 10, ..everything }, 0, false),
                ("drops alone", Monitor { kinds: EventKinds::DROPS, ..everything }, 0, false),
                ("drops alone", Monitor { kinds: EventKinds::DROPS, ..everything }, 12, true),
                ("refusals", Monitor { kinds: EventKinds::REFUSALS, ..everything }, 12, false),
                ("refusals", Monitor { kinds: EventKinds::REFUSALS, ..everything }, 1, true),
                ("the client", about(addresses[0]), 0, true),
                ("the frontend", about(addresses[1]), 0, true),
                ("the backend", about(addresses[2]), 0, true),
                ("somebody else", about("10.96.0.2"), 0, false),
                ("the frontend's port", port(80), 0, true),
                ("the backend's port", port(8080), 0, true),
                ("the client's port", port(40_000), 0, false),
                ("the protocol", protocol(6), 0, true),
                ("another protocol", protocol(17), 0, false),
                ("the Service", services, 0, true),
                ("one of two conditions", both, 0, false),
            ] {
                let is_watched = |service| service == ServiceIndex(7);
                assert_eq!(
                    wants(&monitor, &event(addresses, reason), is_watched),
                    wanted,
                    "{case}"
                );
            }
            assert!(!wants(&services, &event(addresses, 0), |_| false));
        }
    }

    #[test]
    fn a_second_has_as_many_events_as_the_rate_and_the_rest_is_counted() {
        let mut pace = Pace::default();
        let start = 5 * SECOND;
        for at in [0, 1, SECOND - 1] {
            assert!(admits(&mut pace, start + at, 3), "{at}");
        }
        assert!(!admits(&mut pace, start + SECOND - 1, 3));
        assert!(!admits(&mut pace, start + SECOND - 1, 3));
        assert_eq!((pace.suppressed, pace.lost), (2, 0));
        assert!(admits(&mut pace, start + SECOND, 3));
        assert_eq!((pace.since, pace.events, pace.suppressed), (start + SECOND, 1, 2));
        let other = Pace { suppressed: 5, lost: 1, ..Pace::default() };
        assert_eq!(pace + other, Pace { suppressed: 7, lost: 1, ..Pace::default() });
    }
}
