//! Yes, no, or not to be said for want of data.

use std::fmt;

use serde::Serialize;

/// An answer with three values. In JSON `"yes"`, `"no"` or `{"unknown": "what is missing"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Yes,
    No,
    /// What would have to be known.
    Unknown(String),
}

impl Verdict {
    /// Whether a value reaches a limit; unknown where the value is.
    pub fn at_least(value: Option<f64>, limit: f64, missing: &str) -> Verdict {
        match value {
            Some(value) => Verdict::from(value >= limit),
            None => Verdict::Unknown(format!("needs {missing}")),
        }
    }

    /// Both: one no is enough for no.
    pub fn and(self, other: Verdict) -> Verdict {
        match (self, other) {
            (Verdict::No, _) | (_, Verdict::No) => Verdict::No,
            (Verdict::Yes, other) => other,
            (unknown, _) => unknown,
        }
    }

    /// One of them: one yes is enough for yes.
    pub fn or(self, other: Verdict) -> Verdict {
        match (self, other) {
            (Verdict::Yes, _) | (_, Verdict::Yes) => Verdict::Yes,
            (Verdict::No, other) => other,
            (unknown, _) => unknown,
        }
    }

    pub fn negated(self) -> Verdict {
        match self {
            Verdict::Yes => Verdict::No,
            Verdict::No => Verdict::Yes,
            unknown => unknown,
        }
    }

    /// Without the reason.
    pub fn as_str(&self) -> &'static str {
        match self {
            Verdict::Yes => "yes",
            Verdict::No => "no",
            Verdict::Unknown(_) => "unknown",
        }
    }
}

impl From<bool> for Verdict {
    fn from(yes: bool) -> Verdict {
        if yes { Verdict::Yes } else { Verdict::No }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Unknown(reason) => write!(f, "unknown: {reason}"),
            other => write!(f, "{}", other.as_str()),
        }
    }
}
