//! What tshark says of our packets.

use crate::Case;

pub(crate) const CASES: &[Case] = &[];
