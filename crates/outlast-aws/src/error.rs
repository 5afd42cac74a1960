//! Why a call to AWS has come to nothing.

use std::fmt;

/// What to do about it is in the words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsError {
    /// No credentials were found, or those that were are not good; what was looked at.
    Credentials(String),
    /// AWS said no, by this code, and will say it again.
    Refused { code: String, message: String },
    /// AWS asked us to slow down until no time was left.
    Busy { code: String, tries: u32 },
    /// No answer came; it may have been done.
    Unknown(String),
    /// The answer is not what it should be.
    Strange(String),
    /// What is asked for cannot be sent.
    Unfit(String),
}

impl AwsError {
    /// The code of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            AwsError::Refused { code, .. } | AwsError::Busy { code, .. } => Some(code),
            AwsError::Credentials(_)
            | AwsError::Unknown(_)
            | AwsError::Strange(_)
            | AwsError::Unfit(_) => None,
        }
    }
}

impl fmt::Display for AwsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AwsError::Credentials(what) => f.write_str(what),
            AwsError::Refused { code, message } if message.is_empty() => {
                write!(f, "AWS refuses: {code}")
            }
            AwsError::Refused { code, message } => write!(f, "AWS refuses: {code}: {message}"),
            AwsError::Busy { code, tries } => {
                write!(f, "AWS is busy ({code}, {tries} tries); try again later")
            }
            AwsError::Unknown(what) => write!(f, "{what}; it may have been done"),
            AwsError::Strange(what) => write!(f, "the answer of AWS is strange: {what}"),
            AwsError::Unfit(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for AwsError {}
