//! A screen as SVG: a grid of letters that is the same with any font, bars and lines as shapes.

use std::fmt::Write as _;

use vt100::{Cell, Color, Screen};

/// Of a cell, in units of the picture.
const WIDTH: f32 = 8.4;
const HEIGHT: f32 = 18.0;
/// Around the screen; above it is a title.
const MARGIN: f32 = 14.0;
const TITLE: f32 = 26.0;
const BACKGROUND: &str = "#0d1117";
const FOREGROUND: &str = "#d1d7e0";
/// The first eight colours of a terminal.
const PALETTE: [&str; 8] =
    ["#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#d1d7e0"];
/// Of a block element that fills n eighths from below.
const BLOCKS: &str = "▁▂▃▄▅▆▇█";

/// How letters look.
#[derive(Clone, Debug, PartialEq)]
struct Look {
    colour: String,
    background: Option<String>,
    bold: bool,
    dim: bool,
}

/// Letters side by side that look the same.
#[derive(Clone, Debug, PartialEq)]
struct Run {
    column: u16,
    text: String,
    look: Look,
}

/// The whole picture.
pub fn picture(screen: &Screen, title: &str) -> String {
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
    let width = f32::from(columns).mul_add(WIDTH, 2.0 * MARGIN);
    let height = f32::from(rows).mul_add(HEIGHT, 2.0 * MARGIN + TITLE);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" \
         font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\" \
         font-size=\"14\">\n<title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#7d8590\" text-anchor=\"middle\">{title}</text>\n\
         <g xml:space=\"preserve\" fill=\"{FOREGROUND}\">\n",
        width / 2.0,
        MARGIN + TITLE / 2.0
    );
    for row in 0..rows {
        let cells = (0..columns).filter_map(|column| Some((column, screen.cell(row, column)?)));
        for run in runs(cells) {
            draw(&mut svg, row, &run);
        }
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

fn runs<'a>(cells: impl Iterator<Item = (u16, &'a Cell)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (column, cell) in cells {
        let look = look(cell);
        let text = if cell.has_contents() { cell.contents() } else { " " };
        let is_shape = |text: &str| text.chars().all(|letter| shape(letter).is_some());
        match runs.last_mut() {
            Some(run) if run.look == look && is_shape(&run.text) == is_shape(text) => {
                run.text.push_str(text);
            }
            _ => runs.push(Run { column, text: text.to_owned(), look }),
        }
    }
    // Blanks of no colour are what is there anyway.
    runs.retain(|run| run.look.background.is_some() || !run.text.trim().is_empty());
    runs
}

fn look(cell: &Cell) -> Look {
    let colour = |colour| match colour {
        Color::Default => None,
        Color::Idx(index) => PALETTE.get(usize::from(index % 8)).map(|&text| text.to_owned()),
        Color::Rgb(red, green, blue) => Some(format!("#{red:02x}{green:02x}{blue:02x}")),
    };
    let front = colour(cell.fgcolor()).unwrap_or_else(|| FOREGROUND.to_owned());
    let back = colour(cell.bgcolor());
    let (colour, background) = if cell.inverse() {
        (back.unwrap_or_else(|| BACKGROUND.to_owned()), Some(front))
    } else {
        (front, back)
    };
    Look { colour, background, bold: cell.bold(), dim: cell.dim() }
}

fn draw(svg: &mut String, row: u16, run: &Run) {
    let x = f32::from(run.column).mul_add(WIDTH, MARGIN);
    let y = f32::from(row).mul_add(HEIGHT, MARGIN + TITLE);
    let Look { colour, background, bold, dim } = &run.look;
    let letters = run.text.chars().count() as f32;
    // Writing to a String doesn't fail.
    if let Some(background) = background {
        let width = letters * WIDTH;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" fill=\"{background}\"/>"
        );
    }
    let shapes: Option<String> = run
        .text
        .chars()
        .enumerate()
        .map(|(index, letter)| {
            shape(letter).map(|shape| shape_at(shape, (index as f32).mul_add(WIDTH, x), y))
        })
        .collect();
    let opacity = if *dim { " opacity=\"0.6\"" } else { "" };
    if let Some(path) = shapes {
        // Bars above each other are one; thin lines would vanish.
        let is_bar = run.text.chars().all(|letter| BLOCKS.contains(letter));
        let edges = if is_bar { " shape-rendering=\"crispEdges\"" } else { "" };
        let _ = writeln!(svg, "<path{edges} d=\"{path}\" fill=\"{colour}\"{opacity}/>");
        return;
    }
    let text = run.text.trim_end();
    let indent = text.chars().take_while(|letter| *letter == ' ').count() as f32;
    let text = text.trim_start();
    if text.is_empty() {
        return;
    }
    let weight = if *bold { " font-weight=\"bold\"" } else { "" };
    let fill = if colour == FOREGROUND { String::new() } else { format!(" fill=\"{colour}\"") };
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" textLength=\"{:.1}\" lengthAdjust=\"spacingAndGlyphs\"{fill}{weight}{opacity}>{}</text>",
        indent.mul_add(WIDTH, x),
        y + 13.5,
        text.chars().count() as f32 * WIDTH,
        escaped(text)
    );
}

/// Parts of a cell that a letter fills: left, top, right, bottom, each from 0 to 1.
fn shape(letter: char) -> Option<Vec<[f32; 4]>> {
    if let Some(eighths) = BLOCKS.chars().position(|block| block == letter) {
        return Some(vec![[0.0, 1.0 - (eighths + 1) as f32 / 8.0, 1.0, 1.0]]);
    }
    // Thin lines through the middle, to the left, right, top and bottom.
    const NEAR: f32 = 0.45;
    const FAR: f32 = 0.55;
    let (left, right) = ([0.0, 0.48, FAR, 0.52], [NEAR, 0.48, 1.0, 0.52]);
    let (up, down) = ([NEAR, 0.0, FAR, 0.52], [NEAR, 0.48, FAR, 1.0]);
    Some(match letter {
        '─' => vec![[0.0, 0.48, 1.0, 0.52]],
        '│' => vec![[NEAR, 0.0, FAR, 1.0]],
        '┌' => vec![right, down],
        '┐' => vec![left, down],
        '└' => vec![right, up],
        '┘' => vec![left, up],
        _ => return None,
    })
}

fn shape_at(parts: Vec<[f32; 4]>, x: f32, y: f32) -> String {
    let part = |[left, top, right, bottom]: [f32; 4]| {
        format!(
            "M{:.1} {:.1}H{:.1}V{:.1}H{:.1}Z",
            left.mul_add(WIDTH, x),
            top.mul_add(HEIGHT, y),
            right.mul_add(WIDTH, x),
            bottom.mul_add(HEIGHT, y),
            left.mul_add(WIDTH, x)
        )
    };
    parts.into_iter().map(part).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(bytes: &str) -> Screen {
        let (rows, columns) = (2.try_into().unwrap(), 12.try_into().unwrap());
        let mut parser = vt100::Parser::new(rows, columns, 0);
        parser.process(bytes.as_bytes());
        parser.screen().clone()
    }

    #[test]
    fn letters_that_look_the_same_are_one_text_on_the_grid() {
        let text = picture(&screen("ab \x1b[1;31mc<d\x1b[m"), "a title");
        assert!(text.contains("<title>a title</title>"), "{text}");
        assert!(
            text.contains("textLength=\"16.8\" lengthAdjust=\"spacingAndGlyphs\">ab</text>"),
            "{text}"
        );
        assert!(text.contains("x=\"39.2\""), "three cells from the margin: {text}");
        assert!(text.contains("fill=\"#ff7b72\" font-weight=\"bold\">c&lt;d</text>"), "{text}");
        assert_eq!(text.matches("<text").count(), 3, "the title and two runs: {text}");
    }

    #[test]
    fn blocks_and_lines_are_shapes_and_a_chosen_row_is_turned_round() {
        let text = picture(&screen("\x1b[32m▄\x1b[m─\r\n\x1b[7mrow\x1b[m"), "");
        assert!(text.contains("d=\"M14.0 49.0H22.4V58.0H14.0Z\" fill=\"#3fb950\"/>"), "{text}");
        assert_eq!(text.matches("<path").count(), 2, "{text}");
        assert!(text.contains(&format!("fill=\"{FOREGROUND}\"/>")), "{text}");
        assert!(text.contains(&format!("fill=\"{BACKGROUND}\">row</text>")), "{text}");
    }
}
