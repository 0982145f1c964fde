//! A VPC on one machine.
