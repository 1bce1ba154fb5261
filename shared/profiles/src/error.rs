//! What can be wrong with a profile or a cluster file.

use std::path::PathBuf;

/// Why a profile cannot be used. Every message names the file, and where there is one the key and its value.
#[derive(Debug, thiserror::Error)]
pub enum ProfileFileError {
    #[error("failed to read the profile {}: {source}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to read the profile {}: it has more than {most} bytes, which no profile needs", .path.display())]
    TooLarge { path: PathBuf, most: u64 },
    /// No TOML, an unknown key, or a value of the wrong type.
    #[error("failed to read {file}: line {line}: {problem}")]
    Syntax { file: String, line: usize, problem: String },
    #[error("failed to read {file}: {key} is missing")]
    Missing { file: String, key: String },
    #[error("failed to read {file}: {key} = {value}: {expected}")]
    Value { file: String, key: String, value: String, expected: String },
    #[error("failed to find the {kind} profile {name:?}{}; known are {known} (or name a .toml file)", meant(.nearest.as_deref()))]
    Unknown { kind: &'static str, name: String, nearest: Option<String>, known: String },
    #[error("failed to read {file}: {problem}")]
    Cluster { file: String, problem: String },
}

fn meant(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(": did you mean {name:?}?"))
}

/// The name among `known` that is fewest changes away from `name`, if it is near enough to have been meant.
pub(crate) fn nearest_name<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    // Names are bounded: a distance takes the product of both lengths.
    let name: String = name.chars().take(64).collect::<String>().to_lowercase();
    let near = known.map(|other| (changes(&name, &other.to_lowercase()), other)).min();
    let most = (name.chars().count() / 2).max(1);
    near.filter(|(distance, _)| *distance <= most).map(|(_, other)| other.to_owned())
}

/// Insertions, deletions and replacements between two texts (Levenshtein's distance).
fn changes(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let known = || ["pi5-4gb", "pi5-8gb", "orin-nano", "gigabit-switch"].into_iter();
        assert_eq!(nearest_name("pi5-8g", known()).as_deref(), Some("pi5-8gb"));
        assert_eq!(nearest_name("Orin_Nano", known()).as_deref(), Some("orin-nano"));
        assert_eq!(nearest_name("toaster", known()), None);
        assert_eq!(changes("kitten", "sitting"), 3);
    }
}
