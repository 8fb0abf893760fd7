//! One virtual machine, from power-on to its end.

use crate::process::{self, Ending};
use crate::progress::Step;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The console is the serial line; a panic ends the guest at once instead of hanging it.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1";

/// What to boot.
pub struct Guest<'a> {
    /// The bzImage.
    pub kernel: &'a Path,
    /// The first file system.
    pub initramfs: &'a Path,
    /// Where the console goes.
    pub console: &'a Path,
    /// How long it may run.
    pub limit: Duration,
}

/// What a guest wrote, and how it ended.
pub struct Console {
    /// Lines end in `\n` only.
    pub text: String,
    pub ending: Ending,
    pub seconds: f32,
}

impl Guest<'_> {
    /// Boots the guest and waits for its end.
    ///
    /// # Errors
    /// When qemu can't be started or its console not be read; a guest that fails is no error here.
    pub fn run(&self, step: &mut Step) -> Result<Console> {
        let mut qemu = Command::new("qemu-system-x86_64");
        // TCG always: KVM may be there and yet hang (nested virtualisation without its features).
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536"]);
        qemu.args(["-nodefaults", "-nic", "none", "-display", "none", "-serial", "stdio"]);
        // The guest reboots when it is done, and qemu ends then.
        qemu.arg("-no-reboot").arg("-kernel").arg(self.kernel);
        qemu.arg("-initrd").arg(self.initramfs).args(["-append", COMMAND_LINE]);
        let started = Instant::now();
        let ending = process::run_logged(&mut qemu, self.console, self.limit, step)?;
        let console = std::fs::read(self.console)
            .with_context(|| format!("read {}", self.console.display()))?;
        let text = String::from_utf8_lossy(&console).replace('\r', "");
        Ok(Console { text, ending, seconds: started.elapsed().as_secs_f32() })
    }
}
