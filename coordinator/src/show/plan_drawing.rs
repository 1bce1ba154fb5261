//! The chosen plan as a drawing: stages as columns from left to right, boards as boxes, what lies between as lines.

use shoal_cluster::cost::NodePrediction;
use shoal_cluster::planner::Choice;
use shoal_core::NodeId;
use shoal_core::frame::WireType;
use shoal_core::units::Bytes;

use super::plan::{count, number, time, work};
use super::tables::span;
use crate::chart::{Anchor, Area, Paint, Scene, Style, text_width};
use crate::commands::plan::Sheet;

const MARGIN: f64 = 28.0;
/// A box, and what is between two of them.
const BOX: (f64, f64) = (276.0, 142.0);
const GAP: (f64, f64) = (96.0, 14.0);
/// From the top to the first column, and from a column's top to its first box.
const TITLE: f64 = 76.0;
const HEAD: f64 = 46.0;
/// Columns beside each other; further ones stand below.
const ACROSS: usize = 5;
/// Height of legend and reason.
const FOOT: f64 = 92.0;
/// Colours by what they stand for.
const COMPUTE: Paint = Paint::Series(0);
const SENDING: Paint = Paint::Series(1);
const WAITING: Paint = Paint::Pale(1);
const MEMORY: Paint = Paint::Series(2);

/// One column: a stage, or the boards that hold rows of the output head alone.
struct Column {
    title: String,
    about: String,
    nodes: Vec<NodeId>,
    /// Whether its boards add up partial sums.
    tied: bool,
    /// What lies between it and the column before.
    hop: Option<[String; 2]>,
}

/// The drawing of the chosen plan.
pub(crate) fn plan_drawing(sheet: &Sheet<'_>, choice: &Choice) -> Scene {
    let columns = columns(sheet, choice);
    let rows: Vec<&[Column]> = columns.chunks(ACROSS).collect();
    let heights: Vec<f64> = rows.iter().map(|row| row_height(row)).collect();
    let across = columns.len().min(ACROSS) as f64;
    // Titles and reasons want room, however few stages there are.
    let width = (2.0 * MARGIN + across * BOX.0 + (across - 1.0) * GAP.0).max(720.0);
    let height = TITLE + heights.iter().sum::<f64>() + FOOT;
    let name = &sheet.spec.name;
    let prediction = &choice.chosen.prediction;
    let title = format!("{name}: {}, {} per token", choice.strategy().name(), time(prediction.decode_ms));
    let mut scene = Scene::new(width, height, &title);
    scene.text((MARGIN, 36.0), title, Style::new(18.0).bold());
    let boards = count(choice.chosen.plan.nodes().len(), "board");
    let total = sheet.ground.cluster.devices.len();
    let streams = sheet.workload.streams;
    let rate = match streams {
        1 => format!("{} tok/s", number(prediction.decode_tps)),
        n => format!("{} tok/s over {n} streams", number(prediction.throughput())),
    };
    let about =
        format!("{}: {boards} of {total}, {rate}, context {}", sheet.ground.title, sheet.workload.context);
    scene.text((MARGIN, 57.0), about, Style::new(12.0).paint(Paint::Muted));
    let mut top = TITLE;
    for (row, height) in rows.iter().zip(&heights) {
        for (at, column) in row.iter().enumerate() {
            let x = MARGIN + at as f64 * (BOX.0 + GAP.0);
            draw_column(&mut scene, sheet, choice, column, (x, top), at == 0);
        }
        top += height;
    }
    foot(&mut scene, choice, (width, top));
    scene
}

fn row_height(row: &[Column]) -> f64 {
    let boxes = row.iter().map(|column| column.nodes.len()).max().unwrap_or(0) as f64;
    HEAD + boxes * (BOX.1 + GAP.1) + GAP.1
}

fn columns(sheet: &Sheet<'_>, choice: &Choice) -> Vec<Column> {
    let (plan, prediction) = (&choice.chosen.plan, &choice.chosen.prediction);
    let of = |node: NodeId| prediction.nodes.iter().find(|figures| figures.node == node);
    let d_model = f64::from(sheet.spec.d_model);
    let links = &sheet.ground.cluster.links;
    let leader = |nodes: &[NodeId]| nodes.iter().copied().min().unwrap_or_default();
    let hop = |before: &[NodeId], nodes: &[NodeId]| {
        let bytes = d_model * wire_bytes(plan.wire.hop);
        let seconds = links.get(leader(before), leader(nodes)).time(bytes);
        [Bytes(bytes as u64).to_string(), time(seconds * 1e3)]
    };
    let mut columns: Vec<Column> = Vec::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        let nodes: Vec<NodeId> = stage.ranks.iter().map(|share| share.node).collect();
        let mut about = prediction.stage_ms.get(index).map_or_else(String::new, |ms| time(*ms));
        if let (true, Some(figures)) = (nodes.len() > 1, nodes.first().and_then(|node| of(*node))) {
            let sums = 2.0 * f64::from(stage.layers.len());
            let bytes = Bytes((d_model * wire_bytes(plan.wire.sum)) as u64);
            about.push_str(&format!(
                ", {sums:.0} sums of {bytes}, {} each",
                time(figures.all_reduce_ms / sums)
            ));
        }
        let hop = columns.last().map(|before| hop(&before.nodes, &nodes));
        let title = format!("Stage {index}: layers {}", span(stage.layers));
        columns.push(Column { title, about, tied: nodes.len() > 1, nodes, hop });
    }
    let apart: Vec<NodeId> =
        plan.head.iter().map(|head| head.node).filter(|node| plan.place(*node).is_none()).collect();
    if !apart.is_empty() {
        let title = "Output head alone".to_owned();
        let hop = columns.last().map(|before| hop(&before.nodes, &apart));
        columns.push(Column { title, about: String::new(), nodes: apart, tied: false, hop });
    }
    columns
}

/// Bytes of one value on the wire, scales apart.
fn wire_bytes(kind: WireType) -> f64 {
    match kind {
        WireType::F32 => 4.0,
        WireType::F16 => 2.0,
        WireType::Q8 => 1.0,
    }
}

fn draw_column(
    scene: &mut Scene,
    sheet: &Sheet<'_>,
    choice: &Choice,
    column: &Column,
    (x, top): (f64, f64),
    first: bool,
) {
    scene.text((x, top + 14.0), column.title.as_str(), Style::new(13.0).bold());
    scene.text((x, top + 31.0), column.about.as_str(), Style::new(11.0).paint(Paint::Muted));
    let boxes = column.nodes.len() as f64;
    let (from, to) = (top + HEAD, top + HEAD + boxes * (BOX.1 + GAP.1) - GAP.1);
    if column.tied {
        // Boards of a group are tied together: they add up partial sums.
        scene.line((x - 8.0, from + 10.0), (x - 8.0, to - 10.0), 2.0, SENDING);
        for at in 0..column.nodes.len() {
            let y = from + at as f64 * (BOX.1 + GAP.1) + BOX.1 / 2.0;
            scene.line((x - 8.0, y), (x, y), 2.0, SENDING);
        }
    }
    if let Some([bytes, took]) = &column.hop {
        let y = from + BOX.1 / 2.0;
        // Out of the column before; at the start of a row from the edge.
        let start = if first { x - MARGIN } else { x - GAP.0 };
        let end = if column.tied { x - 8.0 } else { x };
        scene.line((start, y), (end, y), 2.0, Paint::Muted);
        scene.line((end - 7.0, y - 5.0), (end, y), 2.0, Paint::Muted);
        scene.line((end - 7.0, y + 5.0), (end, y), 2.0, Paint::Muted);
        if !first {
            let middle = f64::midpoint(start, end);
            let style = Style::new(11.0).anchor(Anchor::Middle).paint(Paint::Muted);
            scene.text((middle, y - 8.0), bytes.as_str(), style);
            scene.text((middle, y + 17.0), took.as_str(), style);
        }
    }
    for (at, &node) in column.nodes.iter().enumerate() {
        draw_board(scene, sheet, choice, node, (x, from + at as f64 * (BOX.1 + GAP.1)));
    }
}

fn draw_board(scene: &mut Scene, sheet: &Sheet<'_>, choice: &Choice, node: NodeId, (x, y): (f64, f64)) {
    scene.rect(Area { x, y, w: BOX.0, h: BOX.1 }, 8.0, Paint::Raised);
    let prediction = &choice.chosen.prediction;
    let Some(figures) = prediction.nodes.iter().find(|figures| figures.node == node) else { return };
    let (left, inner) = (x + 12.0, BOX.0 - 24.0);
    let name = sheet.ground.cluster.device(node).map_or_else(|| node.short(), |device| device.name.clone());
    let small = Style::new(11.0);
    let muted = small.paint(Paint::Muted);
    scene.text((left, y + 20.0), fitted(&name, Style::new(14.0).bold(), inner), Style::new(14.0).bold());
    if let Some(kind) = sheet.ground.kinds.get(&node) {
        let title = match kind.speed {
            1.0 => kind.title.clone(),
            speed => format!("{}, at {speed} of its speed", kind.title),
        };
        scene.text((left, y + 36.0), fitted(&title, muted, inner), muted);
    }
    let pieces = work(&choice.chosen.plan, sheet.spec, node);
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).filter(|piece| !piece.is_empty()).collect();
    let pieces = pieces.join(" · ");
    scene.text((left, y + 57.0), fitted(&pieces, small, inner), small);
    let (used, usable) = (figures.memory.total(), figures.usable);
    scene.text((left, y + 77.0), format!("{used} of {usable}"), muted);
    let full = (used.0 as f64 / usable.0.max(1) as f64).clamp(0.0, 1.0);
    let bar = |y| Area { x: left, y, w: inner, h: 9.0 };
    scene.rect(bar(y + 83.0), 3.0, Paint::Grid);
    scene.rect(Area { w: inner * full, ..bar(y + 83.0) }, 3.0, MEMORY);
    let shares = shares(figures, prediction.decode_ms);
    let label = format!("computing {:.0} %, sending {:.0} %", 100.0 * shares[0].0, 100.0 * shares[1].0);
    scene.text((left, y + 112.0), label, muted);
    scene.rect(bar(y + 118.0), 0.0, Paint::Grid);
    let mut from = left;
    for (share, paint) in shares {
        let w = inner * share;
        scene.rect(Area { x: from, w, ..bar(y + 118.0) }, 0.0, paint);
        from += w;
    }
}

/// Parts of one token's time, each with its colour; the rest is other stages' time.
fn shares(figures: &NodePrediction, decode_ms: f64) -> [(f64, Paint); 3] {
    let part = |ms: f64| (ms / decode_ms.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
    [
        (part(figures.compute_ms), COMPUTE),
        (part(figures.all_reduce_ms + figures.hop_ms), SENDING),
        (part(figures.wait_ms), WAITING),
    ]
}

/// As much of the text as fits this width.
fn fitted(text: &str, style: Style, width: f64) -> String {
    if text_width(text, style) <= width {
        return text.to_owned();
    }
    let mut short: String = text.to_owned();
    while short.pop().is_some() {
        let with = format!("{}…", short.trim_end());
        if text_width(&with, style) <= width {
            return with;
        }
    }
    String::new()
}

fn foot(scene: &mut Scene, choice: &Choice, (width, top): (f64, f64)) {
    let muted = Style::new(11.0).paint(Paint::Muted);
    let mut x = MARGIN;
    let names = [
        ("memory used", MEMORY),
        ("computing", COMPUTE),
        ("sending and receiving", SENDING),
        ("waiting for ranks", WAITING),
        ("other stages' time", Paint::Grid),
    ];
    for (name, paint) in names {
        scene.rect(Area { x, y: top + 4.0, w: 11.0, h: 11.0 }, 2.0, paint);
        scene.text((x + 16.0, top + 14.0), name, muted);
        x += 16.0 + text_width(name, muted) + 18.0;
    }
    let style = Style::new(12.0);
    let mut line = String::new();
    let mut y = top + 40.0;
    // The first sentence; the rest is on the sheet.
    let reason = choice.reason.split(". ").next().unwrap_or_default();
    for word in reason.split_whitespace() {
        let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if text_width(&longer, style) > width - 2.0 * MARGIN && !line.is_empty() {
            // Two lines at most.
            if y > top + 50.0 {
                line.push('…');
                break;
            }
            scene.text((MARGIN, y), std::mem::take(&mut line), style);
            y += 18.0;
            line = word.to_owned();
        } else {
            line = longer;
        }
    }
    scene.text((MARGIN, y), line, style);
}
