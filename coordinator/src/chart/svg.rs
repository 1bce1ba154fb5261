//! A scene as SVG text: colours are classes, so that the reader's light or dark mode chooses them.

use std::fmt::Write;

use super::{Anchor, Item, Paint, SERIES, Scene};

/// Colours in light and dark mode.
const FIXED: [(&str, &str, &str); 5] = [
    ("card", "#ffffff", "#14181d"),
    ("raised", "#f3f5f8", "#20262d"),
    ("ink", "#1c2128", "#e8ebef"),
    ("muted", "#5c6672", "#9aa5b1"),
    ("grid", "#dde2e8", "#333b45"),
];

/// Colours of series in light and dark mode: strong, then pale.
pub(super) const HUES: [[(&str, &str); 2]; SERIES] = [
    [("#2b6cb0", "#63a4e8"), ("#a9c8e8", "#2d4f74")],
    [("#c96a1b", "#f0a35c"), ("#f0c9a3", "#70482a")],
    [("#2f855a", "#62bd8b"), ("#a9d5bd", "#2b5a42")],
    [("#7b4fa8", "#b18ae0"), ("#d0bbe6", "#4c3a66")],
    [("#b83a35", "#ee8079"), ("#ecb5b2", "#6b3533")],
    [("#66707c", "#9da7b2"), ("#c8ced5", "#454d56")],
];

pub(super) fn write(scene: &Scene) -> String {
    let (w, h) = (scene.width, scene.height);
    let title = escape(&scene.title);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w:.0}\" height=\"{h:.0}\" viewBox=\"0 0 {w:.0} {h:.0}\" \
         role=\"img\" font-family=\"DejaVu Sans,Verdana,system-ui,sans-serif\">\n<title>{title}</title>\n<style>"
    );
    let colours: Vec<(String, &str, &str)> = FIXED
        .iter()
        .map(|&(name, light, dark)| (name.to_owned(), light, dark))
        .chain(HUES.iter().enumerate().flat_map(|(at, [strong, pale])| {
            [(format!("s{at}"), strong.0, strong.1), (format!("p{at}"), pale.0, pale.1)]
        }))
        .collect();
    let sheet = |dark: bool| -> String {
        let rule = |(name, light, night): &(String, &str, &str)| {
            let colour = if dark { night } else { light };
            format!(".{name}{{fill:{colour}}}.{name}l{{stroke:{colour}}}")
        };
        colours.iter().map(rule).collect()
    };
    let _ = writeln!(out, "{}@media(prefers-color-scheme:dark){{{}}}</style>", sheet(false), sheet(true));
    for item in &scene.items {
        item_text(&mut out, item);
    }
    out.push_str("</svg>\n");
    out
}

// Writing to a string does not fail.
fn item_text(out: &mut String, item: &Item) {
    match item {
        Item::Rect { area, radius, paint } => {
            let class = class(*paint);
            let _ = write!(out, "<rect class=\"{class}\" x=\"{}\" y=\"{}\"", short(area.x), short(area.y));
            let _ = write!(out, " width=\"{}\" height=\"{}\"", short(area.w), short(area.h));
            if *radius > 0.0 {
                let _ = write!(out, " rx=\"{}\"", short(*radius));
            }
            out.push_str("/>\n");
        }
        Item::Line { from, to, width, paint } => {
            let (class, width) = (class(*paint), short(*width));
            let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(short);
            let _ = writeln!(
                out,
                "<line class=\"{class}l\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke-width=\"{width}\"/>"
            );
        }
        Item::Text { at, text, style } => {
            let class = class(style.paint);
            let [x, y, size] = [at.0, at.1, style.size].map(short);
            let _ = write!(out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" font-size=\"{size}\"");
            match style.anchor {
                Anchor::Start => {}
                Anchor::Middle => out.push_str(" text-anchor=\"middle\""),
                Anchor::End => out.push_str(" text-anchor=\"end\""),
            }
            if style.bold {
                out.push_str(" font-weight=\"bold\"");
            }
            let _ = writeln!(out, ">{}</text>", escape(text));
        }
    }
}

fn class(paint: Paint) -> String {
    match paint {
        Paint::Card => "card".to_owned(),
        Paint::Raised => "raised".to_owned(),
        Paint::Ink => "ink".to_owned(),
        Paint::Muted => "muted".to_owned(),
        Paint::Grid => "grid".to_owned(),
        Paint::Series(at) => format!("s{}", at % SERIES),
        Paint::Pale(at) => format!("p{}", at % SERIES),
    }
}

/// Red, green and blue of a paint in light mode.
pub(super) fn light(paint: Paint) -> [u8; 3] {
    let fixed = |at: usize| FIXED[at].1;
    let text = match paint {
        Paint::Card => fixed(0),
        Paint::Raised => fixed(1),
        Paint::Ink => fixed(2),
        Paint::Muted => fixed(3),
        Paint::Grid => fixed(4),
        Paint::Series(at) => HUES[at % SERIES][0].0,
        Paint::Pale(at) => HUES[at % SERIES][1].0,
    };
    let part = |at: usize| u8::from_str_radix(text.get(at..at + 2).unwrap_or("0"), 16).unwrap_or(0);
    [part(1), part(3), part(5)]
}

/// A tenth of a pixel is enough.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::{Area, Style};
    use super::*;

    #[test]
    fn texts_are_escaped_and_items_are_in_order() {
        let mut scene = Scene::new(100.0, 50.0, "a < b");
        scene.rect(Area { x: 1.0, y: 2.25, w: 3.0, h: 4.0 }, 0.0, Paint::Series(7));
        scene.text((5.0, 6.0), "x & <y>", Style::new(10.0).bold().anchor(Anchor::End));
        let svg = scene.to_svg();
        assert!(svg.contains("<title>a &lt; b</title>"), "{svg}");
        assert!(svg.contains("<rect class=\"s1\" x=\"1\" y=\"2.2\" width=\"3\" height=\"4\"/>"), "{svg}");
        assert!(svg.contains("text-anchor=\"end\" font-weight=\"bold\">x &amp; &lt;y&gt;</text>"), "{svg}");
        assert!(svg.contains("prefers-color-scheme:dark"), "{svg}");
    }

    #[test]
    fn colours_are_read_from_their_names() {
        assert_eq!(light(Paint::Card), [255, 255, 255]);
        assert_eq!(light(Paint::Series(0)), [0x2b, 0x6c, 0xb0]);
    }
}
