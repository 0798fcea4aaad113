//! The four ways a request can fail.

use thiserror::Error;

/// Why a request was not served.
#[derive(Debug, Error)]
pub enum Error {
    /// The request contradicts itself; the caller can fix it. Lists every fault.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// The request is sound, but this device or target lacks a feature, named here.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// An outside tool refused our output.
    #[error("{command} refused {path}:\n{stderr}")]
    Tool {
        /// The command line.
        command: String,
        /// What it printed.
        stderr: String,
        /// The source that it refused.
        path: String,
    },
    /// We broke our own promise.
    #[error("bug in bitsmith, please report: {message}\n{text}")]
    Bug {
        /// What went wrong.
        message: String,
        /// The kernel or input that shows it.
        text: String,
    },
}

impl Error {
    /// An `Invalid` with one fault.
    pub fn invalid(fault: impl Into<String>) -> Error {
        Error::Invalid(vec![fault.into()])
    }
}

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
