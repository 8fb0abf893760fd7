//! What the keys do, over everything else.

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout};
use ratatui::style::{Color, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use crate::top::keys::HELP;

/// Draws it.
pub fn draw(frame: &mut Frame) {
    let key_width = HELP.iter().map(|(key, _)| key.chars().count()).max().unwrap_or_default();
    let line = |(key, what): &(&'static str, &'static str)| {
        let key = Span::from(format!(" {key:<key_width$}  ")).bold().fg(Color::Cyan);
        Line::from(vec![key, Span::from(*what)])
    };
    let mut lines: Vec<Line> = HELP.iter().map(line).collect();
    lines.push(Line::default());
    lines.push(
        Line::from(" k is 1000; bars have a scale for each row; a dash: nothing to count").dim(),
    );
    let width = lines.iter().map(Line::width).max().unwrap_or_default() as u16 + 3;
    let height = lines.len() as u16 + 2;
    let [area] =
        Layout::vertical([Constraint::Length(height)]).flex(Flex::Center).areas(frame.area());
    let [area] = Layout::horizontal([Constraint::Length(width)]).flex(Flex::Center).areas(area);
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" Keys ")), area);
}
