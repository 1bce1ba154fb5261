//! Every file of `profiles/` can be read, its figures say where they come from, and what is written reads back.

use std::path::{Path, PathBuf};

use shoal_core::Bytes;
use shoal_profiles::{Board, ClusterFile, Mark, board, boards, net, nets, recognise};

fn profiles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../profiles")
}

#[test]
fn every_built_in_profile_can_be_used() {
    for name in boards() {
        let board = board(name).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(board.profile.check(), Ok(()), "{name}");
        assert!(board.usable < board.memory && board.profile.rates.len() == 13, "{name}");
        assert!(board.power.is_some_and(|power| power.check().is_ok()), "{name}");
    }
    for name in nets() {
        let net = net(name).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(net.figures.check(), Ok(()), "{name}");
        let sizes: Vec<u32> = net.figures.round_trips.iter().map(|trip| trip.bytes).collect();
        assert_eq!(sizes, [64, 4096, 65536], "{name}");
        assert_eq!(net.figures.shared, name.starts_with("wifi"), "{name}");
    }
}

#[test]
fn no_file_of_the_folders_is_forgotten() {
    for (folder, known) in [("boards", boards()), ("nets", nets())] {
        let mut found: Vec<String> = std::fs::read_dir(profiles().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        found.sort_unstable();
        let mut known: Vec<String> = known.iter().map(|name| (*name).to_owned()).collect();
        known.sort_unstable();
        assert_eq!(found, known, "{folder}");
    }
}

#[test]
fn every_example_of_a_cluster_can_be_used() {
    let mut count = 0;
    for entry in std::fs::read_dir(profiles().join("clusters")).unwrap() {
        let path = entry.unwrap().path();
        let cluster = ClusterFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
        let n = cluster.boards.len();
        assert_eq!(cluster.links.len(), n * (n - 1), "{}", path.display());
        let device = format!("{}#{}", path.display(), cluster.boards[0].0);
        assert_eq!(board(&device).unwrap(), cluster.boards[0].1);
        count += 1;
    }
    assert!(count >= 6, "{count}");
}

#[test]
fn what_is_written_reads_back_to_the_last_bit() {
    let folder = tempfile::tempdir().unwrap();
    for name in boards() {
        let mut one = board(name).unwrap();
        // Figures as a measurement leaves them: with spreads, and of all digits.
        one.profile.rates[0].stream.median.0 /= 3.0;
        one.profile.rates[0].stream.spread = 0.1;
        one.profile.attention[0].rate.spread = 1.0 / 3.0;
        one.title = "a \"quoted\" title".to_owned();
        let path = folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, one.to_toml()).unwrap();
        let back = board(path.to_str().unwrap()).unwrap_or_else(|error| panic!("{error}\n{}", one.to_toml()));
        assert_eq!(back, one, "{}", one.to_toml());
    }
}

#[test]
fn a_measured_board_says_by_which_command() {
    let folder = tempfile::tempdir().unwrap();
    let profile = board("pi5-8gb").unwrap().profile;
    let memory = (Bytes(8_000_000_000), Bytes(7_000_000_000));
    let mine = Board::measured("mine", "My board", profile, memory, None, "shoal devices --profile m.gguf");
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, mine.to_toml()).unwrap();
    let back = board(path.to_str().unwrap()).unwrap();
    assert_eq!(back, mine);
    let command = Mark::Measured("shoal devices --profile m.gguf".to_owned());
    assert_eq!(back.sources["rates.Q4_0.stream"], command);
    assert_eq!(back.sources.len(), 4 + 2 * back.profile.rates.len());
}

#[test]
fn a_live_board_is_known_by_its_model_and_its_memory() {
    let of = |hardware: &str, memory| recognise(hardware, memory).map(|board| board.name);
    let pi = "Raspberry Pi 5 Model B Rev 1.0; aarch64-linux; 0.1.0";
    assert_eq!(of(pi, Bytes::mib(4_045)).as_deref(), Some("pi5-4gb"));
    assert_eq!(of(pi, Bytes::mib(8_063)).as_deref(), Some("pi5-8gb"));
    assert_eq!(of(pi, Bytes::mib(16_200)).as_deref(), Some("pi5-16gb"));
    assert_eq!(of("NVIDIA Jetson Orin Nano Developer Kit", Bytes::mib(7_600)).as_deref(), Some("orin-nano"));
    assert_eq!(of("Toaster 3000", Bytes::mib(64)), None);
}
