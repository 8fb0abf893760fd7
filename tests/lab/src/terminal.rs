//! A program on a terminal that nobody sees: keys go in, what would be on the screen comes out, and
//! synchronized updates, as ever more terminals know them, as a whole.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

/// A program on its terminal. Dropping it kills the program.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<vt100::Parser>>,
    /// The program's end. Held open, as the settings of a terminal end with the last who has it.
    line: OwnedFd,
    before: Termios,
}

impl Terminal {
    /// Starts `command` on a terminal of that many rows and columns.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Result<Self> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave: line } =
            openpty(Some(&size), None).context("open a pseudo terminal")?;
        let before = tcgetattr(&line).context("read the terminal's settings")?;
        let end = || line.try_clone().context("duplicate the terminal");
        command.stdin(end()?).stdout(end()?).stderr(end()?).env("TERM", "xterm-256color");
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let keyboard = File::from(master);
        let output = keyboard.try_clone().context("duplicate the terminal")?;
        let some = |count| NonZeroU16::new(count).context("a terminal without rows or columns");
        let parser = vt100::Parser::new(some(rows)?, some(columns)?, 0);
        let screen = Arc::new(Mutex::new(parser));
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || show(output, &shown));
        Ok(Self { child, keyboard, screen, line, before })
    }

    /// Types: letters, `\r` for Enter, `\x1b` for Esc, `\x1b[B` for the arrow down.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes()).context("type on the terminal")
    }

    /// What is on the screen.
    pub fn screen(&self) -> vt100::Screen {
        self.lock().screen().clone()
    }

    /// Its text.
    pub fn text(&self) -> String {
        self.lock().screen().contents()
    }

    /// Waits until the text fits; the text.
    pub fn wait_for(
        &self,
        what: &str,
        patience: Duration,
        fits: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let text = self.text();
            if fits(&text) {
                return Ok(text);
            }
            if Instant::now() > deadline {
                bail!("not on the screen within {patience:?}: {what}\n{text}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The program's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("{signal} to pid {pid}"))
    }

    /// Waits until the program has ended.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("wait for the program")? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the program goes on after {patience:?}:\n{}", self.text())
    }

    /// Whether the program has left the terminal as it found it: settings, screen and cursor.
    pub fn is_restored(&self) -> Result<bool> {
        let now = tcgetattr(&self.line).context("read the terminal's settings")?;
        let screen = self.screen();
        Ok(now == self.before && !screen.alternate_screen() && !screen.hide_cursor())
    }

    fn lock(&self) -> MutexGuard<'_, vt100::Parser> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until the last who could write has gone, which the kernel tells as EIO.
fn show(mut output: File, screen: &Mutex<vt100::Parser>) {
    let mut bytes = [0; 4096];
    let mut written = Vec::new();
    loop {
        match output.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => {
                written.extend_from_slice(bytes.get(..count).unwrap_or_default());
                let whole: Vec<u8> = written.drain(..whole(&written)).collect();
                screen.lock().unwrap_or_else(PoisonError::into_inner).process(&whole);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// How much may be shown: all but a synchronized update that goes on, or that this may be the begin of.
fn whole(written: &[u8]) -> usize {
    const BEGIN: &[u8] = b"\x1b[?2026h";
    const END: &[u8] = b"\x1b[?2026l";
    let last = |mark: &[u8]| written.windows(mark.len()).rposition(|window| window == mark);
    if let Some(begin) = last(BEGIN).filter(|begin| last(END).is_none_or(|end| end < *begin)) {
        return begin;
    }
    let mut parts = (1..BEGIN.len()).rev().filter_map(|length| BEGIN.get(..length));
    written.len() - parts.find(|part| written.ends_with(part)).map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn what_is_typed_and_what_is_shown_meet_on_the_screen() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read word; printf \"\\033[2;5Hgot $word\"; read word"]);
        let mut terminal = Terminal::start(shell, 5, 40).unwrap();
        terminal.press("hello\r").unwrap();
        let text =
            terminal.wait_for("the word", PATIENCE, |text| text.contains("got hello")).unwrap();
        assert_eq!(text.lines().nth(1), Some("    got hello"));
        let missing =
            terminal.wait_for("nothing", Duration::from_millis(1), |_| false).unwrap_err();
        assert!(missing.to_string().contains("got hello"), "{missing}");
        terminal.signal(Signal::SIGTERM).unwrap();
        assert!(!terminal.wait(PATIENCE).unwrap().success());
    }

    #[test]
    fn a_synchronized_update_is_shown_as_a_whole() {
        for (written, shown) in [
            ("all", "all"),
            ("one \x1b[?2026htwo", "one "),
            ("one \x1b[?2026htwo\x1b[?2026l three", "one \x1b[?2026htwo\x1b[?2026l three"),
            ("\x1b[?2026ha\x1b[?2026lb\x1b[?2026hc", "\x1b[?2026ha\x1b[?2026lb"),
            ("one \x1b[?20", "one "),
            ("one \x1b[?25h", "one \x1b[?25h"),
        ] {
            assert_eq!(whole(written.as_bytes()), shown.len(), "{written:?}");
        }
    }

    #[test]
    fn a_terminal_that_was_left_in_another_state_is_seen() {
        for (script, restored) in [
            ("saved=$(stty -g); stty raw; stty $saved; printf '\\033[?1049h\\033[?1049l'", true),
            ("stty -echo", false),
            ("printf '\\033[?1049h'", false),
            ("printf '\\033[?25l'", false),
        ] {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("{script}; printf done")]);
            let mut terminal = Terminal::start(shell, 5, 40).unwrap();
            terminal.wait_for("its end", PATIENCE, |text| text.contains("done")).unwrap();
            terminal.wait(PATIENCE).unwrap();
            assert_eq!(terminal.is_restored().unwrap(), restored, "{script}");
        }
    }
}
