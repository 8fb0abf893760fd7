//! `lb-agent monitor`: drops, refusals and new connections as they happen.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lb_common::abi::EventKinds;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use crate::args::MonitorArgs;
use crate::bpf::monitor::{Events, Unseen, Wanted, Watch};
use crate::inspect::monitor::{header, render};
use crate::inspect::table::Common;

/// Between two looks at everything but the events.
const INTERVAL: Duration = Duration::from_secs(1);
/// Events that are shown in a row before signals and the rest have their turn.
const TURN: usize = 256;

/// Watches until it is told to end.
///
/// # Errors
/// When nothing can be watched, or what is seen can't be told.
pub fn monitor(args: &MonitorArgs) -> anyhow::Result<()> {
    let signals = signals().context("wait for signals")?;
    let start = Instant::now();
    let end = args.timeout.map(|timeout| start + *timeout);
    let (watch, mut events) = Watch::start(&args.pins.bpffs, wanted(args))?;
    let mut screen = Screen { args, watch, shown: 0, is_read: true };
    screen.begin()?;
    let mut next_look = start + INTERVAL;
    while screen.goes_on() {
        if wait(&events, &signals, end.map_or(next_look, |end| end.min(next_look)))? {
            break;
        }
        screen.show(&mut events, TURN)?;
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            break;
        }
        if now >= next_look {
            screen.look_after()?;
            next_look = now + INTERVAL;
        }
    }
    screen.end(&mut events)
}

/// From here on the signals that end it come through this descriptor.
fn signals() -> nix::Result<SignalFd> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGINT);
    ends.add(Signal::SIGTERM);
    ends.thread_block()?;
    SignalFd::new(&ends)
}

/// Until there is an event, a signal, or it is time; whether there is a signal.
fn wait(events: &Events, signals: &SignalFd, until: Instant) -> anyhow::Result<bool> {
    // A timeout is in whole milliseconds.
    let patience = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let patience = PollTimeout::try_from(patience).context("wait for events")?;
    let mut sources = [
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        PollFd::new(events.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut sources, patience) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno).context("wait for events"),
    }
    let [signals, _] = sources;
    Ok(signals.any().unwrap_or_default())
}

fn wanted(args: &MonitorArgs) -> Wanted {
    let MonitorArgs { drops, refusals, connections, .. } = *args;
    let asked = [
        (drops, EventKinds::DROPS),
        (refusals, EventKinds::REFUSALS),
        (connections, EventKinds::CONNECTIONS),
    ];
    let all = !(drops || refusals || connections);
    Wanted {
        kinds: asked.iter().fold(
            0,
            |kinds, (is_asked, kind)| {
                if *is_asked || all { kinds | kind } else { kinds }
            },
        ),
        rate: args.rate.get(),
        common: Common {
            service: args.service.clone(),
            namespace: args.namespace.clone(),
            address: args.address.map(|address| address.to_canonical()),
            protocol: args.protocol.map(Into::into),
        },
        port: args.port.map(Into::into),
    }
}

struct Screen<'a> {
    args: &'a MonitorArgs,
    watch: Watch,
    shown: u64,
    /// Somebody reads what is printed.
    is_read: bool,
}

impl Screen<'_> {
    fn begin(&mut self) -> anyhow::Result<()> {
        header(self.args.output).map_or(Ok(()), |line| self.print(&line))
    }

    fn goes_on(&self) -> bool {
        self.is_read && self.args.count.is_none_or(|count| self.shown < count.get())
    }

    /// Prints what is there, `most` events at most.
    fn show(&mut self, events: &mut Events, most: usize) -> anyhow::Result<()> {
        for _ in 0..most {
            if !self.goes_on() {
                break;
            }
            let Some(event) = events.take() else { break };
            if let Some(row) = self.watch.row(&event)? {
                self.print(&render(&row, self.args.output)?)?;
                self.shown += 1;
            }
        }
        Ok(())
    }

    fn look_after(&mut self) -> anyhow::Result<()> {
        if let Some(gap) = self.watch.renew()? {
            let gap = humantime::format_duration(Duration::from_millis(gap.as_millis() as u64));
            eprintln!(
                "lb-agent: nothing was watched for {gap}: what is printed isn't read fast enough"
            );
        }
        self.tell_unseen()?;
        self.is_read = self.is_read && has_reader();
        Ok(())
    }

    fn end(&mut self, events: &mut Events) -> anyhow::Result<()> {
        self.watch.stop();
        self.show(events, usize::MAX)?;
        self.tell_unseen()
    }

    fn tell_unseen(&mut self) -> anyhow::Result<()> {
        let Unseen { suppressed, lost } = self.watch.unseen()?;
        if suppressed > 0 {
            let rate = self.args.rate;
            eprintln!(
                "lb-agent: {suppressed} events were not shown: --rate {rate} lets so many a second \
                 through on each CPU"
            );
        }
        if lost > 0 {
            eprintln!("lb-agent: {lost} events were lost: what is printed isn't read fast enough");
        }
        Ok(())
    }

    /// A reader that had enough (`| head`) is no error, but the end.
    fn print(&mut self, text: &str) -> anyhow::Result<()> {
        let mut output = std::io::stdout().lock();
        match writeln!(output, "{text}").and_then(|()| output.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => self.is_read = false,
            result => result.context("write to standard output")?,
        }
        Ok(())
    }
}

/// Whether the other end of standard output is there, if it is a pipe.
fn has_reader() -> bool {
    let output = std::io::stdout();
    let mut ends = [PollFd::new(output.as_fd(), PollFlags::empty())];
    let polled = poll(&mut ends, PollTimeout::ZERO);
    let [end] = ends;
    polled.is_err() || !end.revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}
