//! Tables of `shoal devices`: who is there, and what was measured of workers and links.

use std::collections::BTreeSet;

use shoal_core::profile::DeviceProfile;
use shoal_core::units::Bytes;

use super::tables::new_table;
use crate::commands::devices::{DeviceView, LinkView};

/// What is shown where nothing is known.
const NOTHING: &str = "—";

/// Who is there.
pub(crate) fn devices_table(devices: &[DeviceView]) -> String {
    let header = [
        "node",
        "name",
        "address",
        "state",
        "threads",
        "memory",
        "available",
        "reserve",
        "usable",
        "accounted",
        "planned",
        "resident",
    ];
    let mut table = new_table(&header, &[4, 5, 6, 7, 8, 9, 10, 11]);
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| NOTHING.to_owned(), |b| Bytes(b).to_string());
    for device in devices {
        table.add_row([
            device.node.short(),
            name(device),
            device.address.clone().unwrap_or_default(),
            device.state.to_owned(),
            device.threads.map_or_else(|| NOTHING.to_owned(), |threads| threads.to_string()),
            bytes(device.memory_bytes),
            bytes(device.available_bytes),
            bytes(device.reserve_bytes),
            bytes(device.usable_bytes),
            bytes(device.accounted_bytes),
            bytes(device.planned_bytes),
            bytes(device.resident_bytes),
        ]);
    }
    let mut out = table.to_string();
    for device in devices {
        for remark in [&device.left_out, &device.doubt].into_iter().flatten() {
            out.push_str(&format!("\n{}: {remark}", name(device)));
        }
    }
    out
}

/// What each worker measured of itself: formats by rows, then attention by context and the fixed cost.
pub(crate) fn profiles_table(devices: &[DeviceView]) -> String {
    let profiles: Vec<(&DeviceView, &DeviceProfile)> =
        devices.iter().filter_map(|device| Some((device, device.profile.as_ref()?))).collect();
    let rows: BTreeSet<u32> = profiles
        .iter()
        .flat_map(|(_, profile)| &profile.rates)
        .flat_map(|rate| rate.batched.iter().map(|entry| entry.rows))
        .collect();
    let contexts: BTreeSet<u32> = profiles
        .iter()
        .flat_map(|(_, profile)| profile.attention.iter().map(|entry| entry.context))
        .collect();
    format!("{}\n\n{}", formats(&profiles, &rows), fixed(&profiles, &contexts))
}

fn formats(profiles: &[(&DeviceView, &DeviceProfile)], rows: &BTreeSet<u32>) -> String {
    let mut header = vec!["worker".to_owned(), "format".to_owned(), "weights streamed".to_owned()];
    header.extend(rows.iter().map(|rows| format!("{rows} row{}", if *rows == 1 { "" } else { "s" })));
    header.push("spread".to_owned());
    let right: Vec<usize> = (2..header.len()).collect();
    let mut table = new_table(&header, &right);
    for (device, profile) in profiles {
        for rate in &profile.rates {
            let mut line =
                vec![name(device), rate.kind.to_string(), format!("{:.2} GB/s", rate.stream.median.0 / 1e9)];
            line.extend(rows.iter().map(|rows| {
                let entry = rate.batched.iter().find(|entry| entry.rows == *rows);
                entry.map_or_else(|| NOTHING.to_owned(), |e| format!("{:.2} GMAC/s", e.rate.median.0 / 1e9))
            }));
            let spreads = rate.batched.iter().map(|entry| entry.rate.spread);
            line.push(percent(spreads.fold(rate.stream.spread, f32::max)));
            table.add_row(line);
        }
    }
    table.to_string()
}

fn fixed(profiles: &[(&DeviceView, &DeviceProfile)], contexts: &BTreeSet<u32>) -> String {
    let mut header = vec!["worker".to_owned(), "overhead of a phase".to_owned()];
    header.extend(contexts.iter().map(|context| format!("attention at {context}")));
    header.extend(["spread", "threads", "measured"].map(str::to_owned));
    let right: Vec<usize> = (1..header.len()).collect();
    let mut table = new_table(&header, &right);
    for (device, profile) in profiles {
        let mut line = vec![name(device), time(profile.phase_overhead.median.0)];
        line.extend(contexts.iter().map(|context| {
            let entry = profile.attention.iter().find(|entry| entry.context == *context);
            entry.map_or_else(|| NOTHING.to_owned(), |e| format!("{:.2} GB/s", e.rate.median.0 / 1e9))
        }));
        let spreads = profile.attention.iter().map(|entry| entry.rate.spread);
        line.push(percent(spreads.fold(profile.phase_overhead.spread, f32::max)));
        line.extend([profile.threads.to_string(), age(device.profile_age_s)]);
        table.add_row(line);
    }
    table.to_string()
}

/// What was measured of each link, from one worker to another.
pub(crate) fn links_table(links: &[LinkView], devices: &[DeviceView]) -> String {
    let sizes: BTreeSet<u32> =
        links.iter().flat_map(|link| link.round_trips.iter().map(|trip| trip.bytes)).collect();
    let mut header = vec!["from".to_owned(), "to".to_owned()];
    header.extend(sizes.iter().map(|bytes| format!("{} and back", size(*bytes))));
    header.extend(["bandwidth", "processor a message", "spread"].map(str::to_owned));
    let right: Vec<usize> = (2..header.len()).collect();
    let mut table = new_table(&header, &right);
    let end = |node| {
        let device = devices.iter().find(|device| device.node == node);
        device.map_or_else(|| node.short(), name)
    };
    for link in links {
        let mut line = vec![end(link.from), end(link.to)];
        line.extend(sizes.iter().map(|bytes| {
            let trip = link.round_trips.iter().find(|trip| trip.bytes == *bytes);
            trip.map_or_else(|| NOTHING.to_owned(), |trip| time(trip.ms / 1e3))
        }));
        let medium = if link.shared { " (shared)" } else { "" };
        line.push(format!("{:.1} MB/s{medium}", link.bandwidth_bytes_per_s / 1e6));
        line.push(time(link.message_cpu_ms / 1e3));
        let spreads = link.round_trips.iter().map(|trip| trip.spread);
        let spreads = spreads.chain([link.bandwidth_spread, link.message_cpu_spread]);
        line.push(percent(spreads.fold(0.0, f32::max)));
        table.add_row(line);
    }
    table.to_string()
}

fn name(device: &DeviceView) -> String {
    device.name.clone().unwrap_or_else(|| device.node.short())
}

/// A time as people read it.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

fn size(bytes: u32) -> String {
    if bytes >= 1024 && bytes.is_multiple_of(1024) {
        format!("{} KiB", bytes / 1024)
    } else {
        format!("{bytes} B")
    }
}

fn percent(part: f32) -> String {
    format!("{:.0} %", part * 100.0)
}

/// How long ago something was measured; `None` is now.
fn age(seconds: Option<u64>) -> String {
    match seconds {
        None => "now".to_owned(),
        Some(s) if s < 120 => format!("{s} s ago"),
        Some(s) if s < 7200 => format!("{} min ago", s / 60),
        Some(s) if s < 48 * 3600 => format!("{} h ago", s / 3600),
        Some(s) => format!("{} days ago", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_say_them() {
        assert_eq!(
            (time(12.34e-6), time(1.5e-3), time(2.0)),
            ("12.3 µs".into(), "1.50 ms".into(), "2.00 s".into())
        );
        assert_eq!((size(64), size(4096), size(65_536)), ("64 B".into(), "4 KiB".into(), "64 KiB".into()));
        assert_eq!(
            (age(None), age(Some(30)), age(Some(600))),
            ("now".into(), "30 s ago".into(), "10 min ago".into())
        );
        assert_eq!((age(Some(20_000)), age(Some(400_000))), ("5 h ago".into(), "4 days ago".into()));
    }
}
