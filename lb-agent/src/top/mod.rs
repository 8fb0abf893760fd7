//! `lb-agent top`: Services and their endpoints, live.
//!
//! One line: `sample` (pinned maps → rows) → `model` (what they grew by, order, what is chosen; pure) →
//! `view` (drawn on a screen) or `batch` (printed). `keys` changes the model, `node` asks the agent, and
//! only `screen` knows a terminal.

mod batch;
mod keys;
mod list;
mod model;
mod node;
mod rate;
mod sample;
mod screen;
#[cfg(test)]
mod testing;
mod view;
mod words;

use std::io::IsTerminal as _;

use anyhow::ensure;

use crate::args::TopArgs;
use list::Order;
use model::Model;
use node::Node;
use sample::Sample;

/// Shows Services until somebody has seen enough.
pub fn top(args: &TopArgs) -> anyhow::Result<()> {
    ensure!(
        args.batch || std::io::stdout().is_terminal(),
        "standard output is no terminal: `lb-agent top --batch` prints plain tables, \
         `lb-agent services -o json` is for programs"
    );
    // Where there is no datapath now, that is the answer. One that goes later may come back.
    let first = Sample::take(args)?;
    let order = Order { column: args.sort, reversed: false };
    let mut model = Model::new(Node::look(args), args.interval, order);
    model.look(Ok(first));
    if args.batch { batch::run(args, model) } else { screen::run(args, model) }
}
