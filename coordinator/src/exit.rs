//! How `shoal` ends: the exit codes, and the one error type every command returns.

use std::process::ExitCode;

/// The last lines of `--help`, the same for every command.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  this machine failed (a file, a port, a lock)
  2  wrong usage
  3  the model or the input cannot be used
  4  no plan fits: says which bytes are missing where
  5  the cluster was lost, or no worker was found";

/// Why a command ends without having done its work. Each kind has its exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The machine: a file, a port, a lock.
    #[error("{}", chain(.0.as_ref()))]
    Machine(anyhow::Error),
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// A model, prompt or other input that cannot be used.
    #[error("{}", chain(.0.as_ref()))]
    Input(anyhow::Error),
    /// Nobody can hold the model.
    #[error("{0}")]
    NoPlan(String),
    /// A worker died, or none was there.
    #[error("{0}")]
    Lost(String),
    /// Who reads standard output went away: nothing to say and nobody to say it to.
    #[error("standard output was closed")]
    BrokenPipe,
    /// Ctrl-C or a termination signal, by its number.
    #[error("interrupted by signal {0}")]
    Signal(u8),
}

/// What commands return.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// The process's exit code.
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Machine(_) => 1,
            Self::Usage(_) => 2,
            Self::Input(_) => 3,
            Self::NoPlan(_) => 4,
            Self::Lost(_) => 5,
            Self::BrokenPipe => 0,
            // As shells report a process that a signal ended.
            Self::Signal(number) => 128_u8.saturating_add(*number),
        })
    }

    /// Whether there is something to print.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::BrokenPipe | Self::Signal(_))
    }

    /// Turns any error into one of the input, saying what was tried.
    pub(crate) fn input(what: impl std::fmt::Display, source: impl Into<anyhow::Error>) -> Self {
        Self::Input(source.into().context(format!("failed to {what}")))
    }

    /// Turns any error into one of the machine, saying what was tried.
    pub(crate) fn machine(what: impl std::fmt::Display, source: impl Into<anyhow::Error>) -> Self {
        Self::Machine(source.into().context(format!("failed to {what}")))
    }
}

/// An error and its causes, each once: some libraries' texts hold those of their causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_the_code_the_help_names() {
        let input = Failure::input("read the prompt", anyhow::anyhow!("it is empty"));
        assert_eq!(input.to_string(), "failed to read the prompt: it is empty");
        assert_eq!(input.code(), ExitCode::from(3));
        let source = std::io::Error::other("the disk is full");
        let error = anyhow::Error::new(source).context("failed to write at byte 0: the disk is full");
        let once = "failed to write x: failed to write at byte 0: the disk is full";
        assert_eq!(Failure::machine("write x", error).to_string(), once);
        assert_eq!(Failure::Usage(String::new()).code(), ExitCode::from(2));
        assert_eq!(Failure::NoPlan(String::new()).code(), ExitCode::from(4));
        assert_eq!(Failure::Lost(String::new()).code(), ExitCode::from(5));
        assert_eq!(Failure::Signal(2).code(), ExitCode::from(130));
    }
}
