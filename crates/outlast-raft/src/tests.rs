mod codec;
mod wal;
