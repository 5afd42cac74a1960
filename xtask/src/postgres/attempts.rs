//! The log of a prober: one line for each request, `id,started,ended,status,server`, times on CLOCK_MONOTONIC.

/// The status of a line that tells of a time in which the prober itself did not get to run.
pub(crate) const STARVED: &str = "starved";
pub(crate) const ACKNOWLEDGED: &str = "ok";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) id: i64,
    pub(crate) started: u64,
    pub(crate) ended: u64,
    /// `ok`; `E` and an SQLSTATE; `E_conn`, `E_lost`, `T_conn`, `T_op`, `skip`.
    pub(crate) status: String,
    /// Who acknowledged.
    pub(crate) server: String,
}

impl Attempt {
    pub(crate) fn line(&self) -> String {
        let Attempt { id, started, ended, status, server } = self;
        format!("{id},{started},{ended},{status},{server}\n")
    }

    pub(crate) fn acknowledged(&self) -> bool {
        self.status == ACKNOWLEDGED
    }

    fn parse(line: &str) -> Option<Attempt> {
        let mut fields = line.split(',');
        let mut next = || fields.next();
        Some(Attempt {
            id: next()?.parse().ok()?,
            started: next()?.parse().ok()?,
            ended: next()?.parse().ok()?,
            status: next()?.to_owned(),
            server: next()?.to_owned(),
        })
    }
}

/// What a prober has written so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) attempts: Vec<Attempt>,
    /// From when to when the prober did not run.
    pub(crate) starved: Vec<(u64, u64)>,
}

impl Log {
    /// Takes in the whole lines of a text; returns how many bytes they are.
    pub(crate) fn take(&mut self, text: &str) -> usize {
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        for attempt in whole.lines().filter_map(Attempt::parse) {
            if attempt.status == STARVED {
                self.starved.push((attempt.started, attempt.ended));
            } else {
                self.attempts.push(attempt);
            }
        }
        whole.len()
    }

    pub(crate) fn acknowledged(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.acknowledged())
    }

    /// Whether what was started after a moment is acknowledged again: enough of it, and nearly all that was started
    /// during the last while.
    pub(crate) fn flows(&self, since: u64, now: u64, want: &Flow) -> bool {
        let after = |attempt: &&Attempt| since < attempt.started;
        let enough = want.acknowledged_min <= self.acknowledged().filter(after).count();
        let from = now.saturating_sub(u64::try_from(want.calm.as_nanos()).unwrap_or(u64::MAX));
        let recent = || self.attempts.iter().filter(|attempt| from < attempt.started);
        let good = recent().filter(|attempt| attempt.acknowledged()).count();
        enough && good > 0 && good * 100 > recent().count() * want.percent_min
    }
}

/// When writes count as having resumed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) acknowledged_min: usize,
    pub(crate) calm: std::time::Duration,
    pub(crate) percent_min: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_line_is_read_as_it_was_written_and_half_a_line_is_not_read() {
        let attempt = Attempt {
            id: 7,
            started: 10,
            ended: 20,
            status: ACKNOWLEDGED.to_owned(),
            server: "127.0.0.1".to_owned(),
        };
        let text = format!("{}-1,5,9,starved,\n8,11,12,o", attempt.line());
        let mut log = Log::default();
        assert_eq!(log.take(&text), text.len() - "8,11,12,o".len());
        assert_eq!(log.attempts, [attempt]);
        assert_eq!(log.starved, [(5, 9)]);
        assert_eq!(log.take("1,2,3,ok,"), 0);
    }

    #[test]
    fn writes_flow_when_nearly_all_recent_ones_are_acknowledged() {
        let ms = |ms: u64| ms * 1_000_000;
        let want = Flow { acknowledged_min: 3, calm: Duration::from_millis(5), percent_min: 90 };
        let log = |bad: &[u64]| Log {
            attempts: (0..20)
                .map(|at| Attempt {
                    id: 0,
                    started: ms(at),
                    ended: ms(at),
                    status: if bad.contains(&at) { "E_lost" } else { ACKNOWLEDGED }.to_owned(),
                    server: String::new(),
                })
                .collect(),
            starved: Vec::new(),
        };
        assert!(log(&[8, 9, 10]).flows(ms(7), ms(20), &want));
        assert!(!log(&[17]).flows(ms(7), ms(20), &want));
        assert!(!log(&[]).flows(ms(17), ms(20), &want), "too few so far");
        assert!(!log(&[]).flows(ms(7), ms(40), &want), "nothing is started any more");
    }
}
