//! The terminal: taken, drawn on, listened to, and given back as it was.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

use anyhow::{Context as _, anyhow, bail};
use nix::sys::signal::{SigSet, Signal};
use ratatui::DefaultTerminal;
use ratatui::crossterm::SynchronizedUpdate as _;
use ratatui::crossterm::event::{self, Event as TerminalEvent};
use ratatui::crossterm::terminal::is_raw_mode_enabled;

use super::keys::{self, Then};
use super::model::Model;
use super::node::Node;
use super::sample::Sample;
use super::view;
use crate::args::TopArgs;

/// What the loop waits for.
enum Event {
    /// A key, or another size.
    Terminal(TerminalEvent),
    /// The node was looked at.
    Node(Node),
    /// SIGTERM, SIGINT or SIGHUP.
    Signal,
    /// One that tells of events has ended, with its error.
    Ended(String),
}

/// Shows the model until it is told to end.
pub fn run(args: &TopArgs, mut model: Model) -> anyhow::Result<()> {
    // Before there are other threads: all of them leave signals to the one that waits for them.
    let signals = hold_signals()?;
    on_terminal(|terminal| {
        let events = listen(args, signals)?;
        follow(terminal, &mut model, args, &events)
    })
}

/// Takes the terminal and gives it back in any case: ratatui's hook does so before a panic is told.
fn on_terminal(
    show: impl FnOnce(&mut DefaultTerminal) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let terminal =
        ratatui::try_init().context("take the terminal (`lb-agent top --batch` needs none)");
    let shown = terminal.and_then(|mut terminal| show(&mut terminal));
    // A panic of another thread has given it back, and what was told then would be written over.
    let restored = match is_raw_mode_enabled() {
        Ok(false) => Ok(()),
        Ok(true) | Err(_) => ratatui::try_restore(),
    };
    shown?;
    restored.context("give the terminal back (`reset` does)")
}

fn follow(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    args: &TopArgs,
    events: &Receiver<Event>,
) -> anyhow::Result<()> {
    let mut next = Instant::now() + args.interval;
    loop {
        draw(terminal, model).context("draw on the terminal")?;
        match events.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Event::Terminal(TerminalEvent::Key(key))) => {
                if keys::press(model, key) == Then::Quit {
                    return Ok(());
                }
            }
            // Drawn anew by the next turn.
            Ok(Event::Terminal(_)) => {}
            Ok(Event::Node(node)) => model.node = node,
            Ok(Event::Signal) => return Ok(()),
            Ok(Event::Ended(why)) => bail!(why),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("nobody tells of events any more"),
        }
        // Also while somebody leans on a key.
        if Instant::now() >= next {
            if !model.paused {
                model.look(Sample::take(args).map_err(|error| error.to_string()));
            }
            next = Instant::now() + args.interval;
        }
    }
}

/// Terminals that know synchronized updates show the picture when it is whole; others skip two sequences.
fn draw(terminal: &mut DefaultTerminal, model: &Model) -> io::Result<()> {
    io::stdout().sync_update(|_| terminal.draw(|frame| view::draw(frame, model)).map(drop))?
}

/// Signals that end it, and the one that would leave a shell with our screen.
fn hold_signals() -> anyhow::Result<SigSet> {
    let signals: SigSet =
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGTSTP].into_iter().collect();
    signals.thread_block().context("block signals")?;
    Ok(signals)
}

/// Starts a thread for each thing to wait for; they end with the process.
fn listen(args: &TopArgs, signals: SigSet) -> anyhow::Result<Receiver<Event>> {
    let (sender, receiver) = channel();
    teller("keys", &sender, |sender| {
        loop {
            let event = event::read().context("read from the terminal")?;
            sender.send(Event::Terminal(event))?;
        }
    })?;
    teller("signals", &sender, move |sender| {
        loop {
            if signals.wait().context("wait for signals")? != Signal::SIGTSTP {
                sender.send(Event::Signal)?;
            }
        }
    })?;
    let args = args.clone();
    teller("node", &sender, move |sender| {
        Node::follow(&args, |node| sender.send(Event::Node(node)).is_ok());
        Ok(())
    })?;
    Ok(receiver)
}

fn teller(
    name: &'static str,
    sender: &Sender<Event>,
    tell: impl FnOnce(&Sender<Event>) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let sender = sender.clone();
    let told = move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tell(&sender)));
        let why = ended.unwrap_or_else(|_| Err(anyhow!("the thread {name} panicked")));
        // Nobody listens when the loop has ended before.
        let _ = sender.send(Event::Ended(why.err().map_or_else(String::new, |e| format!("{e:#}"))));
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(told)
        .map(drop)
        .with_context(|| format!("start the thread {name}"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use clap::Parser as _;
    use lb_lab::Terminal;

    use super::*;
    use crate::args::{Args, Command as Asked};
    use crate::top::testing::Looks;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Runs one of the tests below that are ignored on a terminal, presses a key when it has drawn, and
    /// expects it to panic. What is on the screen then.
    fn panicked(test: &str, drawn: &str) -> String {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", "--test-threads=1"]);
        command.arg(format!("top::screen::tests::{test}")).env("RUST_BACKTRACE", "0");
        let mut terminal = Terminal::start(command, 30, 100).unwrap();
        terminal.wait_for(drawn, PATIENCE, |text| text.contains(drawn)).unwrap();
        assert!(!terminal.is_restored().unwrap(), "it has a screen of its own");
        terminal.press("x").unwrap();
        let said =
            terminal.wait_for("its end", PATIENCE, |text| text.contains("test result")).unwrap();
        assert!(!terminal.wait(PATIENCE).unwrap().success(), "{said}");
        assert!(terminal.is_restored().unwrap(), "{said}");
        assert!(!said.contains(drawn), "{said}");
        said
    }

    #[test]
    fn a_panic_gives_the_terminal_back_and_is_told_on_its_usual_screen() {
        let said = panicked("panics_between_two_pictures", "the first picture");
        assert!(said.contains("no second picture"), "{said}");
    }

    #[test]
    #[ignore = "run by the test above, on a terminal of its own"]
    fn panics_between_two_pictures() {
        on_terminal(|terminal| {
            terminal.draw(|frame| frame.render_widget("the first picture", frame.area()))?;
            event::read()?;
            panic!("no second picture")
        })
        .unwrap();
    }

    #[test]
    fn a_panic_of_a_thread_beside_ends_it_and_gives_the_terminal_back() {
        let said = panicked("panics_where_it_waits_for_keys", "node-a");
        // What ends it is told behind, and not over it.
        let told = ["thread 'keys'", "not this key", "the thread keys panicked"];
        let places = told.map(|words| said.find(words));
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{said}");
    }

    #[test]
    #[ignore = "run by the test above, on a terminal of its own"]
    fn panics_where_it_waits_for_keys() -> anyhow::Result<()> {
        let parsed = Args::try_parse_from(["lb-agent", "top", "--interval", "1m"]).unwrap();
        let Asked::Top(args) = parsed.command else { panic!("not top: {:?}", parsed.command) };
        on_terminal(|terminal| {
            let (sender, receiver) = channel();
            teller("keys", &sender, |_| {
                event::read()?;
                panic!("not this key")
            })?;
            follow(terminal, &mut Looks::new().model, &args, &receiver)
        })
    }
}
