//! Command line: each flag of `run` is also an environment variable `REBUILDER_…`. Exit codes: 0 done, 1 failed, 2 usage.

#[cfg(feature = "cloudwatch")]
mod publish;

use std::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use rebuilder::decode::{ChecksumPolicy, DecodeOptions, Vni};
use rebuilder::forward::{ForwardOptions, HopByHop, Target, XffStyle};
use rebuilder::http::{Cidr, HttpOptions};
use rebuilder::inspect::{self, Format, InspectError};
use rebuilder::pipeline::PipelineOptions;
use rebuilder::receive::ring::{LEAST_RING, MOST_RING, RingOptions};
use rebuilder::receive::udp::UdpOptions;
use rebuilder::receive::{Receive, ReceiveOptions};
use rebuilder::replay::{self, ReplayOptions};
use rebuilder::run::{self, Incomplete, RequestSelection, RunOptions};
use rebuilder::selftest;
use rebuilder::stream::{FlowScope, OverlapPolicy, StreamOptions};
use rebuilder::telemetry::AdminOptions;
use rebuilder::units::{parse_bytes, parse_duration};
use tracing_subscriber::EnvFilter;

/// Turns mirrored VPC packets back into the HTTP requests that were sent, and hands them to an analyser.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receive mirrored packets and forward the requests in them.
    Run(Box<RunArgs>),
    /// Test with the settings of `run`, on other ports, whether mirrored packets become requests here; ends in a second.
    SelfTest(Box<RunArgs>),
    /// Print the requests in a capture file (pcap or pcapng, gzipped or not).
    Inspect(InspectArgs),
    /// Send a capture file as mirrored packets.
    Replay(ReplayArgs),
    /// Put the figures of the rebuilder on this machine into CloudWatch.
    #[cfg(feature = "cloudwatch")]
    Publish(publish::PublishArgs),
}

#[derive(Args)]
struct RunArgs {
    /// The analyser: http(s)://HOST:PORT.
    #[arg(long, env = "REBUILDER_FORWARD", value_name = "URL")]
    forward: Target,
    /// Where mirrored packets (VXLAN) arrive.
    #[arg(
        long,
        env = "REBUILDER_LISTEN",
        default_value = "0.0.0.0:4789",
        value_name = "ADDR:PORT"
    )]
    listen: SocketAddr,
    /// Worker threads; default: one a core.
    #[arg(long, env = "REBUILDER_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Where /healthz and /metrics are served.
    #[arg(
        long,
        env = "REBUILDER_ADMIN",
        default_value = "0.0.0.0:9445",
        value_name = "ADDR:PORT"
    )]
    admin: SocketAddr,
    #[command(flatten)]
    frames: FrameArgs,
    #[command(flatten)]
    client: ClientArgs,
    /// One flow table for all VNIs (a connection mirrored twice is rebuilt once), or one for each (address plans
    /// that overlap).
    #[arg(long, env = "REBUILDER_FLOW_SCOPE", value_enum, default_value_t = Scope::Global)]
    flow_scope: Scope,
    #[command(flatten)]
    overlap: OverlapArgs,
    /// How X-Forwarded-For is written: a line of its own, or appended to the last captured one.
    #[arg(long, env = "REBUILDER_XFF", value_enum, default_value_t = Xff::Line)]
    xff: Xff,
    /// A captured `Connection: close`: written over so that connections persist, or sent as captured.
    #[arg(long, env = "REBUILDER_HOP_BY_HOP", value_enum, default_value_t = Hop::Persist)]
    hop_by_hop: Hop,
    /// A request whose body has a hole: forwarded as far as it was captured, or dropped.
    #[arg(long, env = "REBUILDER_INCOMPLETE", value_enum, default_value_t = IncompleteArg::Forward)]
    incomplete: IncompleteArg,
    /// Leave out health checks that come from these networks (repeat, or separate by commas): body-less GET or HEAD
    /// without a query, User-Agent `ELB-HealthChecker/` or `kube-probe/`.
    #[arg(
        long,
        env = "REBUILDER_IGNORE_HEALTH_CHECKS",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    ignore_health_checks: Vec<Cidr>,
    /// Connections to the analyser, a worker.
    #[arg(long, env = "REBUILDER_CONNECTIONS", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Requests that wait for the analyser, in all (bytes; K, M, G).
    #[arg(long, env = "REBUILDER_QUEUE_BYTES", default_value = "256M", value_parser = parse_bytes)]
    queue_bytes: usize,
    /// Requests that are sent and not answered, in all (bytes; K, M, G).
    #[arg(long, env = "REBUILDER_INFLIGHT_BYTES", default_value = "64M", value_parser = parse_bytes)]
    inflight_bytes: usize,
    /// Packets and requests that are not complete, in all (bytes; K, M, G).
    #[arg(long, env = "REBUILDER_HELD_BYTES", default_value = "512M", value_parser = parse_bytes)]
    held_bytes: usize,
    /// How long an answer may take.
    #[arg(long, env = "REBUILDER_ANSWER_TIMEOUT", default_value = "10s", value_parser = parse_duration)]
    answer_timeout: Duration,
    /// How long after SIGTERM answers are waited for.
    #[arg(long, env = "REBUILDER_DRAIN_TIMEOUT", default_value = "30s", value_parser = parse_duration)]
    drain_timeout: Duration,
    /// How packets are received: by a ring in memory (needs CAP_NET_RAW), by sockets, or by a ring where that is allowed.
    #[arg(long, env = "REBUILDER_RECEIVE", value_enum, default_value_t = ReceiveArg::Auto)]
    receive: ReceiveArg,
    /// The packet ring, a worker (bytes; K, M, G).
    #[arg(long, env = "REBUILDER_RING_BYTES", default_value = "64M", value_parser = parse_ring)]
    ring_bytes: usize,
    /// A socket's receive buffer, a worker (bytes; K, M, G).
    #[arg(long, env = "REBUILDER_RECEIVE_BUFFER", default_value = "64M", value_parser = parse_bytes)]
    receive_buffer: usize,
    /// Certificates (PEM) to trust for an https analyser, beside the system's.
    #[arg(long, env = "REBUILDER_FORWARD_CA", value_name = "FILE")]
    forward_ca: Option<PathBuf>,
}

#[derive(Args)]
struct FrameArgs {
    /// Take only these VXLAN network identifiers (repeat, or separate by commas); default: all.
    #[arg(long, env = "REBUILDER_VNI", value_delimiter = ',', value_parser = parse_vni)]
    vni: Vec<Vni>,
    /// Take only connections with one of these ports, or ranges a-b, at either end (repeat, or separate by commas);
    /// default: all.
    #[arg(long, env = "REBUILDER_PORT", value_delimiter = ',', value_parser = parse_ports)]
    port: Vec<RangeInclusive<u16>>,
    /// A whole frame with a wrong TCP or IPv4 checksum: dropped where that interface's are usually right, only
    /// counted, or always dropped.
    #[arg(long, env = "REBUILDER_CHECKSUM", value_enum, default_value_t = ChecksumArg::Auto)]
    checksum: ChecksumArg,
}

impl From<FrameArgs> for DecodeOptions {
    fn from(args: FrameArgs) -> Self {
        Self {
            vnis: args.vni,
            ports: args.port,
            checksum: match args.checksum {
                ChecksumArg::Auto => ChecksumPolicy::Auto,
                ChecksumArg::Count => ChecksumPolicy::Count,
                ChecksumArg::Drop => ChecksumPolicy::Drop,
            },
            ..Self::default()
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ChecksumArg {
    Auto,
    Count,
    Drop,
}

#[derive(Args)]
struct ClientArgs {
    /// Proxies whose X-Forwarded-For names the client (repeat, or separate by commas).
    #[arg(
        long,
        env = "REBUILDER_TRUST",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    trust: Vec<Cidr>,
    /// Balancers whose PROXY protocol header names the client (repeat, or separate by commas); default: everybody.
    #[arg(
        long,
        env = "REBUILDER_PROXY_FROM",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    proxy_from: Vec<Cidr>,
}

#[derive(Args)]
struct OverlapArgs {
    /// Which of two copies that disagree stays: the first, or the one that Linux keeps.
    #[arg(long, env = "REBUILDER_OVERLAP", value_enum, default_value_t = Overlap::First)]
    overlap: Overlap,
}

impl OverlapArgs {
    fn policy(&self) -> OverlapPolicy {
        match self.overlap {
            Overlap::First => OverlapPolicy::First,
            Overlap::Linux => OverlapPolicy::Linux,
        }
    }
}

#[derive(Args)]
struct InspectArgs {
    /// The capture.
    file: PathBuf,
    /// One JSON object a request.
    #[arg(long, conflicts_with = "summary")]
    json: bool,
    /// One JSON object for the whole file.
    #[arg(long)]
    summary: bool,
    #[command(flatten)]
    frames: FrameArgs,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    overlap: OverlapArgs,
}

#[derive(Args)]
struct ReplayArgs {
    /// The capture.
    file: PathBuf,
    /// Where a rebuilder listens.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// Packets a second; default: as fast as the socket takes them.
    #[arg(long)]
    pps: Option<NonZeroU64>,
    /// How often the file is sent.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    loops: u32,
    /// The VNI that bare packets are wrapped with.
    #[arg(long, default_value = "1", value_parser = parse_vni)]
    vni: Vni,
}

#[derive(Clone, Copy, ValueEnum)]
enum ReceiveArg {
    Auto,
    Ring,
    Socket,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scope {
    Global,
    Vni,
}

#[derive(Clone, Copy, ValueEnum)]
enum Overlap {
    First,
    Linux,
}

#[derive(Clone, Copy, ValueEnum)]
enum Xff {
    Line,
    Append,
}

#[derive(Clone, Copy, ValueEnum)]
enum Hop {
    Persist,
    Keep,
}

#[derive(Clone, Copy, ValueEnum)]
enum IncompleteArg {
    Forward,
    Drop,
}

/// Parses the command line, runs, and answers the exit code.
pub(crate) fn main() -> ExitCode {
    // A reader that closes early (`| head`) ends the program quietly through a failed write, not through a panic.
    let parsed = without_empty_variables(Cli::command())
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => match cli.command {
            Command::Run(args) => run(*args),
            Command::SelfTest(args) => self_test(*args),
            Command::Inspect(args) => inspect(args),
            Command::Replay(args) => replay(args),
            #[cfg(feature = "cloudwatch")]
            Command::Publish(args) => finish(publish::run(args)),
        },
        Err(e)
            if e.use_stderr()
                && e.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            complain(usage_line(&e));
            ExitCode::from(2)
        }
        Err(e) => {
            let _ = e.print();
            ExitCode::from(if e.use_stderr() { 2 } else { 0 })
        }
    }
}

/// A variable that is set and empty counts as absent: an environment file has a line for each flag, used or not. And
/// `inspect` takes none, though it shares flags with `run`.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let empty = |arg: &clap::Arg| {
        arg.get_env()
            .is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()))
    };
    let strip = |arg: clap::Arg| {
        if empty(&arg) {
            arg.env(None::<&str>)
        } else {
            arg
        }
    };
    command
        .mut_subcommands(|subcommand| subcommand.mut_args(strip))
        // The variables configure a service; a capture is read by what the command line says.
        .mut_subcommand("inspect", |inspect| {
            inspect.mut_args(|arg| arg.env(None::<&str>))
        })
}

/// clap tells a usage error in a paragraph; ours is a line.
fn usage_line(e: &clap::Error) -> String {
    let text = e.to_string();
    let words: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let line = words.join(" ");
    format!(
        "{}; see `rebuilder --help`",
        line.strip_prefix("error: ").unwrap_or(&line)
    )
}

fn complain(e: impl Display) {
    let _ = writeln!(io::stderr(), "rebuilder: {e}");
}

fn finish<E: Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(e);
            ExitCode::FAILURE
        }
    }
}

fn run(args: RunArgs) -> ExitCode {
    log("info");
    finish(run::run(&args.into()))
}

fn self_test(args: RunArgs) -> ExitCode {
    // Its only news are the warnings and how it went.
    log("warn");
    finish(selftest::run(&args.into()).map(|report| {
        let _ = writeln!(io::stdout(), "rebuilder: {report}");
    }))
}

fn log(level: &str) {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(
            EnvFilter::try_from_env("REBUILDER_LOG").unwrap_or_else(|_| EnvFilter::new(level)),
        )
        .with_target(false)
        // It would report a broken stderr to stderr and panic: a reader that went away must not end the rebuilder.
        .log_internal_errors(false)
        .init();
}

impl From<RunArgs> for RunOptions {
    fn from(args: RunArgs) -> Self {
        let workers = args.workers.map_or_else(
            || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            usize::from,
        );
        // Caps are given for the whole process; each worker gets its share.
        let share = |bytes: usize| bytes / workers;
        RunOptions {
            listen: args.listen,
            workers,
            admin: AdminOptions { listen: args.admin },
            drain_timeout: args.drain_timeout,
            receive: ReceiveOptions {
                by: match args.receive {
                    ReceiveArg::Auto => Receive::Auto,
                    ReceiveArg::Ring => Receive::Ring,
                    ReceiveArg::Socket => Receive::Socket,
                },
                ring: RingOptions {
                    bytes: args.ring_bytes,
                    ..RingOptions::default()
                },
                udp: UdpOptions {
                    receive_buffer: args.receive_buffer,
                },
            },
            pipeline: PipelineOptions {
                decode: args.frames.into(),
                stream: StreamOptions {
                    flow_scope: match args.flow_scope {
                        Scope::Global => FlowScope::Global,
                        Scope::Vni => FlowScope::Vni,
                    },
                    overlap: args.overlap.policy(),
                    total_cap: share(args.held_bytes) / 2,
                    ..StreamOptions::default()
                },
                http: HttpOptions {
                    max_held: share(args.held_bytes) / 2,
                    trust: args.client.trust,
                    proxy_from: args.client.proxy_from,
                    hop_persist: matches!(args.hop_by_hop, Hop::Persist),
                    ..HttpOptions::default()
                },
            },
            forward: ForwardOptions {
                connections: usize::from(args.connections),
                queue_bytes: share(args.queue_bytes),
                inflight_bytes: share(args.inflight_bytes),
                answer_timeout: args.answer_timeout,
                xff: match args.xff {
                    Xff::Line => XffStyle::Line,
                    Xff::Append => XffStyle::Append,
                },
                hop_by_hop: match args.hop_by_hop {
                    Hop::Persist => HopByHop::Persist,
                    Hop::Keep => HopByHop::Keep,
                },
                ca_file: args.forward_ca,
                target: args.forward,
                ..ForwardOptions::default()
            },
            selection: RequestSelection {
                incomplete: match args.incomplete {
                    IncompleteArg::Forward => Incomplete::Forward,
                    IncompleteArg::Drop => Incomplete::Drop,
                },
                health_checks_from: args.ignore_health_checks,
            },
        }
    }
}

fn inspect(args: InspectArgs) -> ExitCode {
    let format = match (args.json, args.summary) {
        (true, _) => Format::Json,
        (_, true) => Format::Summary,
        _ => Format::Text,
    };
    let options = PipelineOptions {
        decode: args.frames.into(),
        stream: StreamOptions {
            overlap: args.overlap.policy(),
            ..StreamOptions::default()
        },
        http: HttpOptions {
            trust: args.client.trust,
            proxy_from: args.client.proxy_from,
            ..HttpOptions::default()
        },
    };
    let mut out = BufWriter::new(io::stdout().lock());
    match inspect::run(&args.file, format, options, &mut out, complain) {
        // Whoever read us has seen enough.
        Err(InspectError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        result => finish(result),
    }
}

fn replay(args: ReplayArgs) -> ExitCode {
    let options = ReplayOptions {
        file: args.file,
        to: args.to,
        pps: args.pps,
        loops: args.loops,
        vni: args.vni,
    };
    finish(replay::run(&options).map(|report| {
        let _ = writeln!(
            io::stdout(),
            "{} packets sent in {:.3} s",
            report.sent,
            report.elapsed.as_secs_f64()
        );
        for (reason, count) in report.skipped {
            let _ = writeln!(io::stdout(), "  skipped {reason:<14} {count}");
        }
    }))
}

fn parse_vni(text: &str) -> Result<Vni, String> {
    match text.parse::<u32>() {
        Ok(n) if n < 1 << 24 => Ok(Vni(n)),
        _ => Err("a VNI is a number from 0 to 16777215".into()),
    }
}

fn parse_ring(text: &str) -> Result<usize, String> {
    let bytes = parse_bytes(text)?;
    if (LEAST_RING..=MOST_RING).contains(&bytes) {
        Ok(bytes)
    } else {
        Err("a ring has 1M to 64G".into())
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(first..=last),
        _ => Err("a port is a number from 1 to 65535, or a range such as 8000-8100".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_is_also_an_environment_variable() {
        let cli = Cli::command();
        let run = cli.find_subcommand("run").unwrap();
        for arg in run.get_arguments().filter(|a| a.get_id() != "help") {
            let flag = arg.get_long().unwrap().to_uppercase().replace('-', "_");
            assert_eq!(
                arg.get_env().unwrap().to_str().unwrap(),
                format!("REBUILDER_{flag}")
            );
        }
    }

    #[test]
    fn the_readme_names_every_flag_of_run() {
        let readme = include_str!("../README.md");
        let cli = Cli::command();
        let run = cli.find_subcommand("run").unwrap();
        for arg in run.get_arguments().filter(|a| a.get_id() != "help") {
            let flag = arg.get_long().unwrap();
            assert!(
                readme.contains(&format!("| `--{flag} ")),
                "README.md: no row for --{flag}"
            );
        }
    }

    #[test]
    fn ports_are_numbers_or_ranges() {
        assert_eq!(parse_ports("80"), Ok(80..=80));
        assert_eq!(parse_ports("8000-8100"), Ok(8000..=8100));
        for wrong in [
            "", "0", "0-5", "65536", "9-8", "-", "80-", "-80", "a", "1-2-3",
        ] {
            assert!(parse_ports(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_usage_error_is_one_line() {
        let Err(e) = Cli::try_parse_from(["rebuilder", "inspect"]) else {
            panic!("accepted")
        };
        let line = usage_line(&e);
        assert!(!line.contains('\n') && line.contains("<FILE>"), "{line}");
    }
}
