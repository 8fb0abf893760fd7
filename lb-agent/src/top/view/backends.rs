//! One Service, and the list of its endpoints.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Wrap};

use super::grid::{self, Cells, Value};
use crate::args::Column;
use crate::inspect::rows::BackendRow;
use crate::inspect::services::{frontends, policy};
use crate::top::model::{Drill, Model};
use crate::top::rate::Metric;
use crate::top::sample::Row as _;
use crate::top::words::{protocol, short};

const CELLS: [Cells<BackendRow>; 8] = [
    Cells::words("WHERE", 9, 3, |entry| {
        if entry.row.local { "this node" } else { "elsewhere" }.to_owned()
    }),
    Cells::words("STATE", 11, 2, |entry| {
        if entry.row.active { "active" } else { "terminating" }.to_owned()
    }),
    Cells::numbers("CONN/S", 0, Some(Column::Connections), Value::Rate(Metric::Connections)),
    Cells::numbers("PKT/S", 4, Some(Column::Packets), Value::Rate(Metric::Packets)),
    Cells::numbers("BYTES/S", 1, Some(Column::Bytes), Value::Rate(Metric::Bytes)),
    Cells::numbers("CONNS", 5, Some(Column::AllConnections), Value::Count(Metric::Connections)),
    Cells::numbers("PACKETS", 7, None, Value::Count(Metric::Packets)),
    Cells::numbers("BYTES", 6, Some(Column::AllBytes), Value::Count(Metric::Bytes)),
];

/// Draws both.
pub fn draw(frame: &mut Frame, area: Rect, model: &Model, drill: &Drill) {
    let facts = facts(model, drill);
    let [above, below] =
        Layout::vertical([Constraint::Length(facts.len() as u16 + 2), Constraint::Min(0)])
            .areas(area);
    let dim = Style::new().dim();
    let name = format!(" {} {} ", drill.service.name(), protocol(&drill.service));
    let block = Block::bordered().border_style(dim).title(Line::from(name).bold());
    let text = Paragraph::new(facts).wrap(Wrap { trim: false }).block(block);
    frame.render_widget(text, above);
    let block = Block::bordered().border_style(dim).title(Line::from(" Endpoints ").bold());
    grid::draw(frame, below, block, ("ENDPOINT", &CELLS), (&drill.backends, model.order));
}

fn facts(model: &Model, drill: &Drill) -> Vec<Line<'static>> {
    if drill.gone {
        let text = "This Service port is gone. Below is what was last seen.";
        return vec![Line::from(text).fg(Color::Yellow)];
    }
    let fact = |name: &str, text: String| {
        Line::from(vec![Span::from(format!("{name:<10}")).dim(), Span::from(text)])
    };
    let service = &drill.service;
    let rates = model.drilled().map(|entry| *entry.track.rates()).unwrap_or_default();
    let drops = service.drops.iter().map(|(reason, count)| format!("{reason} {count}"));
    let drops = drops.collect::<Vec<_>>().join(", ");
    vec![
        fact("frontends", frontends(service, true)),
        fact("policy", policy(&service.policy)),
        fact(
            "rates",
            format!(
                "{} connections/s, {} packets/s, {} bytes/s, {} drops/s",
                short(rates[Metric::Connections]),
                short(rates[Metric::Packets]),
                short(rates[Metric::Bytes]),
                short(rates[Metric::Drops])
            ),
        ),
        fact("dropped", crate::inspect::table::or_dash(drops)),
    ]
}
