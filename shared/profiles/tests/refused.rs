//! What no profile or cluster may say: each mistake is refused with the file, the key and the value.

use std::fs;
use std::path::PathBuf;

use shoal_profiles::{ClusterFile, FILE_BYTES, board, net};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// What is said of this board, in which `from` was replaced by `to`.
    fn board(&self, from: &str, to: &str) -> String {
        let good = board("pi5-8gb").unwrap().to_toml();
        assert!(good.contains(from), "{from:?} is not in\n{good}");
        let path = self.write("mine.toml", &good.replacen(from, to, 1));
        let said = board(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(said.contains("mine.toml"), "no file: {said}");
        said
    }

    fn cluster(&self, text: &str) -> String {
        let path = self.write("home.toml", text);
        let said = ClusterFile::read(&path).unwrap_err().to_string();
        assert!(said.contains("home.toml") || said.contains("profile"), "no file: {said}");
        said
    }
}

fn says(said: &str, words: &[&str]) {
    assert!(words.iter().all(|word| said.contains(word)), "{words:?} are not all in: {said}");
}

#[test]
fn figures_that_are_none_are_refused() {
    let folder = Folder::new();
    for (value, shown) in [
        ("0", "0"),
        ("-1e9", "-1000000000"),
        ("nan", "NaN"),
        ("inf", "inf"),
        ("1e30", "1000000000000000000000000000000"),
    ] {
        let said = folder.board("stream = { value = 1e10", &format!("stream = {{ value = {value}"));
        says(&said, &["rates[0].stream", shown, "finite number"]);
    }
    says(
        &folder.board("stream = { value = 1e10", "stream = { value = \"fast\""),
        &["rates[0].stream", "fast", "number"],
    );
    says(&folder.board("stream = { value = 1e10, ", "stream = { "), &["rates[0].stream.value is missing"]);
    says(&folder.board("phase-overhead", "phase-overheat"), &["phase-overheat", "line 8"]);
    says(
        &folder.board("memory = { value = 8589934592", "memory = { value = \"8 bananas\""),
        &["memory", "8 bananas"],
    );
    says(&folder.board("usable = { value = 7", "usable = { value = 9"), &["usable", "more than the memory"]);
    says(&folder.board("threads = 4", "threads = 0"), &["threads = 0", "1 to 1024"]);
    says(&folder.board("threads = 4\n", ""), &["threads is missing"]);
    says(
        &folder.board("busy = { value = 1.15e1", "busy = { value = 1"),
        &["power.busy", "less than power.idle"],
    );
    says(&folder.board("kinds = [\"Q4_0\"]", "kinds = [\"Q4_9\"]"), &["rates[0].kinds", "Q4_9", "Q4_K"]);
    says(&folder.board("kinds = [\"Q4_1\"]", "kinds = [\"Q4_0\"]"), &["rates[1].kinds", "already"]);
    says(
        &folder.board("rows = [1, 4,", "rows = [4, 4,"),
        &["rates[0].batched.rows[1]", "above the one before"],
    );
    says(&folder.board("rows = [1, 4,", "rows = [4,"), &["rates[0].batched", "equal length"]);
    says(&folder.board("spread = [0e0,", "spread = [nan,"), &["value[0].spread", "NaN"]);
    says(&folder.board(", published = \"reported\" }", " }"), &["the mark of power.idle", "measured"]);
    says(
        &folder.board("published = \"reported\" }", "published = \"x\", derived = \"y\" }"),
        &["power.idle", "several marks"],
    );
    says(&folder.board("title = \"", "title = \"\\n"), &["title", "one line"]);
    says(&folder.board("title", "title ="), &["line 2"]);
}

#[test]
fn networks_are_checked_alike() {
    let folder = Folder::new();
    let good = "title = \"x\"\nbandwidth = { value = 1e8, derived = \"x\" }\n\
                round-trips = { bytes = [64], value = [2e-4], derived = \"x\" }\n\
                message-cpu = { value = 1e-5, derived = \"x\" }\n";
    let path = folder.write("net.toml", good);
    assert!(net(path.to_str().unwrap()).is_ok());
    for (from, to, words) in [
        ("value = 1e8", "value = -1", &["bandwidth", "-1"][..]),
        ("[2e-4]", "[0.0]", &["round-trips.value[0]", "0"]),
        ("[2e-4]", "[]", &["round-trips", "equal length"]),
        ("bytes = [64]", "rows = [64]", &["round-trips.rows", "bytes is meant"]),
        ("message-cpu", "message-gpu", &["message-gpu", "line 4"]),
        ("title = \"x\"\n", "", &["title is missing"]),
    ] {
        let path = folder.write("net.toml", &good.replace(from, to));
        says(&net(path.to_str().unwrap()).unwrap_err().to_string(), words);
    }
}

#[test]
fn names_that_nobody_has_get_the_nearest_one() {
    says(&board("pi5-8g").unwrap_err().to_string(), &["pi5-8g", "did you mean \"pi5-8gb\"?", "agx-orin"]);
    says(&net("gigabit").unwrap_err().to_string(), &["network", "gigabit-switch", "loopback"]);
    let said = board("toaster").unwrap_err().to_string();
    assert!(!said.contains("did you mean"), "{said}");
    says(&board("no/such/file.toml").unwrap_err().to_string(), &["no/such/file.toml"]);
}

#[test]
fn files_are_bounded_and_text() {
    let folder = Folder::new();
    let path = folder.write("mine.toml", &"#".repeat(FILE_BYTES as usize + 1));
    says(&board(path.to_str().unwrap()).unwrap_err().to_string(), &["mine.toml", "more than 1048576 bytes"]);
    fs::write(&path, b"title = \"x\"\n\xff\xfe").unwrap();
    says(&board(path.to_str().unwrap()).unwrap_err().to_string(), &["mine.toml", "line 2", "UTF-8"]);
    // A folder, and a board that is like itself.
    assert!(board(&format!("{}/", folder.0.path().display())).is_err());
    let path = folder.write("self.toml", "like = \"self.toml\"\n");
    says(&board(path.to_str().unwrap()).unwrap_err().to_string(), &["self.toml", "circle"]);
}

#[test]
fn clusters_name_what_is_wrong() {
    let folder = Folder::new();
    let net = "network = \"gigabit-switch\"\n";
    let two =
        "[[device]]\nname = \"a\"\nprofile = \"pi5-8gb\"\n[[device]]\nname = \"b\"\nprofile = \"pi5-8gb\"\n";
    says(&folder.cluster(net), &["[[device]] is missing"]);
    says(
        &folder.cluster(&format!("{net}{}", two.replace("\"b\"", "\"a\""))),
        &["device[1].name", "\"a\"", "another device"],
    );
    says(
        &folder.cluster(&format!("{net}{}", two.replacen("pi5-8gb", "pi5-8bg", 1))),
        &["did you mean \"pi5-8gb\"?"],
    );
    says(&folder.cluster(&format!("netwerk = \"x\"\n{two}")), &["netwerk", "line 1"]);
    says(&folder.cluster(&format!("{net}{two}colour = \"red\"\n")), &["colour"]);
    // Nothing says what lies between them: neither a network nor a link.
    says(&folder.cluster(two), &["\"a\"", "\"b\"", "network", "[[link]]"]);
    let link = |between: &str, profile: &str| {
        format!("{net}{two}[[link]]\nbetween = {between}\nprofile = \"{profile}\"\n")
    };
    says(
        &folder.cluster(&link("[\"a\", \"c\"]", "wifi-5")),
        &["link[0].between", "\"c\"", "is no device", "a, b"],
    );
    says(&folder.cluster(&link("[\"a\", \"a\"]", "wifi-5")), &["two different devices"]);
    says(&folder.cluster(&link("[\"a\"]", "wifi-5")), &["two devices"]);
    says(&folder.cluster(&link("[\"a\", \"b\"]", "wify-5")), &["wify-5", "did you mean \"wifi-5\"?"]);
    let twice = format!(
        "{}[[link]]\nbetween = [\"b\", \"a\"]\nprofile = \"wifi-6\"\n",
        link("[\"a\", \"b\"]", "wifi-5")
    );
    says(&folder.cluster(&twice), &["link[1].between", "already"]);
    for (line, words) in [
        ("speed = 0.0", &["device[1].speed", "0"][..]),
        ("speed = -2", &["device[1].speed", "-2"]),
        ("speed = inf", &["device[1].speed", "inf"]),
        ("memory = \"9TB\"", &["device[1].memory", "9TB", "more than the 8.59 GB of pi5-8gb"]),
        ("memory = \"0\"", &["device[1].memory", "0"]),
        ("cpu-quota = nan", &["device[1].cpu-quota", "NaN"]),
        ("count = 0", &["device[1].count", "0"]),
        ("count = 501", &["device[1].count", "501"]),
    ] {
        says(&folder.cluster(&format!("{net}{two}{line}\n")), words);
    }
    says(&folder.cluster(&format!("{net}{two}count = 500\n")), &["more than 500 devices"]);
    // A name of a device that is not there, of a file that is.
    let path = folder.write("good.toml", &format!("{net}{two}"));
    says(&board(&format!("{}#c", path.display())).unwrap_err().to_string(), &["\"c\"", "a, b"]);
}

#[test]
fn links_of_their_own_and_defaults_are_told_apart() {
    let folder = Folder::new();
    let text = "network = \"gigabit-switch\"\n\
                [[device]]\nname = \"a\"\nprofile = \"pi5-8gb\"\n\
                [[device]]\nname = \"b\"\nprofile = \"pi5-8gb\"\nspeed = 0.5\nmemory = \"2GB\"\nnetwork = \"2.5g-switch\"\n\
                [[device]]\nname = \"c\"\nprofile = \"pi4-4gb\"\n\
                [[link]]\nbetween = [\"c\", \"b\"]\nprofile = \"loopback\"\n";
    let cluster = ClusterFile::read(&folder.write("home.toml", text)).unwrap();
    assert_eq!(cluster.name, "home");
    assert_eq!(cluster.defaulted, ["a", "c"]);
    let between = |a, b| &cluster.links.iter().find(|link| (link.0, link.1) == (a, b)).unwrap().2;
    let figures = |name| net(name).unwrap().figures;
    assert_eq!(*between(0, 1), figures("gigabit-switch"), "the slower of both attachments");
    assert_eq!(*between(1, 2), figures("loopback"));
    assert_eq!(*between(2, 1), figures("loopback"));
    let (full, half) = (&cluster.boards[0].1, &cluster.boards[1].1);
    assert_eq!(half.profile.rates[0].stream.median.0 * 2.0, full.profile.rates[0].stream.median.0);
    assert_eq!(half.profile.phase_overhead.median.0, full.profile.phase_overhead.median.0 * 2.0);
    assert_eq!(half.usable.0, 2_000_000_000);
}

#[test]
fn a_board_is_added_by_the_worse_of_both_networks_even_of_one_in_a_file() {
    let folder = Folder::new();
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../profiles/nets/100m-switch.toml");
    folder.write("mine.toml", &fs::read_to_string(own).unwrap());
    let text = "[[device]]\nname = \"a\"\nprofile = \"pi5-8gb\"\nnetwork = \"mine.toml\"\n";
    let mut cluster = ClusterFile::read(&folder.write("home.toml", text)).unwrap();
    let added = cluster.attach(board("pi4-4gb").unwrap(), Some(&net("2.5g-switch").unwrap())).unwrap();
    let between = |a, b| &cluster.links.iter().find(|link| (link.0, link.1) == (a, b)).unwrap().2;
    let slow = net("100m-switch").unwrap().figures;
    assert_eq!(between(added, 0).bandwidth, slow.bandwidth);
    assert_eq!(between(0, added).round_trips, slow.round_trips);
}
