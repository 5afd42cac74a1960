//! The server that the demo puts behind the proxy. It misbehaves on request.
//!
//! `/` answers its name and about a kibibyte; `/health` says whether it is well. On a second port, `POST /behave` with
//! one of [`Behaviour`]'s words as body changes how it answers. On SIGTERM it leaves as a good citizen does: `/health`
//! says 503, what is asked is still done, and once nobody asks any more it ends.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::SignalKind;
use tokio::task::JoinSet;

use crate::args::Args;
use crate::{Verdict, http, out};

/// Long enough that every caller has given up or gone elsewhere.
pub(crate) const SLOWNESS: Duration = Duration::from_secs(3);
const BODY_BYTES: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Ok,
    /// Work answers 500, `/health` still says that all is well.
    Error500,
    /// Work and `/health` answer 500.
    Error500All,
    /// Every answer takes [`SLOWNESS`].
    Slow,
}

impl Behaviour {
    const ALL: [Behaviour; 4] =
        [Behaviour::Ok, Behaviour::Error500, Behaviour::Error500All, Behaviour::Slow];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Behaviour::Ok => "ok",
            Behaviour::Error500 => "error500",
            Behaviour::Error500All => "error500-all",
            Behaviour::Slow => "slow",
        }
    }

    fn from_word(word: &str) -> Option<Behaviour> {
        Behaviour::ALL.into_iter().find(|behaviour| behaviour.word() == word)
    }
}

/// After SIGTERM, the backend stays until nobody has asked for work for this long, so that whoever probes it has learned
/// from `/health` that it leaves, and idle connections are no longer used.
const QUIET: Duration = Duration::from_millis(300);
/// It leaves after this long whatever is asked.
const LEAVE_MAX: Duration = Duration::from_secs(5);

struct Server {
    name: String,
    /// When work was last asked for, or finished.
    last_work: Mutex<Instant>,
    open_work: AtomicU32,
    leaving: AtomicBool,
    /// Index into [`Behaviour::ALL`].
    behaviour: AtomicU8,
}

impl Server {
    fn new(name: String) -> Server {
        Server {
            name,
            last_work: Mutex::new(Instant::now()),
            open_work: AtomicU32::new(0),
            leaving: AtomicBool::new(false),
            behaviour: AtomicU8::new(0),
        }
    }

    fn touch(&self) {
        *self.last_work.lock().expect("no panic while held") = Instant::now();
    }

    /// Says at `/health` that it leaves, does what is asked until nothing is, and returns.
    async fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        let limit = Instant::now() + LEAVE_MAX;
        loop {
            let last = *self.last_work.lock().expect("no panic while held");
            let now = Instant::now();
            let busy = self.open_work.load(Ordering::Relaxed) > 0;
            if limit <= now || (!busy && QUIET <= now - last) {
                return;
            }
            tokio::time::sleep(QUIET / 20).await;
        }
    }

    fn behaviour(&self) -> Behaviour {
        Behaviour::ALL[usize::from(self.behaviour.load(Ordering::Relaxed))]
    }

    fn behave(&self, behaviour: Behaviour) {
        let at = Behaviour::ALL.iter().position(|b| *b == behaviour).expect("ALL lists all");
        self.behaviour.store(u8::try_from(at).expect("there are four"), Ordering::Relaxed);
    }

    async fn work(&self, path: &str) -> (u16, String) {
        let health = path.starts_with("/health");
        if health && self.leaving.load(Ordering::Relaxed) {
            return (503, "leaving\n".to_owned());
        }
        if !health {
            self.open_work.fetch_add(1, Ordering::Relaxed);
        }
        let answer = self.answer(health).await;
        if !health {
            self.touch();
            self.open_work.fetch_sub(1, Ordering::Relaxed);
        }
        answer
    }

    async fn answer(&self, health: bool) -> (u16, String) {
        let fails = match self.behaviour() {
            Behaviour::Ok => false,
            Behaviour::Error500 => !health,
            Behaviour::Error500All => true,
            Behaviour::Slow => {
                tokio::time::sleep(SLOWNESS).await;
                false
            }
        };
        match (fails, health) {
            (true, _) => (500, "broken on purpose\n".to_owned()),
            (false, true) => (200, "ok\n".to_owned()),
            (false, false) => (200, format!("{:.<BODY_BYTES$}\n", format!("{} ", self.name))),
        }
    }

    fn control(&self, path: &str, body: &str) -> (u16, String) {
        let Some(behaviour) = Behaviour::from_word(body.trim()).filter(|_| path == "/behave")
        else {
            return (404, "POST /behave with ok, error500, error500-all or slow\n".to_owned());
        };
        self.behave(behaviour);
        (200, behaviour.word().to_owned())
    }
}

#[derive(Clone, Copy)]
enum Side {
    Work,
    Control,
}

pub(crate) fn run(mut args: Args) -> Result<Verdict> {
    let port = args.option("--port")?.context("--port is missing")?;
    let control = args.option("--control")?.context("--control is missing")?;
    let name = args.option("--name")?.context("--name is missing")?;
    let ip = args.option("--ip")?.unwrap_or(Ipv4Addr::LOCALHOST);
    args.finish()?;
    let server = Arc::new(Server::new(name));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let work = listen(ip, port).await?;
        let control = listen(ip, control).await?;
        // Port 0 stands for any: whoever asked for that learns here which.
        out::line(format!("{} {}", work.local_addr()?, control.local_addr()?));
        let serving = async {
            tokio::try_join!(
                serve(work, Side::Work, Arc::clone(&server)),
                serve(control, Side::Control, Arc::clone(&server))
            )
        };
        let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
        let leaving = async {
            terminate.recv().await;
            server.leave().await;
        };
        tokio::select! {
            served = serving => served.map(|_both| Verdict::Good),
            () = leaving => Ok(Verdict::Good),
        }
    })
}

async fn listen(ip: Ipv4Addr, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((ip, port));
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

async fn serve(listener: TcpListener, side: Side, server: Arc<Server>) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept")?;
                let server = Arc::clone(&server);
                connections.spawn(async move { converse(stream, side, &server).await });
            }
            // Clients leave as they like; how a connection ended changes nothing here.
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// Answers requests one after another until the client leaves.
async fn converse(mut stream: TcpStream, side: Side, server: &Server) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some((head, body)) = request(&mut stream, &mut buffer).await? {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let (status, text) = match side {
            Side::Work => server.work(path).await,
            Side::Control => server.control(path, &body),
        };
        let answer = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}",
            if status == 200 { "OK" } else { "Not OK" },
            text.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        if http::closes(&head) {
            break;
        }
    }
    Ok(())
}

/// The next request's head and body; `None` when the client is done. What follows it stays in the buffer.
async fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<(String, String)>> {
    loop {
        if let Some(end) = http::head_end(buffer) {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let all = end + http::content_length(&head).unwrap_or(0);
            if buffer.len() >= all {
                let body = String::from_utf8_lossy(&buffer[end..all]).into_owned();
                buffer.drain(..all);
                return Ok(Some((head, body)));
            }
        }
        anyhow::ensure!(buffer.len() < http::HEAD_MAX, "request too long");
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_behaviour_answers_as_its_word_says() {
        let server = Server::new("b1".to_owned());
        let mut answers = Vec::new();
        for word in ["ok", "error500", "error500-all", "slow"] {
            assert_eq!(server.control("/behave", word).0, 200);
            answers.push((word, server.work("/").await.0, server.work("/health").await.0));
        }
        assert_eq!(
            answers,
            [
                ("ok", 200, 200),
                ("error500", 500, 200),
                ("error500-all", 500, 500),
                ("slow", 200, 200)
            ]
        );
        assert_eq!(server.control("/behave", "nonsense").0, 404);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_starts_with_the_name() {
        let server = Server::new("b1".to_owned());
        let (_, body) = server.work("/").await;
        assert!(body.starts_with("b1 ") && body.len() >= BODY_BYTES);
    }
}
