mod codec;
mod log;
mod wal;
