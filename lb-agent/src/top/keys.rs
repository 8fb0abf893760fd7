//! What keys do.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::Model;
use crate::args::Column;

/// Rows that PgUp and PgDn go.
const PAGE: isize = 10;

/// The keys, for the help.
pub const HELP: [(&str, &str); 9] = [
    ("↑ ↓ PgUp PgDn Home End", "another row (also k and j)"),
    ("Enter", "the Service's endpoints"),
    ("Backspace, Esc", "back to the Services"),
    ("s, 1 to 8", "sort by the next column, or by that one"),
    ("r", "sort the other way round"),
    ("/", "only Services whose name holds what is typed"),
    ("p", "pause"),
    ("?", "this help"),
    ("q, Esc, Ctrl-C", "quit"),
];

/// What follows a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It goes on.
    Stay,
    /// It ends.
    Quit,
}

/// A key was pressed.
pub fn press(model: &mut Model, key: KeyEvent) -> Then {
    if key.kind == KeyEventKind::Release {
        return Then::Stay;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return if key.code == KeyCode::Char('c') { Then::Quit } else { Then::Stay };
    }
    if model.typing {
        type_search(model, key.code);
        return Then::Stay;
    }
    if model.help {
        model.help = false;
        return Then::Stay;
    }
    match key.code {
        KeyCode::Char('q') => return Then::Quit,
        KeyCode::Esc if model.drill.is_none() && model.search.is_empty() => return Then::Quit,
        KeyCode::Esc | KeyCode::Backspace => back(model),
        KeyCode::Enter => model.enter(),
        KeyCode::Down | KeyCode::Char('j') => model.step(1),
        KeyCode::Up | KeyCode::Char('k') => model.step(-1),
        KeyCode::PageDown => model.step(PAGE),
        KeyCode::PageUp => model.step(-PAGE),
        KeyCode::Home => model.step(isize::MIN),
        KeyCode::End => model.step(isize::MAX),
        KeyCode::Char('s') => sort_by(model, model.order.column.next()),
        KeyCode::Char('r') => {
            model.order.reversed = !model.order.reversed;
            model.arrange();
        }
        KeyCode::Char('p') => model.paused = !model.paused,
        KeyCode::Char('?') => model.help = true,
        KeyCode::Char('/') if model.drill.is_none() => model.typing = true,
        KeyCode::Char(digit) => {
            let number = digit.to_digit(10).and_then(|digit| digit.checked_sub(1));
            if let Some(column) = number.and_then(|index| Column::ALL.get(index as usize)) {
                sort_by(model, *column);
            }
        }
        _ => {}
    }
    Then::Stay
}

fn back(model: &mut Model) {
    if model.drill.take().is_none() {
        model.search.clear();
    }
    model.arrange();
}

fn sort_by(model: &mut Model, column: Column) {
    model.order.column = column;
    model.order.reversed = false;
    model.arrange();
}

fn type_search(model: &mut Model, key: KeyCode) {
    match key {
        KeyCode::Enter => model.typing = false,
        KeyCode::Esc => {
            model.typing = false;
            model.search.clear();
        }
        KeyCode::Backspace => {
            model.search.pop();
        }
        KeyCode::Char(letter) => model.search.push(letter),
        _ => {}
    }
    model.arrange();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::testing::{Looks, service};

    fn model() -> Model {
        let mut looks = Looks::new();
        looks.look(vec![service("a", 0, 0), service("b", 0, 0), service("c", 0, 9)], &[]);
        looks.look(vec![service("a", 1, 0), service("b", 5, 0), service("c", 3, 9)], &[]);
        looks.model
    }

    fn type_keys(model: &mut Model, keys: &[KeyCode]) -> Then {
        let mut then = Then::Stay;
        for key in keys {
            assert_eq!(then, Then::Stay, "before {key:?}");
            then = press(model, KeyEvent::new(*key, KeyModifiers::NONE));
        }
        then
    }

    fn names(model: &Model) -> String {
        model.services.shown().map(|entry| entry.row.name.as_str()).collect()
    }

    use KeyCode::{Backspace, Char, Down, End, Enter, Esc, Home, Up};

    #[test]
    fn a_service_is_entered_and_left_again() {
        let mut model = model();
        assert_eq!(names(&model), "bca");
        type_keys(&mut model, &[Down, Enter]);
        assert_eq!(model.drill.as_ref().unwrap().service.name, "c");
        // Within, rows are endpoints.
        type_keys(&mut model, &[Down, Char('/'), Enter, Backspace]);
        assert!(model.drill.is_none() && !model.typing);
        assert_eq!(model.services.chosen().unwrap().row.name, "c");
        assert_eq!(type_keys(&mut model, &[Enter, Esc]), Then::Stay);
        assert!(model.drill.is_none());
        assert_eq!(type_keys(&mut model, &[Esc]), Then::Quit);
    }

    #[test]
    fn rows_are_sorted_by_the_column_that_is_asked_for() {
        let mut model = model();
        for (keys, expected) in [
            (&[Char('1')][..], "abc"),
            (&[Char('r')], "cba"),
            (&[Char('2')], "bca"),
            (&[Char('8')], "cba"),
            (&[Char('s')], "abc"),
            (&[Char('s'), Char('9'), Char('0')], "bca"),
        ] {
            type_keys(&mut model, keys);
            assert_eq!(names(&model), expected, "{keys:?}");
        }
    }

    #[test]
    fn the_cursor_goes_by_arrows_letters_and_to_the_ends() {
        let mut model = model();
        for (key, cursor) in
            [(Down, 1), (Char('j'), 2), (Down, 2), (Up, 1), (Char('k'), 0), (End, 2), (Home, 0)]
        {
            type_keys(&mut model, &[key]);
            assert_eq!(model.services.cursor(), cursor, "{key:?}");
        }
    }

    #[test]
    fn letters_are_searched_for_while_it_is_typed_and_escape_takes_it_back() {
        let mut model = model();
        assert_eq!(type_keys(&mut model, &[Char('/'), Char('/'), Char('q')]), Then::Stay);
        assert_eq!((model.search.as_str(), names(&model).as_str()), ("/q", ""));
        type_keys(&mut model, &[Backspace, Char('b'), Enter]);
        assert_eq!((names(&model).as_str(), model.typing), ("b", false));
        assert_eq!(type_keys(&mut model, &[Esc]), Then::Stay, "first it shows all again");
        assert_eq!(names(&model), "bca");
        type_keys(&mut model, &[Char('/'), Char('b'), Esc]);
        assert_eq!((names(&model).as_str(), model.typing), ("bca", false));
    }

    #[test]
    fn help_goes_with_any_key_and_pause_with_the_same() {
        let mut model = model();
        type_keys(&mut model, &[Char('?')]);
        assert!(model.help);
        assert_eq!(type_keys(&mut model, &[Char('q'), Char('p')]), Then::Stay);
        assert!(!model.help && model.paused);
        type_keys(&mut model, &[Char('p')]);
        assert!(!model.paused);
    }

    #[test]
    fn it_ends_by_q_and_by_control_c_whatever_is_typed() {
        assert_eq!(type_keys(&mut model(), &[Char('q')]), Then::Quit);
        let mut model = model();
        type_keys(&mut model, &[Char('/')]);
        let interrupt = KeyEvent::new(Char('c'), KeyModifiers::CONTROL);
        assert_eq!(press(&mut model, interrupt), Then::Quit);
    }
}
