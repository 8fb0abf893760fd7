//! A table whose less important columns give way on narrow terminals, and of which only the rows that
//! fit are made.

use std::cmp::Reverse;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Row, Table};

use crate::args::Column;
use crate::top::list::{Entry, List, Order};
use crate::top::rate::Metric;
use crate::top::sample;
use crate::top::words::{bars, short, short_count};

/// Least width of the bars.
const BARS: u16 = 12;
/// Widest name.
const NAME: u16 = 44;
const GAP: u16 = 2;

/// One column.
pub struct Cells<R> {
    /// Its header.
    pub title: &'static str,
    /// Its width.
    pub width: u16,
    /// Those with a higher number give way first.
    pub rank: u8,
    /// What rows can be sorted by it.
    pub sorts: Option<Column>,
    /// Numbers are at the right.
    pub is_number: bool,
    /// What of a row it shows.
    pub value: Value<R>,
}

/// What a column shows of a row.
pub enum Value<R> {
    /// Something of its own.
    Text(fn(&Entry<R>) -> String),
    /// A rate, each second.
    Rate(Metric),
    /// What was counted in all.
    Count(Metric),
}

impl<R> Cells<R> {
    /// A column of words.
    pub const fn words(
        title: &'static str,
        width: u16,
        rank: u8,
        text: fn(&Entry<R>) -> String,
    ) -> Self {
        Self { title, width, rank, sorts: None, is_number: false, value: Value::Text(text) }
    }

    /// A column of numbers.
    pub const fn numbers(
        title: &'static str,
        rank: u8,
        sorts: Option<Column>,
        value: Value<R>,
    ) -> Self {
        Self { title, width: 8, rank, sorts, is_number: true, value }
    }

    fn text(&self, entry: &Entry<R>) -> String {
        match self.value {
            Value::Text(text) => text(entry),
            Value::Rate(metric) => short(entry.track.rates()[metric]),
            Value::Count(metric) => short_count(entry.counts[metric]),
        }
    }
}

/// The rate that bars show: the one that rows are sorted by, if it is one.
pub fn barred(column: Column) -> Metric {
    match column {
        Column::Packets => Metric::Packets,
        Column::Bytes | Column::AllBytes => Metric::Bytes,
        Column::Drops | Column::AllDrops => Metric::Drops,
        Column::Name | Column::Connections | Column::AllConnections => Metric::Connections,
    }
}

/// Draws `list` with its names, those of `cells` that fit, and bars.
pub fn draw<R: sample::Row>(
    frame: &mut Frame,
    area: Rect,
    block: Block,
    (names, cells): (&'static str, &[Cells<R>]),
    (list, order): (&List<R>, Order),
) {
    let inner = block.inner(area);
    let room = usize::from(inner.height.saturating_sub(1));
    // The cursor in the middle, but for both ends.
    let last = list.shown_len().saturating_sub(room);
    let first = list.cursor().saturating_sub(room / 2).min(last);
    let entries: Vec<_> = list.shown().skip(first).take(room).collect();
    let longest = entries.iter().map(|entry| entry.row.name().chars().count()).max();
    let name_width = (longest.unwrap_or_default() as u16).clamp(20, NAME);
    let cells = fitting(cells, inner.width.saturating_sub(name_width + GAP + BARS));
    let taken: u16 = cells.iter().map(|cell| cell.width + GAP).sum();
    let bars_width = inner.width.saturating_sub(name_width + GAP + taken);
    let metric = barred(order.column);

    let header = |title: &'static str, sorts: Option<Column>, is_number: bool| {
        let mark =
            match (sorts == Some(order.column), order.reversed == (order.column == Column::Name)) {
                (false, _) => "",
                (true, true) => "▼",
                (true, false) => "▲",
            };
        let style = if mark.is_empty() { Style::new() } else { Style::new().fg(Color::Yellow) };
        aligned(format!("{title}{mark}"), is_number).style(style)
    };
    let mut headers = vec![header(names, Some(Column::Name), false)];
    headers.extend(cells.iter().map(|cell| header(cell.title, cell.sorts, cell.is_number)));
    headers.push(Text::from(bars_title(metric)));
    let row = |(index, entry): (usize, &&Entry<R>)| {
        let mut texts = vec![Text::from(entry.row.name())];
        texts.extend(cells.iter().map(|cell| aligned(cell.text(entry), cell.is_number)));
        let bars = bars(entry.track.history(), metric, usize::from(bars_width));
        texts.push(Text::from(Line::from(bars).fg(colour(metric)).not_reversed()));
        let row = Row::new(texts);
        if first + index == list.cursor() { row.reversed() } else { row }
    };
    let rows = entries.iter().enumerate().map(row);
    let widths = [Constraint::Length(name_width)]
        .into_iter()
        .chain(cells.iter().map(|cell| Constraint::Length(cell.width)))
        .chain([Constraint::Fill(1)]);
    let table =
        Table::new(rows, widths).header(Row::new(headers).bold()).column_spacing(GAP).block(block);
    frame.render_widget(table, area);
}

/// Those that fit into `width`, the most important first, in their order.
fn fitting<R>(cells: &[Cells<R>], mut width: u16) -> Vec<&Cells<R>> {
    let mut by_rank: Vec<_> = cells.iter().enumerate().collect();
    by_rank.sort_by_key(|(_, cell)| Reverse(cell.rank));
    let mut chosen = Vec::new();
    while let Some((index, cell)) = by_rank.pop() {
        let Some(rest) = width.checked_sub(cell.width + GAP) else { break };
        width = rest;
        chosen.push((index, cell));
    }
    chosen.sort_by_key(|(index, _)| *index);
    chosen.into_iter().map(|(_, cell)| cell).collect()
}

fn aligned(text: String, is_number: bool) -> Text<'static> {
    Text::from(text).alignment(if is_number { Alignment::Right } else { Alignment::Left })
}

fn bars_title(metric: Metric) -> &'static str {
    match metric {
        Metric::Connections => "connections",
        Metric::Packets => "packets",
        Metric::Bytes => "bytes",
        Metric::Drops => "drops",
    }
}

/// Of bars.
pub fn colour(metric: Metric) -> Color {
    match metric {
        Metric::Connections => Color::Cyan,
        Metric::Packets => Color::Magenta,
        Metric::Bytes => Color::Green,
        Metric::Drops => Color::Red,
    }
}
