//! The AWS side of the ports of `mirror`.
