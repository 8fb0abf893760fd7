//! Draws the model. Only the rows that fit are made, whatever the number of Services.

mod backends;
mod grid;
mod help;
mod panels;
mod services;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};

use super::model::Model;
use super::words::short_count;
use crate::inspect::status::State;

/// Height from which on there is room for panels.
const PANELS_FROM: u16 = 18;

/// Draws everything.
pub fn draw(frame: &mut Frame, model: &Model) {
    let trouble = trouble(model);
    let panels = if frame.area().height >= PANELS_FROM { panels::HEIGHT } else { 0 };
    let [head, problem, top, rows, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(trouble.is_some())),
        Constraint::Length(panels),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, model);
    if let Some(text) = trouble {
        frame.render_widget(Line::from(text).fg(Color::Red), problem);
    }
    if panels > 0 {
        panels::draw(frame, top, model);
    }
    match &model.drill {
        Some(drill) => backends::draw(frame, rows, model, drill),
        None => services::draw(frame, rows, model),
    }
    draw_foot(frame, foot, model);
    if model.help {
        help::draw(frame);
    }
}

fn draw_head(frame: &mut Frame, area: Rect, model: &Model) {
    let node = &model.node;
    let colour = match node.state {
        Some(State::Ok) => Color::Green,
        Some(State::Degraded) => Color::Yellow,
        Some(State::Absent) | None => Color::Red,
    };
    let count = |name: &'static str, count: Option<u64>| {
        [Span::from(format!("  {name} ")).dim(), Span::from(short_count(count))]
    };
    let mut spans = vec![
        Span::from(" lb-agent top  ").bold(),
        Span::from(node.name.clone()).bold().fg(Color::Cyan),
        Span::from("  "),
        Span::styled(node.state_word(), Style::new().bold().fg(colour)),
    ];
    spans.extend(count("services", Some(model.services.len() as u64)));
    spans.extend(count("endpoints", Some(model.backend_count() as u64)));
    spans.extend(count("flows", node.flows));
    let pace = humantime::format_duration(model.interval);
    spans.push(Span::from(format!("  every {pace}")).dim());
    if model.paused {
        spans.push(Span::from("  PAUSED").bold().fg(Color::Yellow));
    }
    frame.render_widget(Line::from(spans), area);
}

/// What is wrong, the first of it.
fn trouble(model: &Model) -> Option<String> {
    let problems = &model.node.problems;
    let first = model.trouble.as_ref().or(problems.first())?;
    let more = (problems.len() + usize::from(model.trouble.is_some())).saturating_sub(1);
    Some(match more {
        0 => format!(" {first}"),
        more => format!(" {first} (and {more} more: lb-agent status)"),
    })
}

fn draw_foot(frame: &mut Frame, area: Rect, model: &Model) {
    let keys: &[(&str, &str)] = match &model.drill {
        _ if model.typing => &[("Enter", "keep"), ("Esc", "show all")],
        Some(_) => &[
            ("Backspace", "back"),
            ("s", "sort"),
            ("r", "reverse"),
            ("p", "pause"),
            ("?", "help"),
            ("q", "quit"),
        ],
        None => &[
            ("Enter", "endpoints"),
            ("s", "sort"),
            ("r", "reverse"),
            ("/", "search"),
            ("p", "pause"),
            ("?", "help"),
            ("q", "quit"),
        ],
    };
    let mut spans = Vec::new();
    if model.typing || !model.search.is_empty() {
        let cursor = if model.typing { "▏" } else { "" };
        spans.push(Span::from(format!(" /{}{cursor} ", model.search)).bold().fg(Color::Yellow));
    }
    for (key, what) in keys {
        spans.push(Span::from(format!(" {key} ")).bold().fg(Color::Cyan));
        spans.push(Span::from(*what).dim());
    }
    frame.render_widget(Line::from(spans), area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::args::Column;
    use crate::inspect::rows::ServiceRow;
    use crate::top::testing::{Looks, backend, service};

    fn screen(model: &Model, columns: u16, rows: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |row| (0..columns).map(|column| buffer[(column, row)].symbol()).collect();
        (0..rows).map(row).collect()
    }

    fn seen(model: &Model) -> String {
        screen(model, 130, 30).join("\n")
    }

    /// b is busier than a, and drops.
    fn looks() -> Looks {
        let mut looks = Looks::new();
        looks.look(vec![service("a", 10, 0), service("b", 0, 1)], &[("no_endpoints", 1)]);
        looks.look(vec![service("a", 14, 0), service("b", 20, 3)], &[("no_endpoints", 3)]);
        looks
    }

    fn model() -> Model {
        looks().model
    }

    #[test]
    fn each_service_has_a_row_and_what_is_most_is_on_top() {
        let lines = screen(&model(), 80, 24);
        assert_eq!(
            lines[0].trim_end(),
            " lb-agent top  node-a  ok  services 2  endpoints 2  flows 3  every 1s"
        );
        let row = |name: &str, numbers: [&str; 3], bars: &str| {
            let [connections, bytes, drops] = numbers;
            format!("│{name:<20}  TCP4   {connections:>8}  {bytes:>8}  {drops:>8}  {bars:>19}│")
        };
        let header = format!(
            "│{:<20}  PROTO  {:>8}  {:>8}  {:>8}  {:<19}│",
            "SERVICE", "CONN/S▼", "BYTES/S", "DROPS/S", "connections"
        );
        assert_eq!(lines[8], header);
        assert_eq!(lines[9], row("default/b:http", ["20", "-", "2"], "▇"));
        assert_eq!(lines[10], row("default/a:http", ["4", "-", "0"], "▇"));
        assert!(lines[23].contains("Enter endpoints"), "{}", lines[23]);
    }

    #[test]
    fn panels_tell_totals_and_reasons() {
        let text = seen(&model());
        for part in ["connections/s 24 ", "bytes/s - ", "drops/s 2 ", "no_endpoints"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let reason = text.lines().find(|line| line.contains("no_endpoints")).unwrap();
        assert!(reason.contains("2/s      3"), "{reason}");
        let small = screen(&model(), 80, PANELS_FROM - 1).join("\n");
        assert!(!small.contains("connections/s"), "{small}");
        assert!(small.contains("default/b:http"), "{small}");
    }

    #[test]
    fn wide_terminals_have_all_columns_and_narrow_ones_the_most_important() {
        let wide = screen(&model(), 200, 24).join("\n");
        for part in ["TYPE", "ADDRESS", "10.96.0.11:80", "NodePort", "PKT/S", "PACKETS", "DROPS"] {
            assert!(wide.contains(part), "{part} in\n{wide}");
        }
        let narrow = screen(&model(), 50, 24).join("\n");
        assert!(narrow.contains("CONN/S") && !narrow.contains("DROPS/S"), "{narrow}");
        for (columns, rows) in [(1, 1), (10, 3), (30, 7), (300, 100)] {
            screen(&model(), columns, rows);
        }
    }

    #[test]
    fn of_thousands_of_services_those_around_the_cursor_are_drawn() {
        let mut looks = Looks::new();
        let services = |n: u64| (0..n).map(|i| service(&format!("s{i:04}"), n - i, 0)).collect();
        looks.look(services(3_000), &[]);
        looks.model.order.column = Column::Name;
        looks.model.arrange();
        let text = seen(&looks.model);
        assert!(text.contains("default/s0000:http") && !text.contains("s0030"), "{text}");
        looks.model.step(isize::MAX);
        let text = seen(&looks.model);
        assert!(text.contains("default/s2999:http") && !text.contains("s0000"), "{text}");
        looks.model.step(-100);
        let text = seen(&looks.model);
        assert!(
            text.contains("s2899") && text.contains("s2898") && text.contains("s2900"),
            "{text}"
        );
    }

    #[test]
    fn a_service_is_shown_with_its_endpoints_and_its_drops() {
        let mut looks = Looks::new();
        let busy = |connections| ServiceRow {
            backends: vec![backend(1, connections), backend(2, 0)],
            ..service("a", connections, 7)
        };
        looks.look(vec![busy(0)], &[]);
        looks.model.enter();
        looks.look(vec![busy(9)], &[]);
        let text = seen(&looks.model);
        for part in [
            " default/a:http TCP4 ",
            "10.96.0.11:80(ClusterIP),*:30080(NodePort)",
            "9 connections/s, - packets/s, - bytes/s, 0 drops/s",
            "no_endpoints 7",
            "10.244.0.1:8080",
            "this node",
            "10.244.0.2:8080",
            "elsewhere",
            "Backspace back",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        looks.look(Vec::new(), &[]);
        let text = seen(&looks.model);
        assert!(text.contains("is gone") && text.contains("10.244.0.2:8080"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_said_in_the_second_line() {
        let mut model = model();
        model.node.state = Some(State::Degraded);
        model.node.problems = vec!["no agent runs".into(), "device eth0: gone".into()];
        let lines = screen(&model, 100, 24);
        assert!(lines[0].contains("degraded"), "{}", lines[0]);
        assert_eq!(lines[1].trim(), "no agent runs (and 1 more: lb-agent status)");
        model.look(Err("no datapath here".into()));
        let lines = screen(&model, 100, 24);
        assert_eq!(lines[1].trim(), "no datapath here (and 2 more: lb-agent status)");
    }

    #[test]
    fn search_pause_and_help_are_seen() {
        let mut model = model();
        (model.search, model.paused, model.help) = ("b".into(), true, true);
        model.arrange();
        let text = seen(&model);
        for part in ["PAUSED", " /b ", "Services: 1 of 2", "sort the other way round"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        model.typing = true;
        assert!(seen(&model).contains("/b▏"));
    }
}
