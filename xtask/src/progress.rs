//! Visible progress: spinners on a terminal, plain lines elsewhere (CI logs, pipes).

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a step without a spinner says that it still runs.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// The screen that several steps share.
pub struct Progress {
    bars: Option<MultiProgress>,
}

impl Progress {
    /// Decides by stderr whether to draw.
    pub fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Starts a step and shows it.
    pub fn step(&self, name: &str, what: &str) -> Step {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix:12} {elapsed} {wide_msg}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{name}: {what}");
        }
        let now = Instant::now();
        Step { bar, bars: self.bars.clone(), name: name.to_owned(), started: now, spoken: now }
    }

    /// Prints a line above the spinners.
    pub fn line(&self, text: &str) {
        print_line(self.bars.as_ref(), text);
    }
}

fn print_line(bars: Option<&MultiProgress>, text: &str) {
    match bars {
        Some(bars) => bars.suspend(|| eprintln!("{text}")),
        None => eprintln!("{text}"),
    }
}

/// One step that runs.
pub struct Step {
    bar: Option<ProgressBar>,
    bars: Option<MultiProgress>,
    name: String,
    started: Instant,
    spoken: Instant,
}

impl Step {
    /// Shows what the step does at the moment.
    pub fn update(&mut self, message: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(message.to_owned()),
            None if self.spoken.elapsed() >= HEARTBEAT => {
                eprintln!("{}: {} s, {message}", self.name, self.started.elapsed().as_secs());
                self.spoken = Instant::now();
            }
            None => {}
        }
    }

    /// Ends the step with its outcome.
    pub fn finish(self, outcome: &str) {
        let seconds = self.started.elapsed().as_secs_f32();
        print_line(self.bars.as_ref(), &format!("{}: {outcome} ({seconds:.1} s)", self.name));
    }
}

/// A step that ends early, by an error, leaves no spinner behind either.
impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
