//! `shoal devices --save`: what was measured of a board, as a file of `profiles/` that plans on paper.

use std::collections::BTreeMap;
use std::path::PathBuf;

use shoal_core::NodeId;
use shoal_core::units::Bytes;
use shoal_profiles::Board;

use super::devices::DeviceView;
use super::options::find;
use crate::exit::{Failure, Outcome};

/// Where a measured board is written, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SaveArg {
    /// Node id, its first digits, or name; needed where several were measured.
    node: Option<String>,
    path: PathBuf,
}

/// Reads `FILE` or `NODE=FILE`.
pub(crate) fn save_arg(text: &str) -> Result<SaveArg, String> {
    let (node, path) = match text.split_once('=') {
        Some((node, path)) => (Some(node.to_owned()), path),
        None => (None, text),
    };
    if path.is_empty() || node.as_ref().is_some_and(String::is_empty) {
        return Err("expected FILE, or NODE=FILE".to_owned());
    }
    Ok(SaveArg { node, path: path.into() })
}

/// Writes the board's file, and says so in a line.
///
/// # Errors
/// Not exactly one measured board is meant, it plays another, or the file cannot be written.
pub(crate) fn save(arg: &SaveArg, model: &str, devices: &[DeviceView]) -> Outcome<String> {
    let measured: BTreeMap<NodeId, &DeviceView> = devices
        .iter()
        .filter(|device| device.profile.is_some())
        .map(|device| (device.node, device))
        .collect();
    let names: BTreeMap<NodeId, String> =
        measured.iter().map(|(node, device)| (*node, name(device))).collect();
    let device = match (&arg.node, measured.len()) {
        (Some(text), _) => measured[&find("--save", text, &names)?],
        (None, 1) => measured.values().next().copied().ok_or_else(none)?,
        (None, 0) => return Err(none()),
        (None, n) => {
            let names = names.into_values().collect::<Vec<_>>().join(", ");
            let text = format!("--save: {n} workers were measured; say which with NODE=FILE: {names}");
            return Err(Failure::Usage(text));
        }
    };
    let board = board(device, model)?;
    let path = &arg.path;
    std::fs::write(path, board.to_toml())
        .map_err(|error| Failure::machine(format!("write {}", path.display()), error))?;
    Ok(format!("{} is in {}", name(device), path.display()))
}

fn none() -> Failure {
    Failure::Usage("--save: no worker was measured".to_owned())
}

fn name(device: &DeviceView) -> String {
    device.name.clone().unwrap_or_else(|| device.node.short())
}

/// The board this worker is.
fn board(device: &DeviceView, model: &str) -> Outcome<Board> {
    if device.emulation.is_some() {
        let text = format!("--save: {} plays another board, which has a profile already", name(device));
        return Err(Failure::Usage(text));
    }
    let profile = device.profile.clone().ok_or_else(none)?;
    let memory = Bytes(device.memory_bytes.unwrap_or_default());
    let usable = Bytes(device.usable_bytes.unwrap_or_default());
    let hardware = device.hardware.as_deref().and_then(|text| text.split(';').next()).unwrap_or_default();
    let hardware: String = hardware.chars().filter(|c| !c.is_control()).take(96).collect();
    // What it draws is not measured; a board that is known draws what is published of it.
    let known = shoal_profiles::recognise(&hardware, memory);
    let power = known.and_then(|known| Some((known.power?, known.sources.get("power.busy")?.clone())));
    let title = if hardware.trim().is_empty() { name(device) } else { format!("{hardware}, {memory}") };
    let command = format!("shoal devices --profile {model}");
    let mut board = Board::measured(&name(device), &title, profile, (memory, usable), power, &command);
    board.hardware = if hardware.trim().is_empty() { Vec::new() } else { vec![hardware] };
    Ok(board)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: u8, hardware: &str) -> DeviceView {
        let mut device = DeviceView::away(NodeId([id; 16]), format!("board-{id}"), String::new());
        device.profile = Some(shoal_profiles::board("pi5-8gb").unwrap().profile);
        device.memory_bytes = Some(8 << 30);
        device.usable_bytes = Some(7_123_456_789);
        device.hardware = Some(format!("{hardware}; aarch64-linux; 0.1.0"));
        device
    }

    #[test]
    fn a_saved_board_has_the_same_figures_when_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let arg = save_arg(&format!("board-2={}", path.display())).unwrap();
        let devices = [device(1, "Toaster"), device(2, "Raspberry Pi 5 Model B Rev 1.0")];
        save(&arg, "m.gguf", &devices).unwrap();
        let board = shoal_profiles::board(path.to_str().unwrap()).unwrap();
        assert_eq!(Some(&board.profile), devices[1].profile.as_ref());
        assert_eq!((board.memory.0, board.usable.0), (8 << 30, 7_123_456_789));
        assert_eq!(board.hardware, ["Raspberry Pi 5 Model B Rev 1.0"]);
        assert!(board.sources["attention"].text().contains("--profile m.gguf"));
        assert!(board.power.is_some_and(|power| power.busy.0 > 10.0), "known by its model");
    }

    #[test]
    fn it_must_be_clear_which_board_is_meant() {
        let arg = save_arg("mine.toml").unwrap();
        let said = save(&arg, "m", &[device(1, "a"), device(2, "b")]).unwrap_err().to_string();
        assert!(said.contains("board-1, board-2"), "{said}");
        assert!(matches!(save(&arg, "m", &[]), Err(Failure::Usage(_))));
        assert!(save_arg("=x").is_err() && save_arg("x=").is_err());
    }
}
