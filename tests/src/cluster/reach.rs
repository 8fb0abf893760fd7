//! Who answers: requests from the lab's hosts through the datapath, and what must become of them.
//!
//! A change takes a moment from the API server through the controllers to the kernel, so an
//! expectation holds as soon as one round of requests agrees with it entirely.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lb_lab::{Lab, Request, Transport, histogram};

/// How long a change may take until it is visible. Typical is a tenth of a second; two busy cores, a
/// control plane that has just been restarted, and TCP's retransmissions after a cut need the rest.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Requests of one round: with up to three endpoints chosen at random, one of them is missed by
/// all of them less than once in 10⁵ rounds, and then the next round decides.
const REQUESTS: u32 = 32;

/// Where requests go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// TCP or UDP.
    pub transport: Transport,
    /// Address, of either family.
    pub address: IpAddr,
    /// Port, host byte order.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} port {}", self.transport, self.address, self.port)
    }
}

impl Target {
    /// A TCP port.
    #[must_use]
    pub fn tcp(address: IpAddr, port: u16) -> Self {
        Self { transport: Transport::Tcp, address, port }
    }

    /// A UDP port.
    #[must_use]
    pub fn udp(address: IpAddr, port: u16) -> Self {
        Self { transport: Transport::Udp, address, port }
    }
}

/// What must become of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect<'a> {
    /// Each of these servers answers some, and nobody else answers any.
    Servers(&'a [&'a str]),
    /// Refused at once (`ECONNREFUSED`), as by a Service without endpoints.
    Refused,
    /// Not one is answered, in whatever way it fails: nothing translates the address.
    Nobody,
}

/// Repeats `look` until it finds nothing to complain about.
///
/// # Errors
/// The last complaint, after [`PATIENCE`].
pub fn eventually(what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    loop {
        match look() {
            Ok(()) => return Ok(()),
            Err(complaint) if began.elapsed() > PATIENCE => {
                return Err(complaint.context(format!("waited {PATIENCE:?} in vain: {what}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Requests from `client` to `target` until `expect` holds.
///
/// # Errors
/// It does not within [`PATIENCE`]; the error says who answered instead.
pub fn reach(lab: &Lab, client: &str, target: Target, expect: Expect<'_>) -> Result<()> {
    eventually(&format!("{client} → {target}"), || look(lab, client, target, expect))
}

/// One round of requests from `client` to `target`, judged at once.
///
/// # Errors
/// `expect` does not hold; the error says who answered instead.
pub fn look(lab: &Lab, client: &str, target: Target, expect: Expect<'_>) -> Result<()> {
    let peer = lab.peer(client)?;
    let request = Request::new(target.transport, target.address, target.port)
        // Connected, so that a refusal reaches a UDP socket too.
        .connected()
        .patience(Duration::from_millis(500));
    // One alone first: a round that cannot succeed would cost the patience of every request.
    let mut outcomes = vec![peer.ask(&request)?];
    if matches!((expect, &outcomes[0]), (Expect::Servers(_), Ok(_))) {
        outcomes.extend(peer.request(&request.times(REQUESTS))?);
    }
    let seen = histogram(&outcomes);
    let agrees = match expect {
        Expect::Servers(servers) => {
            let seen: BTreeSet<&str> = seen.keys().map(String::as_str).collect();
            seen == servers.iter().copied().collect()
        }
        Expect::Refused => outcomes
            .iter()
            .all(|outcome| matches!(outcome, Err(failure) if failure.errno == "ECONNREFUSED")),
        Expect::Nobody => outcomes.iter().all(Result::is_err),
    };
    if agrees {
        return Ok(());
    }
    bail!("{client} → {target}: expected {expect:?}, saw {seen:?}")
}
