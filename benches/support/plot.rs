//! Bar charts as SVG: panels under a title, with one labelled bar per line.

use std::path::Path;

use plotters::{
    coord::Shift,
    prelude::{DrawingArea, IntoDrawingArea as _, Rectangle, SVGBackend, Text},
    style::{Color as _, IntoFont as _, RGBColor, WHITE},
};

use crate::{Result, table::number};

/// Panels per row.
const COLUMNS: usize = 2;
const WIDTH: u32 = 500;
const LINE: u32 = 22;
const HEAD: u32 = 34;
/// Pixels for the labels at the left and the values at the right.
const LABEL: i32 = 190;
const VALUE: i32 = 60;
const OURS: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const OTHERS: RGBColor = RGBColor(0xb0, 0xb7, 0xbf);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);

/// Bars with a common scale.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

/// A bar.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    /// Whether the bar is highlighted.
    pub(crate) ours: bool,
}

type Area<'p> = DrawingArea<SVGBackend<'p>, Shift>;

/// Draws all panels into one file.
pub(crate) fn draw(path: &Path, title: &str, panels: &[Panel]) -> Result<()> {
    let lines = panels.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
    let height = HEAD + LINE * u32::try_from(lines)?;
    let rows = panels.len().div_ceil(COLUMNS);
    let size = (WIDTH * u32::try_from(COLUMNS)?, HEAD + height * u32::try_from(rows)?);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    write(&root, title, (10, 10), 20)?;
    let (_, below) = root.split_vertically(HEAD);
    for (area, panel) in below.split_evenly((rows, COLUMNS)).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(area: &Area<'_>, panel: &Panel) -> Result<()> {
    write(area, &panel.title, (10, 10), 16)?;
    let largest = panel.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let room = f64::from(i32::try_from(WIDTH)? - LABEL - VALUE - 20);
    let mut top = i32::try_from(HEAD)?;
    for bar in &panel.bars {
        let left = 10 + LABEL;
        let right = left + pixels(bar.value / largest * room);
        let style = if bar.ours { OURS } else { OTHERS }.filled();
        area.draw(&Rectangle::new([(left, top), (right.max(left + 1), top + 16)], style))?;
        write(area, &bar.label, (10, top + 1), 15)?;
        write(area, &number(Some(bar.value)), (right + 6, top + 1), 15)?;
        top += i32::try_from(LINE)?;
    }
    Ok(())
}

#[allow(clippy::cast_possible_truncation, reason = "no plot is 2^31 pixels wide")]
fn pixels(length: f64) -> i32 {
    length.round() as i32
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), size: u32) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(&INK);
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}
