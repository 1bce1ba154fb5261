//! A scene as PNG: every shape by its distance from a dot's middle, which smooths its edges.

use ::png::{BitDepth, ColorType, Encoder, EncodingError};

use super::svg::light;
use super::{Anchor, Area, Item, Scene, font};

/// Dots for each pixel in both directions: sharp on dense screens.
const SCALE: f64 = 2.0;

/// Larger pictures are mistakes: 50 MB of dots.
const DOTS: f64 = 16e6;

/// Why a picture was not drawn.
#[derive(Debug, thiserror::Error)]
pub(super) enum DrawError {
    #[error("it would have {0:.0} dots")]
    TooLarge(f64),
    #[error(transparent)]
    Encode(#[from] EncodingError),
}

pub(super) fn write(scene: &Scene) -> Result<Vec<u8>, DrawError> {
    let (width, height) = ((scene.width * SCALE).ceil(), (scene.height * SCALE).ceil());
    if !(1.0..=DOTS).contains(&(width * height)) {
        return Err(DrawError::TooLarge(width * height));
    }
    let mut dots = Dots { width: width as usize, height: height as usize, rgb: Vec::new() };
    dots.rgb = vec![255; dots.width * dots.height * 3];
    for item in &scene.items {
        dots.draw(item);
    }
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, width as u32, height as u32);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&dots.rgb)?;
    writer.finish()?;
    Ok(out)
}

struct Dots {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Dots {
    fn draw(&mut self, item: &Item) {
        match item {
            Item::Rect { area, radius, paint } => {
                let Area { x, y, w, h } = *area;
                let (half_w, half_h) = (w * SCALE / 2.0, h * SCALE / 2.0);
                let (middle_x, middle_y) = (x * SCALE + half_w, y * SCALE + half_h);
                let radius = (radius * SCALE).min(half_w).min(half_h);
                // Negative inside (the distance from a box with round corners).
                let outside = |px: f64, py: f64| {
                    let dx = (px - middle_x).abs() - half_w + radius;
                    let dy = (py - middle_y).abs() - half_h + radius;
                    dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0) - radius
                };
                self.shape(light(*paint), (x, y, x + w, y + h), outside);
            }
            Item::Line { from, to, width, paint } => {
                let (x1, y1, x2, y2) = (from.0 * SCALE, from.1 * SCALE, to.0 * SCALE, to.1 * SCALE);
                let (dx, dy) = (x2 - x1, y2 - y1);
                let length = (dx * dx + dy * dy).max(1e-9);
                let half = width * SCALE / 2.0;
                let outside = |px: f64, py: f64| {
                    let along = (((px - x1) * dx + (py - y1) * dy) / length).clamp(0.0, 1.0);
                    (px - x1 - along * dx).hypot(py - y1 - along * dy) - half
                };
                let bounds = (
                    from.0.min(to.0) - width,
                    from.1.min(to.1) - width,
                    from.0.max(to.0) + width,
                    from.1.max(to.1) + width,
                );
                self.shape(light(*paint), bounds, outside);
            }
            Item::Text { at, text, style } => {
                let size = style.size * SCALE;
                let width = font::width(text, style.bold, size);
                let x = at.0 * SCALE
                    - match style.anchor {
                        Anchor::Start => 0.0,
                        Anchor::Middle => width / 2.0,
                        Anchor::End => width,
                    };
                let colour = light(style.paint);
                font::draw(text, style.bold, size, (x, at.1 * SCALE), |x, y, coverage| {
                    self.dot(x, y, colour, coverage);
                });
            }
        }
    }

    /// Fills where `outside` (the distance in dots from the edge) is negative; `bounds` are in pixels.
    fn shape(&mut self, colour: [u8; 3], bounds: (f64, f64, f64, f64), outside: impl Fn(f64, f64) -> f64) {
        let low = |value: f64, most: usize| ((value * SCALE).floor() - 1.0).clamp(0.0, most as f64) as i64;
        let high = |value: f64, most: usize| ((value * SCALE).ceil() + 1.0).clamp(0.0, most as f64) as i64;
        for y in low(bounds.1, self.height)..high(bounds.3, self.height) {
            for x in low(bounds.0, self.width)..high(bounds.2, self.width) {
                let coverage = 0.5 - outside(x as f64 + 0.5, y as f64 + 0.5);
                self.dot(x, y, colour, coverage.clamp(0.0, 1.0));
            }
        }
    }

    fn dot(&mut self, x: i64, y: i64, colour: [u8; 3], coverage: f64) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return };
        if x >= self.width || y >= self.height || coverage <= 0.0 {
            return;
        }
        let at = (y * self.width + x) * 3;
        for (old, new) in self.rgb[at..at + 3].iter_mut().zip(colour) {
            *old = (f64::from(*old) * (1.0 - coverage) + f64::from(new) * coverage).round() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Paint, Style};
    use super::*;

    fn dots(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = ::png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        (info.width, info.height, rgb)
    }

    #[test]
    fn shapes_and_texts_leave_their_colours() {
        let mut scene = Scene::new(40.0, 20.0, "test");
        scene.rect(Area { x: 10.0, y: 5.0, w: 10.0, h: 10.0 }, 0.0, Paint::Series(1));
        let (width, height, rgb) = dots(&scene.to_png().unwrap());
        assert_eq!((width, height), (80, 40));
        let at = |x: usize, y: usize| [0, 1, 2].map(|c| rgb[(y * 80 + x) * 3 + c]);
        assert_eq!(at(30, 20), light(Paint::Series(1)));
        assert_eq!(at(20, 10), light(Paint::Series(1)), "the corner is filled");
        assert_eq!(at(19, 10), [255; 3]);
        assert_eq!(at(60, 20), [255; 3]);
        scene.text((25.0, 15.0), "I", Style::new(12.0).bold());
        let (_, _, with_text) = dots(&scene.to_png().unwrap());
        assert!(with_text != rgb, "the text left nothing");
    }

    #[test]
    fn a_huge_picture_is_refused() {
        let error = Scene::new(1e6, 1e6, "").to_png().unwrap_err();
        assert!(error.to_string().contains("dots"), "{error}");
    }
}
