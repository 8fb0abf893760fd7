//! The list of Services.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::Block;

use super::grid::{self, Cells, Value};
use crate::args::Column;
use crate::inspect::rows::ServiceRow;
use crate::top::model::Model;
use crate::top::rate::Metric;
use crate::top::words;

const CELLS: [Cells<ServiceRow>; 12] = [
    Cells::words("PROTO", 5, 3, |entry| words::protocol(&entry.row)),
    Cells::words("TYPE", 12, 7, |entry| words::kind(&entry.row).to_owned()),
    Cells::words("ADDRESS", 21, 6, |entry| words::address(&entry.row)),
    Cells::numbers("ENDP", 8, None, Value::Text(|entry| entry.row.backends.len().to_string())),
    Cells::numbers("CONN/S", 0, Some(Column::Connections), Value::Rate(Metric::Connections)),
    Cells::numbers("PKT/S", 4, Some(Column::Packets), Value::Rate(Metric::Packets)),
    Cells::numbers("BYTES/S", 1, Some(Column::Bytes), Value::Rate(Metric::Bytes)),
    Cells::numbers("DROPS/S", 2, Some(Column::Drops), Value::Rate(Metric::Drops)),
    Cells::numbers("CONNS", 5, Some(Column::AllConnections), Value::Count(Metric::Connections)),
    Cells::numbers("PACKETS", 10, None, Value::Count(Metric::Packets)),
    Cells::numbers("BYTES", 8, Some(Column::AllBytes), Value::Count(Metric::Bytes)),
    Cells::numbers("DROPS", 9, Some(Column::AllDrops), Value::Count(Metric::Drops)),
];

/// Draws it.
pub fn draw(frame: &mut Frame, area: Rect, model: &Model) {
    let (shown, all) = (model.services.shown_len(), model.services.len());
    let title =
        if shown == all { " Services ".into() } else { format!(" Services: {shown} of {all} ") };
    let block = Block::bordered().border_style(Style::new().dim()).title(Line::from(title).bold());
    grid::draw(frame, area, block, ("SERVICE", &CELLS), (&model.services, model.order));
}
