//! The built-in font: widths of texts, and their outlines for PNG. Its licence lies beside it.

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};

static PLAIN: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");
static BOLD: &[u8] = include_bytes!("font/DejaVuSans-Bold-subset.ttf");

/// Pixels of the font's height for one of its size: sizes are of the em square, as in SVG.
fn scale(font: &FontRef<'_>, size: f64) -> PxScale {
    let em = font.units_per_em().unwrap_or(2048.0);
    PxScale::from(size as f32 * font.height_unscaled() / em)
}

fn font(bold: bool) -> Option<FontRef<'static>> {
    FontRef::try_from_slice(if bold { BOLD } else { PLAIN }).ok()
}

/// Width of `text` in pixels.
pub(super) fn width(text: &str, bold: bool, size: f64) -> f64 {
    let Some(font) = font(bold) else { return text.chars().count() as f64 * size * 0.6 };
    let scaled = font.as_scaled(scale(&font, size));
    text.chars().map(|c| f64::from(scaled.h_advance(scaled.glyph_id(c)))).sum()
}

/// Calls `dot` with the place and coverage of every dot of `text`, whose baseline begins at `at`.
pub(super) fn draw(text: &str, bold: bool, size: f64, at: (f64, f64), mut dot: impl FnMut(i64, i64, f64)) {
    let Some(font) = font(bold) else { return };
    let scale = scale(&font, size);
    let scaled = font.as_scaled(scale);
    let mut x = at.0 as f32;
    for c in text.chars() {
        let id = scaled.glyph_id(c);
        let glyph = Glyph { id, scale, position: point(x, at.1 as f32) };
        x += scaled.h_advance(id);
        let Some(outline) = font.outline_glyph(glyph) else { continue };
        let corner = outline.px_bounds().min;
        outline.draw(|dx, dy, coverage| {
            let place = |corner: f32, d: u32| corner as i64 + i64::from(d);
            dot(place(corner.x, dx), place(corner.y, dy), f64::from(coverage.min(1.0)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_widths_of_their_letters() {
        // Advances of DejaVu Sans: digits 1303 of 2048 units.
        assert!((width("12", false, 10.0) - 2.0 * 10.0 * 1303.0 / 2048.0).abs() < 0.01);
        assert!(width("tokens/s", true, 12.0) > width("tokens/s", false, 12.0));
    }

    #[test]
    fn every_letter_a_chart_may_use_is_in_the_font() {
        let font = font(false).unwrap();
        for c in (' '..='~').chain("µ×÷·–—…→−≤≥½²±“”’".chars()) {
            assert!(font.glyph_id(c).0 != 0, "{c:?} is not in the font");
        }
    }
}
