//! Requests of every kind, mirrored by the kernel, with the copies reordered, duplicated, cut and lost on their way:
//! what the analyser gets is what was sent, byte for byte, or said to be damaged, or counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bench;
mod live;
mod perturbed;
mod raw;
mod tools;
mod traffic;

use lab::perturb::Settings;

/// How much of a frame is mirrored: less than one of a jumbo MTU.
const PACKET_LENGTH: u32 = 8500;

const REORDERED_AND_DUPLICATED: Settings = Settings {
    seed: 0x6d69_7865_6421,
    reorder: 100,
    duplicate: 100,
    drop: 0,
    second_vni: Some(815),
    tags: true,
};
