//! What two nodes of a pair send each other: what is read is written back the same, and whoever hears it goes on.
#![no_main]

use core::time::Duration;

use libfuzzer_sys::fuzz_target;
use outlast_core::address::Hold;
use outlast_core::codec::{Code, Reader};
use outlast_core::heartbeat::{DATAGRAM_MAX, Datagram, Lone, Pace, Scene, Talk, open};
use outlast_core::time::Instant;

fuzz_target!(|bytes: &[u8]| {
    if let Some((body, tag)) = open(bytes) {
        assert_eq!([body, tag].concat(), bytes);
        assert!(bytes.len() <= DATAGRAM_MAX);
    }
    let mut now = Instant::default();
    let mut talk = Talk::new("a", "b", 1, Duration::from_millis(300));
    let mut lone = Lone::new(now, Pace::default(), true);
    let mut hold = Hold::default();
    let mut reader = Reader::new(bytes);
    while let Ok(datagram) = Datagram::decode(&mut reader) {
        assert_eq!(Datagram::from_bytes(&datagram.to_bytes()), Ok(datagram.clone()));
        now = now + Duration::from_millis(20);
        hold.pass(now);
        if let Ok(news) = talk.hear(now, &datagram, 7) {
            let said = news.units.as_ref().and_then(|units| units.first().copied());
            lone.hear(now, said, &news);
        }
        lone.step(now, &mut hold, &Scene { able: true, paused: false, epoch: 3 });
    }
});
