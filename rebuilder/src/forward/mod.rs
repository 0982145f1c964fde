//! Requests go to the analyser, and each ends in exactly one counted outcome.
