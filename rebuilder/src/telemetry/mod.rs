//! Outcome counters, the Prometheus endpoint and health.
//!
//! Each worker thread owns one [`WorkerCounters`] and is its only writer; at each turn it publishes a copy that adds up,
//! and the admin thread reads the copies when it is scraped. So counting costs the packet path one uncontended atomic add,
//! a metric is a sum taken on the slow side, and requests = outcomes + in flight in every single scrape.

mod admin;
mod counters;
mod health;
mod load;
mod metrics;

use std::fmt;

pub use admin::{AdminError, AdminHandle, AdminOptions, AdminServer};
pub use counters::{BalancerStatus, Counter, Figures, Gauge, WorkerCounters};
pub use health::{Health, Status};
pub use load::LoadMeter;
pub use metrics::Metrics;

/// A closed set of outcomes that is at once an enum and a metric's label set.
macro_rules! outcomes {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident => $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// Every outcome, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The metric label.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }

        impl $name {
            /// Its place in [`Self::ALL`].
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

outcomes! {
    /// Where a packet ended. Every packet has exactly one.
    PacketOutcome {
        /// Payload bytes went into a stream that is or may become HTTP requests.
        Stream => "stream",
        /// A TCP segment without payload: SYN, ACK, FIN, RST, keep-alive probe.
        Control => "control",
        /// All of its payload had been seen before.
        Duplicate => "duplicate",
        /// Payload of the answering direction (it begins with an HTTP status line).
        Response => "response",
        /// TLS records.
        Tls => "tls",
        /// Clear-text HTTP/2.
        Http2 => "http2",
        /// A stream that is no HTTP request stream.
        NotHttp => "not_http",
        /// Behind a CONNECT or an Upgrade that took.
        Tunnel => "tunnel",
        /// A sequence number outside every window of its flow.
        OutOfWindow => "out_of_window",
        /// Bytes refused because a flow or the whole table had reached its cap, or a fragment's sender its share.
        OverCap => "over_cap",
        /// It had to go on to the worker that holds its connection, whose queue was full.
        HandoverFull => "handover_full",
        /// IP, but not TCP.
        NotTcp => "not_tcp",
        /// Neither IPv4 nor IPv6 (ARP, LLDP, ...).
        NotIp => "not_ip",
        /// A fragment of an inner packet that is not whole yet; the one that completes it has the packet's outcome.
        Fragment => "fragment",
        /// A capture file's link type that is not read.
        LinkType => "link_type",
        /// Of a connection to the analyser, or one that this host opened: forwarded, it would come back for ever.
        Loop => "loop",
        /// It arrived after SIGTERM, when what had been captured was being delivered.
        Draining => "draining",
        /// `--vni` names others.
        VniExcluded => "vni_excluded",
        /// `--port` names neither of its ports.
        PortExcluded => "port_excluded",
        /// Its TCP or IPv4 checksum is wrong, and `--checksum` says to drop it.
        BadChecksum => "bad_checksum",
        /// A frame that ends inside or lies about its VXLAN or GENEVE header.
        BadVxlan => "bad_vxlan",
        /// A frame that ends inside its Ethernet, VLAN or other link header.
        BadLink => "bad_link",
        /// A frame that ends inside or lies about its IP header, or a fragment that contradicts others.
        BadIp => "bad_ip",
        /// A frame that ends inside or lies about its TCP header.
        BadTcp => "bad_tcp",
    }
}

outcomes! {
    /// Where a request ended. Every request has exactly one, or is in flight.
    RequestOutcome {
        /// The analyser answered 1xx (only 101) or 2xx.
        Delivered2xx => "delivered_2xx",
        /// The analyser answered 3xx.
        Delivered3xx => "delivered_3xx",
        /// The analyser answered 4xx: a WAF that blocks, or a server that refuses the request as malformed.
        Delivered4xx => "delivered_4xx",
        /// The analyser answered 5xx.
        Delivered5xx => "delivered_5xx",
        /// The analyser closed the connection on this very request, twice.
        RefusedByAnalyser => "refused_by_analyser",
        /// The queue of bytes waiting for the analyser was full, or above half of it one source's quarter.
        QueueFull => "queue_full",
        /// The same of a disputed request, of which half of the queue may be.
        QuarantineFull => "quarantine_full",
        /// Not answered when `--drain-timeout` ended, or when a second SIGTERM came.
        DrainTimeout => "drain_timeout",
        /// Its body has a hole and `--incomplete drop` is set.
        Incomplete => "incomplete",
        /// A load balancer's or kubelet's probe that `--ignore-health-checks` leaves out.
        HealthCheck => "health_check",
    }
}
