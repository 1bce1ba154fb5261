//! Bar charts: panels of grouped or stacked bars with axes, values and a legend.

use super::axis::{Axis, value};
use super::{Anchor, Area, Paint, Scene, Style, text_width};

/// One bar: segments from the axis upwards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bar {
    pub(crate) segments: Vec<(f64, Paint)>,
    /// How far its repetitions lay, from least to most.
    pub(crate) range: Option<(f64, f64)>,
}

impl Bar {
    /// A bar of one piece.
    pub(crate) fn plain(value: f64, paint: Paint) -> Self {
        Self { segments: vec![(value, paint)], range: None }
    }

    fn total(&self) -> f64 {
        self.segments.iter().map(|segment| segment.0).sum()
    }
}

/// Bars side by side under one label.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub(crate) label: String,
    pub(crate) bars: Vec<Bar>,
    /// Stands where the bars would, when there are none.
    pub(crate) note: Option<String>,
}

/// One chart with its own axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Panel {
    pub(crate) title: String,
    /// What the axis counts.
    pub(crate) unit: String,
    pub(crate) groups: Vec<Group>,
    /// Takes the whole width of the figure.
    pub(crate) wide: bool,
}

/// Panels under one title.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    pub(crate) title: String,
    pub(crate) subtitle: Vec<String>,
    pub(crate) legend: Vec<(String, Paint)>,
    pub(crate) panels: Vec<Panel>,
}

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 28.0;
const GAP: f64 = 24.0;
const PANEL_HEIGHT: f64 = 258.0;
/// Left of a panel's axis: its numbers.
const NUMBERS: f64 = 44.0;
/// Above a panel's plot: title and unit.
const HEAD: f64 = 54.0;
/// Below it: labels of two lines.
const FOOT: f64 = 38.0;
const WIDEST_BAR: f64 = 34.0;

const TITLE: Style = Style::new(18.0).bold();
const SMALL: Style = Style::new(11.0).paint(Paint::Muted);
const PANEL_TITLE: Style = Style::new(13.0).bold();
const LABEL: Style = Style::new(11.0).anchor(Anchor::Middle);
const VALUE: Style = Style::new(9.5).anchor(Anchor::Middle);

impl Figure {
    /// Lays the panels out, two in a row, and draws them.
    pub(crate) fn scene(&self) -> Scene {
        let top = MARGIN + 24.0 + 16.0 * self.subtitle.len() as f64 + 26.0;
        let places = self.places(top);
        let bottom = places.iter().map(|area| area.y + area.h).fold(top, f64::max);
        let mut scene = Scene::new(WIDTH, bottom + MARGIN - 8.0, &self.title);
        scene.text((MARGIN, MARGIN + 12.0), &*self.title, TITLE);
        for (line, subtitle) in self.subtitle.iter().enumerate() {
            scene.text((MARGIN, MARGIN + 32.0 + 16.0 * line as f64), &**subtitle, SMALL);
        }
        self.draw_legend(&mut scene, top - 18.0);
        for (panel, area) in self.panels.iter().zip(places) {
            panel.draw(&mut scene, area);
        }
        scene
    }

    fn places(&self, top: f64) -> Vec<Area> {
        let whole = WIDTH - 2.0 * MARGIN;
        let half = (whole - GAP) / 2.0;
        let (mut y, mut second) = (top, false);
        let mut places = Vec::with_capacity(self.panels.len());
        for panel in &self.panels {
            if panel.wide && second {
                (y, second) = (y + PANEL_HEIGHT + GAP, false);
            }
            let (x, w) = match (panel.wide, second) {
                (true, _) => (MARGIN, whole),
                (false, false) => (MARGIN, half),
                (false, true) => (MARGIN + half + GAP, half),
            };
            places.push(Area { x, y, w, h: PANEL_HEIGHT });
            if panel.wide || second {
                (y, second) = (y + PANEL_HEIGHT + GAP, false);
            } else {
                second = true;
            }
        }
        places
    }

    fn draw_legend(&self, scene: &mut Scene, y: f64) {
        let mut x = MARGIN;
        for (label, paint) in &self.legend {
            scene.rect(Area { x, y: y - 9.0, w: 11.0, h: 11.0 }, 2.0, *paint);
            scene.text((x + 16.0, y), &**label, SMALL);
            x += 16.0 + text_width(label, SMALL) + 18.0;
        }
    }
}

impl Panel {
    fn draw(&self, scene: &mut Scene, area: Area) {
        scene.text((area.x, area.y + 14.0), &*self.title, PANEL_TITLE);
        scene.text((area.x, area.y + 30.0), &*self.unit, SMALL);
        let plot =
            Area { x: area.x + NUMBERS, y: area.y + HEAD, w: area.w - NUMBERS, h: area.h - HEAD - FOOT };
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        let largest = bars.map(|bar| bar.range.map_or(0.0, |range| range.1).max(bar.total()));
        let axis = Axis::to(largest.filter(|v| v.is_finite()).fold(0.0, f64::max));
        let height = |value: f64| (value / axis.top).clamp(0.0, 1.0) * plot.h;
        let base = plot.y + plot.h;
        for mark in axis.marks() {
            let y = base - height(mark);
            scene.line((plot.x, y), (plot.x + plot.w, y), 1.0, Paint::Grid);
            scene.text((plot.x - 6.0, y + 4.0), axis.label(mark), SMALL.anchor(Anchor::End));
        }
        let slot = plot.w / self.groups.len().max(1) as f64;
        for (at, group) in self.groups.iter().enumerate() {
            group.draw(scene, Area { x: plot.x + at as f64 * slot, w: slot, ..plot }, height);
        }
        scene.line((plot.x, base), (plot.x + plot.w, base), 1.0, Paint::Muted);
    }
}

impl Group {
    /// Draws the bars into `slot`; `height` gives the pixels of a value.
    fn draw(&self, scene: &mut Scene, slot: Area, height: impl Fn(f64) -> f64) {
        let (middle, base) = (slot.x + slot.w / 2.0, slot.y + slot.h);
        for (line, text) in wrap(&self.label, slot.w - 4.0).iter().enumerate() {
            scene.text((middle, base + 15.0 + 13.0 * line as f64), &**text, LABEL);
        }
        if let Some(note) = self.note.as_ref().filter(|_| self.bars.is_empty()) {
            for (line, text) in wrap(note, slot.w - 8.0).iter().rev().enumerate() {
                let style = SMALL.anchor(Anchor::Middle);
                scene.text((middle, base - 8.0 - 13.0 * line as f64), &**text, style);
            }
        }
        let bar = (slot.w * 0.8 / self.bars.len().max(1) as f64).min(WIDEST_BAR);
        let mut x = middle - bar * self.bars.len() as f64 / 2.0;
        for drawn in self.bars.iter() {
            let mut y = base;
            for &(value, paint) in drawn.segments.iter().filter(|segment| segment.0.is_finite()) {
                let h = height(value);
                y -= h;
                let inset = (bar * 0.06).min(1.5);
                scene.rect(Area { x: x + inset, y, w: bar - 2.0 * inset, h }, 0.0, paint);
            }
            let centre = x + bar / 2.0;
            if let Some((least, most)) = drawn.range.filter(|range| range.1 > range.0) {
                let (low, high) = (base - height(least), base - height(most));
                scene.line((centre, low), (centre, high), 1.0, Paint::Ink);
                y = y.min(high);
            }
            let text = value(drawn.total());
            // A value wider than its bar would run into its neighbour's.
            if text_width(&text, VALUE) <= bar + 6.0 {
                scene.text((centre, y - 4.0), text, VALUE);
            }
            x += bar;
        }
    }
}

/// A label in lines no wider than `width` where it can be broken, after a hyphen or at a space; at most two.
fn wrap(label: &str, width: f64) -> Vec<String> {
    if text_width(label, LABEL) <= width {
        return vec![label.to_owned()];
    }
    let ends = label.char_indices().filter(|(_, c)| matches!(c, ' ' | '-')).map(|(at, _)| at + 1);
    let halves = ends.map(|at| label.split_at(at));
    let longer = |(a, b): &(&str, &str)| text_width(a.trim(), LABEL).max(text_width(b.trim(), LABEL));
    let best = halves.min_by(|a, b| longer(a).total_cmp(&longer(b)));
    match best {
        Some((first, second)) => vec![first.trim().to_owned(), second.trim().to_owned()],
        None => vec![label.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        let group = |label: &str, values: &[f64]| Group {
            label: label.to_owned(),
            bars: values.iter().enumerate().map(|(at, v)| Bar::plain(*v, Paint::Series(at))).collect(),
            note: Some("does not fit".to_owned()),
        };
        let panel = |wide| Panel {
            title: "Rate".to_owned(),
            unit: "tok/s".to_owned(),
            groups: vec![group("single", &[10.0, 20.0]), group("adaptive-layer", &[])],
            wide,
        };
        let legend = vec![("measured".to_owned(), Paint::Series(0))];
        let panels = vec![panel(false), panel(true), panel(false), panel(false)];
        Figure { title: "T".to_owned(), subtitle: vec!["grade".to_owned()], legend, panels }
    }

    #[test]
    fn panels_do_not_overlap_and_wide_ones_have_a_row() {
        let places = figure().places(100.0);
        let rows: Vec<f64> = places.iter().map(|area| area.y).collect();
        let next = PANEL_HEIGHT + GAP;
        assert_eq!(rows, [100.0, 100.0 + next, 100.0 + 2.0 * next, 100.0 + 2.0 * next]);
        assert_eq!(places[1].w, WIDTH - 2.0 * MARGIN);
        assert!(places[3].x > places[2].x + places[2].w);
    }

    #[test]
    fn bars_are_as_high_as_their_values() {
        let svg = figure().scene().to_svg();
        let plot = PANEL_HEIGHT - HEAD - FOOT;
        // The axis ends at 20: the second bar fills the plot, the first half of it.
        assert!(svg.contains(&format!("height=\"{plot:.0}\"")), "{svg}");
        assert!(svg.contains(&format!("height=\"{:.0}\"", plot / 2.0)), "{svg}");
        assert!(svg.contains("does not fit") && svg.contains(">grade<"), "{svg}");
    }

    #[test]
    fn long_labels_are_broken_where_they_can_be() {
        assert_eq!(wrap("adaptive-layer", 60.0), ["adaptive-", "layer"]);
        assert_eq!(wrap("single", 60.0), ["single"]);
        assert_eq!(wrap("indivisible", 5.0), ["indivisible"]);
    }
}
