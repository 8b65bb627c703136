//! What can go wrong, and the exit codes.

use std::process::ExitCode;

use shmkit::inspect::RemoveError;
use shmkit::numbers::{NumbersError, StoreNumbersError};
use shmkit::{AttachError, NamedError};

/// Exit codes. The tables in [`HELP`] and in `docs/cli.md` list the same codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Problems = 1,
    Usage = 2,
    NotFound = 3,
    NotAPool = 4,
    Damaged = 5,
    OtherVersion = 6,
    InUse = 7,
    Unsuitable = 8,
    System = 9,
}

pub const HELP: &str = "\
Exit codes:
  0  done
  1  check has found problems
  2  the arguments are wrong
  3  there is no pool, or no object, of that name
  4  the file is no pool
  5  the pool is truncated or damaged
  6  the pool is of another version, layout or namespace
  7  the pool, or the object, is in use
  8  the object, or the file, is of another kind than the command needs
  9  the system refused something (permissions, memory, a file)";

/// One line on standard error, and an exit code.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    /// `None` if everything has been printed already.
    pub message: Option<String>,
}

pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message: String = message.into();
        Failure {
            code,
            message: Some(message.replace('\n', " ")),
        }
    }

    /// Adds which pool, object or file it is about.
    pub fn about(mut self, what: &str) -> Self {
        self.message = self.message.map(|message| format!("{what}: {message}"));
        self
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        ExitCode::from(code as u8)
    }
}

/// An error and its causes in one line.
pub fn line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        let code = match &error {
            AttachError::InvalidName { .. } => Code::Usage,
            AttachError::NotFound { .. } => Code::NotFound,
            AttachError::NotAPool => Code::NotAPool,
            AttachError::Truncated { .. } | AttachError::DamagedHeader { .. } => Code::Damaged,
            AttachError::OtherVersion { .. }
            | AttachError::OtherLayout
            | AttachError::OtherPidNamespace
            | AttachError::OtherTimeNamespace => Code::OtherVersion,
            AttachError::BeingRemoved => Code::InUse,
            _ => Code::System,
        };
        Failure::new(code, line(&error))
    }
}

impl From<RemoveError> for Failure {
    fn from(error: RemoveError) -> Self {
        match error {
            RemoveError::Attach(error) => error.into(),
            RemoveError::InUse { .. } => Failure::new(Code::InUse, line(&error)),
            error => Failure::new(Code::System, line(&error)),
        }
    }
}

impl From<NumbersError> for Failure {
    fn from(error: NumbersError) -> Self {
        let code = match error {
            NumbersError::NotFound => Code::NotFound,
            NumbersError::NotNumbers { .. } => Code::Unsuitable,
            NumbersError::Changing => Code::InUse,
            NumbersError::NoMemory { .. } => Code::System,
            _ => Code::Damaged,
        };
        Failure::new(code, line(&error))
    }
}

impl From<StoreNumbersError> for Failure {
    fn from(error: StoreNumbersError) -> Self {
        let code = match &error {
            StoreNumbersError::Claimed(_) | StoreNumbersError::Changing => Code::InUse,
            StoreNumbersError::Named(NamedError::Damaged) => Code::Damaged,
            StoreNumbersError::Named(NamedError::InvalidName) => Code::Usage,
            StoreNumbersError::Named(NamedError::OtherType)
            | StoreNumbersError::UnknownType { .. }
            | StoreNumbersError::UnknownShape { .. }
            | StoreNumbersError::WrongLength { .. }
            | StoreNumbersError::OtherShape { .. } => Code::Unsuitable,
            _ => Code::System,
        };
        Failure::new(code, line(&error))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::new(Code::System, line(&error))
    }
}
