//! Standard output: results only, exact, and quiet when the reader goes away. All else goes to standard error.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::exit::{Failure, Outcome};

/// Writes `text` as it is and flushes, so that a stream of tokens is seen at once.
pub(crate) fn text(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(failure)
}

/// Writes `text` and a line break.
pub(crate) fn line(line: &str) -> Outcome {
    text(&format!("{line}\n"))
}

/// Writes one JSON object on one line.
pub(crate) fn json(value: &impl Serialize) -> Outcome {
    let json = serde_json::to_string(value).map_err(|error| Failure::machine("write JSON", error))?;
    line(&json)
}

/// Writes a line for people to standard error; whether that works is nobody's business.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn failure(error: io::Error) -> Failure {
    if error.kind() == ErrorKind::BrokenPipe {
        Failure::BrokenPipe
    } else {
        Failure::machine("write to standard output", error)
    }
}
