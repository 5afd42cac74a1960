//! What a client is told when its session ends or cannot begin: PostgreSQL's own ErrorResponse, so that every driver can read it.

/// A FATAL error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE.
    pub code: &'static str,
    pub message: String,
    /// What to do.
    pub hint: &'static str,
}

const AGAIN: &str = "Connect again.";

impl Refusal {
    fn new(code: &'static str, message: impl Into<String>, hint: &'static str) -> Refusal {
        Refusal { code, message: message.into(), hint }
    }

    /// No server was found within the time for holding.
    pub fn held() -> Refusal {
        let hint = "A failover or switchover may be under way: connect again.";
        Refusal::new("57P03", "no server of this database can take a session now", hint)
    }

    /// More clients wait than may.
    pub fn queue() -> Refusal {
        let message =
            "no server of this database can take a session now, and too many clients wait for one";
        Refusal::new("57P03", message, "Connect again later.")
    }

    pub fn unserved() -> Refusal {
        Refusal::new("57P03", "this database is not served here any more", AGAIN)
    }

    /// A TLS session cannot be made read-only.
    pub fn tls_at_primary() -> Refusal {
        let message =
            "no standby can be read from, and the primary stands in for sessions without TLS only";
        Refusal::new("57P03", message, "Connect again later, without TLS, or to the write port.")
    }

    pub fn limit() -> Refusal {
        let message =
            "sorry, too many clients already: the proxy has all the connections that it may have";
        Refusal::new("53300", message, "Connect again later, or raise the limit of connections.")
    }

    pub fn malformed(what: &'static str) -> Refusal {
        Refusal::new("08P01", what, "Check that the client speaks PostgreSQL's protocol 3.")
    }

    /// In PostgreSQL's own words.
    pub fn unknown_protocol(major: u16, minor: u16) -> Refusal {
        let message =
            format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0");
        Refusal::new("0A000", message, "Use a client that speaks protocol 3.")
    }

    /// The server went away before the session had begun.
    pub fn lost_login() -> Refusal {
        Refusal::new(
            "08006",
            "the server was lost before the session had begun; nothing was done",
            AGAIN,
        )
    }

    /// A request was under way.
    pub fn unknown_outcome() -> Refusal {
        let message = "the server of this session was lost or may not serve any more; whether the last statement took effect is unknown";
        Refusal::new("08006", message, "Connect again and find out before repeating it.")
    }

    /// A transaction was open, and nothing under way in it.
    pub fn rolled_back() -> Refusal {
        let message = "terminating connection because its server was lost or may not serve any more; the open transaction was rolled back";
        Refusal::new("57P01", message, "Connect again and repeat the transaction.")
    }

    /// Nothing was under way, but the session cannot go on elsewhere.
    pub fn bound(reason: &str) -> Refusal {
        let message = format!(
            "terminating connection because its server was lost or may not serve any more, and the session is bound to it by {reason}; nothing was under way"
        );
        Refusal::new("57P01", message, AGAIN)
    }

    /// This proxy ends.
    pub fn ends() -> Refusal {
        Refusal::new("57P01", "terminating connection because this proxy ends", AGAIN)
    }

    /// The message as it goes over the wire.
    pub fn wire(&self) -> Vec<u8> {
        let fields = [
            ("S", "FATAL"),
            ("V", "FATAL"),
            ("C", self.code),
            ("M", &self.message),
            ("H", self.hint),
        ];
        let mut body = Vec::new();
        for (field, text) in fields {
            body.extend_from_slice(field.as_bytes());
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        [b"E", length.to_be_bytes().as_slice(), &body].concat()
    }
}
