//! The host build of the datapath's decisions (`lb_common::model`) on the agent's tables.

use super::case::{Ask, How};
use super::compare::{Call, Datapath, Way};
use anyhow::Result;
use lb_agent::contract::Place;
use lb_common::abi::{Address, AffinityKey, AffinityValue};
use lb_common::bytes::Be16;
use lb_common::env::TICK_SHIFT;
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::socket::{self, SocketVerdict};
use lb_common::model::node::{Node, Outcome, PodTc, Tc};
use lb_common::model::scene::{self, device};
use lb_common::model::sockets::{HOST, POD, Socket, Sockets};
use lb_common::model::world::World;
use std::collections::BTreeMap;
use std::mem;
use std::net::SocketAddr;

/// Packet hooks of both families and socket hooks, over one world.
#[derive(Debug)]
pub struct Host {
    world: World,
    node4: Node<V4>,
    node6: Node<V6>,
    sockets: Sockets,
    /// The last socket.
    cookie: u64,
    /// What affinity remembered when it was put aside.
    aside: Option<BTreeMap<AffinityKey, AffinityValue>>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            world: World::default(),
            node4: scene::node::<V4>(),
            node6: scene::node::<V6>(),
            sockets: Sockets::default(),
            cookie: 0,
            aside: None,
        }
    }
}

impl Host {
    /// The maps hold this now; flows go on.
    pub fn change(&mut self, world: World) {
        let before = mem::replace(&mut self.world, world);
        self.world.affinity = before.affinity;
        self.world.seed = before.seed;
        self.world.now = before.now;
    }
}

/// One hook that all flows of a family pass.
fn run<F: AnswerFormat>(world: &mut World, node: &mut Node<F>, way: Way, frame: &[u8]) -> Outcome {
    mem::swap(&mut node.world, world);
    node.input = match way {
        Way::In | Way::Out => device::UPLINK,
        Way::FromPod | Way::ToPod => device::POD,
    };
    let outcome = match way {
        Way::In => node.ingress::<Tc>(frame),
        Way::Out => node.egress::<Tc>(frame),
        Way::FromPod => node.ingress::<PodTc>(frame),
        Way::ToPod => node.egress::<PodTc>(frame),
    };
    mem::swap(&mut node.world, world);
    outcome
}

impl Datapath for Host {
    fn masquerade_all(&mut self, is_wanted: bool) {
        self.node4.masquerades_all = is_wanted;
        self.node6.masquerades_all = is_wanted;
    }

    fn load(&mut self, world: &World) -> Result<()> {
        self.change(world.clone());
        self.node4.flows.clear();
        self.node6.flows.clear();
        self.sockets = Sockets::default();
        Ok(())
    }

    fn remembers(&self) -> bool {
        true
    }

    fn set_time(&mut self, now: u64) {
        self.world.now.set(((now * 1_000_000_000) >> TICK_SHIFT) as u32);
    }

    fn set_memory(&mut self, present: bool) -> Result<()> {
        if present {
            self.world.affinity = self.aside.take().unwrap_or_default();
        } else {
            let memory = mem::take(&mut self.world.affinity);
            self.aside.get_or_insert(memory);
        }
        Ok(())
    }

    fn can_be_asked(&self, _ask: &Ask) -> bool {
        true
    }

    fn packet(&mut self, way: Way, frame: &[u8]) -> Result<Outcome> {
        let Self { world, node4, node6, .. } = self;
        Ok(match frame.get(12..14) {
            Some([0x08, 0x00]) => run(world, node4, way, frame),
            _ => run(world, node6, way, frame),
        })
    }

    fn call(&mut self, call: &Call) -> Result<(SocketVerdict, Option<SocketAddr>)> {
        self.cookie += 1;
        mem::swap(&mut self.sockets.world, &mut self.world);
        let mut socket = Socket {
            node: &mut self.sockets,
            cookie: self.cookie,
            namespace: if call.place == Place::Node { HOST } else { POD },
            bound: call.bound.map_or(Address::UNSPECIFIED_V6, Address::from),
            port: Be16::new(0),
        };
        let verdict = match call.how {
            How::Send => socket::sendmsg(&mut socket, &call.destination),
            How::Connect | How::Packet => socket::connect(&mut socket, &call.destination),
        };
        let shown = match verdict {
            SocketVerdict::Translate(address, port) => socket::reveal(&socket, address, port),
            _ => None,
        };
        mem::swap(&mut self.sockets.world, &mut self.world);
        let shown = shown.map(|(address, port)| SocketAddr::new(address.into(), port.get()));
        Ok((verdict, shown))
    }
}
