//! The network that cases are led in: a bridge, and machines on it, each a network namespace.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use outlast_core::topology::Network;
use outlast_host::lab::{Bridge, dress, spawn_machine};
use outlast_kernel::netlink::{ASK, Messages, Socket};
use outlast_kernel::packet;
use outlast_kernel::route::{
    Addressed, LINK_NAME, NEW_LINK, NO_DUPLICATE_DETECTION, ROUTE, Route, UP, Wanted, family,
    octets,
};
use outlast_vip::Place;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use std::os::fd::AsFd as _;

pub(crate) const INTERFACE: &str = "eth0";
/// Everything that is waited for comes within this time, on the slowest machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// How long a client waits for one answer.
const ANSWER: Duration = Duration::from_millis(20);
const ECHO_PORT: u16 = 7;

/// One bridge for all cases.
pub(crate) struct Field {
    bridge: Bridge,
    count: Cell<u8>,
}

/// A machine on the bridge.
pub(crate) struct Machine {
    first: Child,
    pub(crate) port: String,
    pub(crate) mac: packet::Mac,
}

impl Field {
    pub(crate) fn build() -> Field {
        Field { bridge: Bridge::build().expect("build a bridge"), count: Cell::new(0) }
    }

    /// A machine with its own addresses, 10.1.0.N/32 and fd01::N/64 besides what leads everywhere.
    pub(crate) fn machine(&self) -> Machine {
        let number = self.count.get() + 1;
        self.count.set(number);
        let mut command = Command::new(std::env::current_exe().expect("we run"));
        command.arg("machine").stdin(Stdio::piped());
        let first = spawn_machine(command).expect("start a machine");
        let machine =
            Machine { first, port: format!("port{number}"), mac: [2, 0, 0, 0, 1, number] };
        self.bridge
            .plug(&machine.port, machine.first.id(), INTERFACE, machine.mac)
            .expect("lay a cable");
        machine.run(move || {
            dress(INTERFACE, IpAddr::from([10, 1, 0, number])).expect("give it an address");
            let route = Route::open().expect("open netlink");
            let index = route.link(INTERFACE).expect("find the interface").index;
            let own = [0xfd01, 0, 0, 0, 0, 0, 0, u16::from(number)];
            let flags = NO_DUPLICATE_DETECTION;
            let (valid, preferred) = (u32::MAX, u32::MAX);
            let own = Wanted { ip: IpAddr::from(own), prefix: 64, valid, preferred, flags };
            route.put_address(index, &own).expect("give it an IPv6 address");
        });
        set_up(&machine.port, true);
        wait_until("the link is up", || machine.run(|| link_is_up(INTERFACE)));
        machine
    }
}

/// Takes the machine's port off the bridge, or puts it back: the link stays up, and nothing passes.
pub(crate) fn set_apart(port: &str, apart: bool) {
    /// IFLA_MASTER, and how the bridge is called.
    const MASTER: u16 = 10;
    const BRIDGE: &str = "lab";
    let route = Route::open().expect("open netlink");
    let bridge = if apart { 0 } else { route.link(BRIDGE).expect("find the bridge").index };
    let mut ask = Messages::default();
    ask.add(NEW_LINK, ASK, &[0; 16], |a| {
        a.put_text(LINK_NAME, port);
        a.put(MASTER, &bridge.to_ne_bytes());
    });
    Socket::open(ROUTE).and_then(|route| route.ask(ask.bytes())).expect("plug a port");
}

/// Switches the machine's port of the bridge on or off, from where the bridge is.
pub(crate) fn set_up(port: &str, up: bool) {
    let flags = if up { UP } else { 0 };
    let fixed = [[0; 4], [0; 4], flags.to_ne_bytes(), UP.to_ne_bytes()].concat();
    let mut ask = Messages::default();
    ask.add(NEW_LINK, ASK, &fixed, |a| a.put_text(LINK_NAME, port));
    Socket::open(ROUTE).and_then(|route| route.ask(ask.bytes())).expect("switch a port");
}

fn link_is_up(name: &str) -> bool {
    Route::open().and_then(|route| route.link(name)).is_ok_and(|link| link.up)
}

impl Machine {
    /// Runs something inside, on a thread of its own.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let pid = i32::try_from(self.first.id()).expect("a process id");
        let machine = pidfd_open(Pid::from_raw(pid).expect("not 0"), PidfdFlags::empty())
            .expect("hold the machine");
        thread::spawn(move || {
            move_into_thread_name_spaces(machine.as_fd(), ThreadNameSpaceType::NETWORK)
                .expect("enter the machine");
            work()
        })
    }

    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let done = self.start(work).join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The addresses of its interface.
    pub(crate) fn addresses(&self) -> Vec<Addressed> {
        self.run(|| {
            let route = Route::open().expect("open netlink");
            let index = route.link(INTERFACE).expect("find the interface").index;
            route.addresses(index).expect("list addresses")
        })
    }

    /// Its own address that everybody in IPv6 knows.
    pub(crate) fn global(&self) -> IpAddr {
        let is_global = |ip: &IpAddr| ip.is_ipv6() && ip.to_string().starts_with("fd01:");
        let found = self.addresses().into_iter().map(|here| here.ip).find(is_global);
        found.expect("each machine has one")
    }

    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.addresses().iter().any(|here| here.ip == ip)
    }

    /// Forgets which hardware address the address has, so that it has to ask.
    pub(crate) fn forget_neighbour(&self, ip: IpAddr) {
        /// RTM_DELNEIGH, NDA_DST
        const DELETE: u16 = 29;
        const WHOM: u16 = 1;
        self.run(move || {
            let route = Socket::open(ROUTE).expect("open netlink");
            let index =
                Route::open().expect("open netlink").link(INTERFACE).expect("find it").index;
            let fixed = [[family(ip), 0, 0, 0], index.to_ne_bytes(), [0; 4]].concat();
            let mut ask = Messages::default();
            ask.add(DELETE, ASK, &fixed, |a| a.put(WHOM, &octets(ip)));
            match route.ask(ask.bytes()) {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            }
        });
    }

    /// Answers at this address for as long as it lives, whether the address is here or not.
    pub(crate) fn echo(&self, ip: IpAddr) -> Echo {
        let socket = self.run(move || {
            let kind = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = socket(kind, SocketType::DGRAM, None).expect("open a socket");
            if ip.is_ipv4() {
                rustix::net::sockopt::set_ip_freebind(&socket, true).expect("bind freely");
            } else {
                rustix::net::sockopt::set_ipv6_freebind(&socket, true).expect("bind freely");
            }
            rustix::net::bind(&socket, &SocketAddr::new(ip, ECHO_PORT)).expect("bind");
            UdpSocket::from(socket)
        });
        socket.set_read_timeout(Some(ANSWER)).expect("set a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    // Refused outside the lease, which is what is tested.
                    socket.send_to(&buffer[..len], from).ok();
                }
            }
        });
        Echo { stop, thread: Some(thread) }
    }

    /// Asks at an address from here.
    pub(crate) fn client(&self, ip: IpAddr) -> Client {
        let socket = self.run(move || {
            let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, 0)).expect("bind");
            socket.connect((ip, ECHO_PORT)).expect("there is a route to everyone");
            socket
        });
        socket.set_read_timeout(Some(ANSWER)).expect("set a timeout");
        Client { socket, asked: 0 }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.first.kill().ok();
        self.first.wait().ok();
    }
}

pub(crate) struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

pub(crate) struct Client {
    socket: UdpSocket,
    asked: u64,
}

impl Client {
    /// Asks once; the moment at which it asked, if there was an answer.
    pub(crate) fn ask(&mut self) -> Option<Instant> {
        self.asked += 1;
        let asked = Instant::now();
        // An error left over from before ends here, too.
        if self.socket.send(&self.asked.to_ne_bytes()).is_err() {
            pause(Duration::from_millis(1));
            return None;
        }
        let mut buffer = [0; 64];
        while let Ok(len) = self.socket.recv(&mut buffer) {
            if buffer[..len] == self.asked.to_ne_bytes() {
                return Some(asked);
            }
        }
        None
    }

    pub(crate) fn wait_for_answer(&mut self) {
        wait_until("the address answers", || self.ask().is_some());
    }

    /// Nobody answers, many times in a row.
    pub(crate) fn must_be_dark(&mut self) {
        for _ in 0..10 {
            assert_eq!(self.ask(), None, "the address answers");
        }
    }

    /// Asks until nobody has answered for long; when the last one was asked that was answered.
    pub(crate) fn last_answer(&mut self) -> Instant {
        const DARK: Duration = Duration::from_millis(300);
        let until = Instant::now() + LIMIT;
        let mut last = Instant::now();
        while last.elapsed() < DARK {
            assert!(Instant::now() < until, "the address still answers after {LIMIT:?}");
            if let Some(asked) = self.ask() {
                last = asked;
            }
        }
        last
    }
}

pub(crate) fn place(ip: &str, prefix: u8) -> Place {
    let network = Network { address: ip.parse().expect("an address"), prefix };
    Place { network, interface: INTERFACE.to_owned() }
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {LIMIT:?}");
        pause(Duration::from_millis(5));
    }
}

#[expect(clippy::disallowed_methods, reason = "between two looks at a condition")]
pub(crate) fn pause(time: Duration) {
    thread::sleep(time);
}
