//! What all rows grew by together, through the last looks, and why something was dropped.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline, SparklineBar};

use super::grid::colour;
use crate::top::model::Model;
use crate::top::rate::Metric;
use crate::top::words::{short, short_count};

/// Rows of a panel, borders included.
pub const HEIGHT: u16 = 6;
/// Bars have whole numbers: rates below one are seen too.
const STEPS: f32 = 100.0;

/// Draws them.
pub fn draw(frame: &mut Frame, area: Rect, model: &Model) {
    let [connections, bytes, drops, reasons] = Layout::horizontal([
        Constraint::Fill(4),
        Constraint::Fill(4),
        Constraint::Fill(4),
        Constraint::Fill(5),
    ])
    .areas(area);
    for (area, title, metric) in [
        (connections, "connections/s", Metric::Connections),
        (bytes, "bytes/s", Metric::Bytes),
        (drops, "drops/s", Metric::Drops),
    ] {
        trend(frame, area, model, (title, metric));
    }
    draw_reasons(frame, reasons, model);
}

fn frame_of(title: Line<'static>) -> Block<'static> {
    Block::bordered().border_style(Style::new().dim()).title(title)
}

fn trend(frame: &mut Frame, area: Rect, model: &Model, (title, metric): (&'static str, Metric)) {
    let title = Line::from(vec![
        Span::from(format!(" {title} ")),
        Span::from(format!("{} ", short(model.totals()[metric]))).bold().not_dim(),
    ]);
    let block = frame_of(title);
    let width = usize::from(block.inner(area).width);
    let values = model.history().last(metric, width);
    let bars = values.iter().map(|value| {
        let value = value.unwrap_or_default();
        SparklineBar::from((value * STEPS) as u64)
    });
    let bars: Vec<SparklineBar> = bars.collect();
    frame.render_widget(Sparkline::default().data(bars).fg(colour(metric)).block(block), area);
}

/// Those that come now, the most frequent first, then those that came before.
fn draw_reasons(frame: &mut Frame, area: Rect, model: &Model) {
    let rate = |reason: &crate::top::model::Reason| reason.track.rates()[Metric::Drops];
    let mut reasons: Vec<_> = model.reasons.iter().filter(|(_, reason)| reason.count > 0).collect();
    reasons.sort_by(|(_, a), (_, b)| {
        let rates = rate(b).unwrap_or_default().total_cmp(&rate(a).unwrap_or_default());
        rates.then(b.count.cmp(&a.count))
    });
    let block = frame_of(Line::from(" dropped on this node "));
    let inner = block.inner(area);
    let label_width = usize::from(inner.width).saturating_sub(16);
    let lines = reasons.iter().take(usize::from(inner.height)).map(|(label, reason)| {
        let now = rate(reason);
        let text = format!("{:>7}/s {:>6}", short(now), short_count(Some(reason.count)));
        let style = if now.is_some_and(|rate| rate > 0.0) {
            Style::new().fg(Color::Red)
        } else {
            Style::new().dim()
        };
        let label: String = label.chars().take(label_width).collect();
        Line::from(format!("{label:<label_width$}{text}")).style(style)
    });
    let lines: Vec<Line> = lines.collect();
    let text = if lines.is_empty() { vec![Line::from("nothing").dim()] } else { lines };
    frame.render_widget(Paragraph::new(text).block(block), area);
}
