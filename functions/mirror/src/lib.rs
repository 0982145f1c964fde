//! What to mirror and what to do about it.
