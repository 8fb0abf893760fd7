//! Random packets and states: the loaded programs and the model must agree on every one.

use super::Case;
use super::bench::Bench;
use super::forwarding::pod;
use super::programs::Hook;
use anyhow::{Context, Result};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::select::mix;
use lb_common::model::frame::{Fragment, IcmpError, Problem, Segment, Transport};
use lb_common::model::scene::{Role, at, ip, port};
use std::net::SocketAddr;

/// Histories per family, and frames per history.
const HISTORIES: u32 = 40;
const FRAMES: u32 = 60;

pub(super) fn cases<F: AnswerFormat>() -> Vec<Case<F>> {
    vec![("random histories are handled as the model says", histories)]
}

fn histories<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for history in 0..HISTORIES {
        bench.reset()?;
        let mut dice = Dice(mix(history + 1));
        // The frames that were sent on: their answers make the histories interesting.
        let mut known = Vec::new();
        for step in 0..FRAMES {
            let (hook, frame) = draw::<F>(&mut dice, &known);
            if frame.len() < bench.shortest(hook) {
                continue;
            }
            let run = bench
                .run(hook, &frame)
                .with_context(|| format!("history {history}, step {step}"))?;
            known.push(run.bytes);
        }
        bench.same_counts().with_context(|| format!("history {history}"))?;
    }
    Ok(())
}

/// Reproducible random numbers.
struct Dice(u32);

impl Dice {
    fn roll(&mut self, sides: u32) -> u32 {
        self.0 = mix(self.0.wrapping_add(0x9e37_79b9));
        self.0 % sides.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.roll(from.len() as u32) as usize).copied()
    }
}

fn draw<F: AnswerFormat>(dice: &mut Dice, known: &[Vec<u8>]) -> (Hook, Vec<u8>) {
    let hook = dice.pick(&[Hook::Ingress, Hook::Ingress, Hook::Egress, Hook::Xdp]);
    let hook = hook.unwrap_or(Hook::Ingress);
    let mut frame = match dice.roll(4) {
        0 => reply::<F>(dice, known).unwrap_or_else(|| request::<F>(dice).frame()),
        1 => error::<F>(dice, known),
        _ => request::<F>(dice).frame(),
    };
    // Some are damaged: a byte behind the EtherType, or the end.
    match dice.roll(8) {
        0 => {
            let at = 14 + dice.roll(frame.len() as u32 - 14) as usize;
            let byte = dice.roll(256) as u8;
            frame.iter_mut().skip(at).take(1).for_each(|target| *target = byte);
        }
        1 => frame.truncate(14 + dice.roll(frame.len() as u32 - 14) as usize),
        _ => {}
    }
    (hook, frame)
}

fn request<F: AnswerFormat>(dice: &mut Dice) -> Segment {
    let service = port::LOCAL + dice.roll(16) as u16;
    let to = match dice.roll(7) {
        0 => at::<F>(Role::Node, port::node_port(service)),
        1 => at::<F>(Role::ClusterIp, service),
        2 => at::<F>(Role::Management, port::node_port(service)),
        3 => at::<F>(Role::LoadBalancer, service),
        _ => at::<F>(Role::External, service),
    };
    let from = dice.pick(&[Role::Client, Role::OtherClient]).unwrap_or(Role::Client);
    let flags = dice.pick(&[0x02, 0x10, 0x11, 0x04, 0x18]).unwrap_or_default();
    let transport =
        dice.pick(&[Transport::Tcp(flags), Transport::Udp, Transport::UdpWithoutChecksum]);
    let source = at::<F>(from, port::CLIENT + dice.roll(4) as u16);
    let mut segment = Segment::new(source, to, transport.unwrap_or(Transport::Udp));
    segment.hop_limit = dice.pick(&[64, 255, 2, 1, 0]).unwrap_or(64);
    segment.dont_fragment = dice.roll(2) == 0;
    segment.extras = dice.pick(&[0, 0, 0, 1, 3, 7]).unwrap_or_default();
    segment.payload = vec![dice.roll(256) as u8; dice.pick(&[0, 1, 33, 1440]).unwrap_or(0)];
    if dice.roll(8) == 0 {
        let offset = dice.pick(&[0, 0, 5]).unwrap_or(0);
        segment.fragment = Some(Fragment { id: dice.roll(2) as u16, offset, more: offset == 0 });
    }
    segment
}

/// An answer to a frame that came out of a program: addresses and ports exchanged.
fn reply<F: AnswerFormat>(dice: &mut Dice, known: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut frame = known.get(dice.roll(known.len() as u32) as usize)?.clone();
    let header = 14 + F::HEADER_LEN as usize;
    let width = size_of::<F::Addr>();
    let start = 14 + F::SOURCE_OFFSET as usize;
    frame.get_mut(start..start + 2 * width)?.rotate_left(width);
    frame.get_mut(header..header + 4)?.rotate_left(2);
    Some(frame)
}

/// An error about a frame that came out of a program, or about anything.
fn error<F: AnswerFormat>(dice: &mut Dice, known: &[Vec<u8>]) -> Vec<u8> {
    let of_known = known.get(dice.roll(known.len() as u32) as usize);
    let frame = of_known.cloned().unwrap_or_else(|| request::<F>(dice).frame());
    let mut quote = frame.get(14..).unwrap_or_default().to_vec();
    quote.truncate(dice.pick(&[28, 48, 400]).unwrap_or(28));
    let to: SocketAddr = dice
        .pick(&[pod::<F>(Role::LocalPod), at::<F>(Role::Node, 0), at::<F>(Role::External, 0)])
        .unwrap_or(pod::<F>(Role::LocalPod));
    let problem =
        dice.pick(&[Problem::PortUnreachable, Problem::TooBig(1300), Problem::TimeExceeded]);
    IcmpError {
        source: ip::<F>(Role::Router),
        destination: to.ip(),
        problem: problem.unwrap_or(Problem::PortUnreachable),
        quote,
        hop_limit: dice.pick(&[64, 2, 1]).unwrap_or(64),
        own: false,
    }
    .frame()
}
