//! Everything on the wire between nodes that could grow or last without end, and where it ends.

use std::time::Duration;

/// Bytes of a message, at most: a snapshot is sent in pieces of this.
pub const MESSAGE_MAX: usize = 8 << 20;
/// Payload of a frame, at most: what is urgent waits for one frame of what is not.
pub const FRAME_MAX: usize = 32 << 10;
/// What is gathered into one write; then one frame of bulk is added.
pub const BATCH_MAX: usize = 64 << 10;
/// What is read at once; a whole frame fits.
pub const READ_MAX: usize = 64 << 10;
/// Bytes of a greeting, at most.
pub const GREETING_MAX: usize = 2 << 10;
/// Bytes of a reason that one node tells another, at most.
pub const REASON_MAX: usize = 512;

/// What each message and each frame counts beside its bytes, so that empty ones are bounded too: about what one costs
/// while it waits.
pub const COST: usize = 128;
/// Bytes that wait to be sent in one channel; the last message may go beyond it.
pub const QUEUE_MAX: usize = 4 << 20;
/// Bytes of one channel that are on their way and not yet seen by the other side. Bulk has less, so that what is urgent
/// does not wait behind it in the buffers of kernels and switches.
pub const WINDOW: usize = 2 << 20;
pub const WINDOW_OF_BULK: usize = 512 << 10;
/// Bytes of one channel and peer that were received and not yet taken; above it the other side gets no more credit.
/// A message that is being put together counts, so it is never below [`MESSAGE_MAX`].
pub const HELD_MAX: usize = MESSAGE_MAX + COST;

/// Requests to one peer that wait for their answers.
pub const REQUESTS_MAX: usize = 4096;

/// From the first packet to the exchange of greetings.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Connections whose other side has not yet shown who it is.
pub const STRANGERS_MAX: usize = 64;
/// The same for each address of a node of the topology: strangers cannot take these places.
pub const STRANGERS_OF_NODE_MAX: usize = 8;
/// How long a refused peer may take to read why.
pub const FAREWELL_MAX: Duration = Duration::from_millis(500);
/// What is read and thrown away meanwhile.
pub const FAREWELL_BYTES_MAX: usize = 256 << 10;
/// How long `stop` lets what is queued go out.
pub const STOP_MAX: Duration = Duration::from_secs(2);

/// Between looks at a connection: one on which nothing was heard for most of this time is pinged.
pub const PING_EVERY: Duration = Duration::from_millis(500);
/// Between measurements of a connection on which much is heard.
pub const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Silence after which a connection is given up.
pub const SILENT_MAX: Duration = Duration::from_secs(5);
/// The same when somebody else claims to be that node, or that node itself says it has no connection.
pub const DOUBTED_MAX: Duration = Duration::from_secs(1);
/// Between looks at whether a peer's certificate is still good.
pub const VERIFY_EVERY: Duration = Duration::from_secs(10);
/// Between looks at the files of certificates.
pub const FILES_EVERY: Duration = Duration::from_secs(5);
/// A file of certificates, at most.
pub const FILE_MAX: u64 = 1 << 20;

/// The pause after the first failed dial; it doubles.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// How long the node with the greater name leaves dialling to the other one.
pub const DIAL_GRACE: Duration = Duration::from_millis(150);
/// After a failed accept, for want of descriptors for instance.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The same refusal of the same address is reported once in this time.
pub const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Refusals that are remembered for that.
pub const REPORTS_MAX: usize = 256;

/// Turns that a connection takes before others have theirs.
pub const TURNS_MAX: usize = 16;
