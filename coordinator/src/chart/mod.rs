//! Pictures of figures: a [`Scene`] of rectangles, lines and texts, written as SVG or as PNG, and charts made of them.
//!
//! Coordinates are in pixels from the upper left corner, y downwards. A scene names what a colour is for ([`Paint`]), not
//! the colour: SVG follows the reader's light or dark mode, PNG is drawn light. Texts are measured with the font that is
//! built in, so both forms have the same layout and no font of the system is needed. What is drawn is its caller's
//! business: `shoal bench` (figures of strategies) and `shoal plan` (a plan).

mod axis;
mod bars;
mod font;
mod png;
mod svg;

use std::path::Path;

use crate::exit::{Failure, Outcome};

pub(crate) use bars::{Bar, Figure, Group, Panel};

/// What a colour is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    /// The ground of the whole picture.
    Card,
    /// A slightly raised area on it.
    Raised,
    /// Text and what must be seen.
    Ink,
    /// Lesser text.
    Muted,
    /// Lines that guide the eye.
    Grid,
    /// One of [`SERIES`] colours that can be told apart, by index modulo their number.
    Series(usize),
    /// The same colour, paler: for what belongs to it.
    Pale(usize),
}

/// Colours of series.
pub(crate) const SERIES: usize = 6;

/// Which end of a text is at its coordinate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Style {
    pub(crate) size: f64,
    pub(crate) bold: bool,
    pub(crate) anchor: Anchor,
    pub(crate) paint: Paint,
}

impl Style {
    /// Plain text of this size, from its coordinate to the right.
    pub(crate) const fn new(size: f64) -> Self {
        Self { size, bold: false, anchor: Anchor::Start, paint: Paint::Ink }
    }

    /// The same, bold.
    pub(crate) const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    /// The same, in another colour.
    pub(crate) const fn paint(self, paint: Paint) -> Self {
        Self { paint, ..self }
    }

    /// The same, with another end at its coordinate.
    pub(crate) const fn anchor(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }
}

/// A rectangle; `x` and `y` are its upper left corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Area {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) w: f64,
    pub(crate) h: f64,
}

/// Something drawn, in the order of drawing.
#[derive(Debug, Clone, PartialEq)]
enum Item {
    Rect { area: Area, radius: f64, paint: Paint },
    Line { from: (f64, f64), to: (f64, f64), width: f64, paint: Paint },
    Text { at: (f64, f64), text: String, style: Style },
}

/// A picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scene {
    width: f64,
    height: f64,
    /// What it shows, for who cannot see it.
    title: String,
    items: Vec<Item>,
}

impl Scene {
    /// An empty card of this size in pixels; `title` says what it shows.
    pub(crate) fn new(width: f64, height: f64, title: &str) -> Self {
        let area = Area { x: 0.0, y: 0.0, w: width, h: height };
        let card = Item::Rect { area, radius: 0.0, paint: Paint::Card };
        Self { width, height, title: title.to_owned(), items: vec![card] }
    }

    /// Adds a rectangle with corners rounded by `radius`.
    pub(crate) fn rect(&mut self, area: Area, radius: f64, paint: Paint) {
        self.items.push(Item::Rect { area, radius, paint });
    }

    /// Adds a straight line.
    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), width: f64, paint: Paint) {
        self.items.push(Item::Line { from, to, width, paint });
    }

    /// Adds a text whose baseline is at `at`.
    pub(crate) fn text(&mut self, at: (f64, f64), text: impl Into<String>, style: Style) {
        self.items.push(Item::Text { at, text: text.into(), style });
    }

    /// The picture as SVG.
    pub(crate) fn to_svg(&self) -> String {
        svg::write(self)
    }

    /// The picture as PNG, two dots for each pixel.
    ///
    /// # Errors
    /// It is too large to be drawn.
    pub(crate) fn to_png(&self) -> Outcome<Vec<u8>> {
        png::write(self).map_err(|error| Failure::machine("draw the picture", error))
    }

    /// Writes the picture as SVG to `path`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn save_svg(&self, path: &Path) -> Outcome {
        save(path, self.to_svg().as_bytes())
    }

    /// Writes the picture as PNG to `path`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn save_png(&self, path: &Path) -> Outcome {
        save(path, &self.to_png()?)
    }
}

/// Width in pixels of a text in this style.
pub(crate) fn text_width(text: &str, style: Style) -> f64 {
    font::width(text, style.bold, style.size)
}

fn save(path: &Path, bytes: &[u8]) -> Outcome {
    std::fs::write(path, bytes).map_err(|error| Failure::machine(format!("write {}", path.display()), error))
}
