//! The helper process inside a lab's host; see `lb_lab::peer`. Started by the lab, not by people.

fn main() -> anyhow::Result<()> {
    lb_lab::peer::process::run()
}
