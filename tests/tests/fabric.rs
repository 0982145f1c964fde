//! The kernel mirrors exactly what the sessions say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use lab::fabric::session::{Session, http_session};
use lab::fabric::{Changes, Fabric};
use lab::network::{Host, Interface, Options, Port, Vpc};
use lab::process::{Process, wait_for};

const ENI: &str = "eni-0a";
const OTHER: &str = "eni-0b";

/// A client, an instance with two interfaces that answers on port 80, and a socket where the rebuilder would be.
struct Bench {
    vpc: Vpc,
    client: Host,
    ports: BTreeMap<String, Port>,
    copies: Receiver<Copy>,
    fabric: Fabric,
    _web: Process,
    instance: Host,
    _rebuilder: Host,
}

/// One mirrored packet as it arrives.
struct Copy {
    source_ip: String,
    source_port: u16,
    vni: u32,
    frame: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let vpc = Vpc::new(Options::default()).unwrap();
        let client = vpc
            .host(
                "client",
                &[Interface::new(
                    "client",
                    &["172.31.240.10", "2001:db8:31::10"],
                )],
            )
            .unwrap();
        let instance = vpc
            .host(
                "instance",
                &[
                    Interface::new(ENI, &["172.31.0.10", "2001:db8:31::a"]),
                    Interface::new(OTHER, &["172.31.0.11"]),
                ],
            )
            .unwrap();
        let rebuilder = vpc
            .host(
                "rebuilder",
                &[Interface::new("rebuilder", &["172.31.240.20"])],
            )
            .unwrap();
        vpc.behind_the_load_balancer(&rebuilder).unwrap();
        let copies = listen(&rebuilder);
        let configuration = vpc.directory().join("web.conf");
        let directory = vpc.directory().display();
        std::fs::write(
            &configuration,
            format!(
                "daemon off; pid {directory}/web.pid; error_log {directory}/web-error.log; user root;\n\
                 events {{}} http {{ access_log off; server {{ listen 80; listen 81; listen [::]:80;\n\
                 location / {{ return 200 \"{}\"; }} }} }}",
                "x".repeat(3000)
            ),
        )
        .unwrap();
        let mut command = instance.namespace.command("nginx");
        command.arg("-c").arg(&configuration);
        let web = Process::start("web", command, vpc.directory()).unwrap();
        let bench = Self {
            ports: instance.ports.iter().cloned().collect(),
            vpc,
            client,
            copies,
            fabric: Fabric::default(),
            _web: web,
            instance,
            _rebuilder: rebuilder,
        };
        wait_for("nginx", Duration::from_secs(10), || {
            Ok(bench
                .client
                .namespace
                .command("curl")
                .args(["-sf", "http://172.31.0.10/"])
                .output()?
                .status
                .success()
                .then_some(()))
        })
        .unwrap();
        bench
    }

    fn converge(&mut self, sessions: &[Session]) -> Changes {
        self.fabric
            .converge(&self.vpc, &self.ports, sessions)
            .unwrap()
    }

    fn get(&self, url: &str) {
        let out = self
            .client
            .namespace
            .command("curl")
            .args(["-sf", url])
            .output()
            .unwrap();
        assert!(out.status.success(), "{url}: {out:?}");
    }

    /// Everything that has arrived, once nothing more does for 200 ms.
    fn copies(&self) -> Vec<Copy> {
        let mut all = Vec::new();
        while let Ok(copy) = self.copies.recv_timeout(Duration::from_millis(200)) {
            all.push(copy);
        }
        all
    }
}

fn listen(host: &Host) -> Receiver<Copy> {
    let (send, receive) = mpsc::channel();
    let socket = host
        .namespace
        .run(|| UdpSocket::bind("0.0.0.0:4789"))
        .unwrap()
        .unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            assert!(length > 8 && buffer[0] == 8, "a VXLAN header with a VNI");
            let copy = Copy {
                source_ip: from.ip().to_string(),
                source_port: from.port(),
                vni: u32::from_be_bytes([0, buffer[4], buffer[5], buffer[6]]),
                frame: buffer[8..length].to_vec(),
            };
            if send.send(copy).is_err() {
                break;
            }
        }
    });
    receive
}

/// What tcpdump in the instance sees coming in for port 80 while `traffic` runs.
fn captured_at_the_instance(
    bench: &Bench,
    traffic: impl FnOnce(&Bench),
) -> io::Result<Vec<Vec<u8>>> {
    let file = bench.vpc.directory().join("instance.pcap");
    let mut command = bench.instance.namespace.command("tcpdump");
    command
        .args([
            "-i",
            "eth0",
            "-Q",
            "in",
            "-U",
            "-s",
            "0",
            "--immediate-mode",
            "-w",
        ])
        .arg(&file)
        .arg("tcp dst port 80");
    let mut tcpdump = Process::start("tcpdump", command, bench.vpc.directory()).unwrap();
    wait_for("tcpdump", Duration::from_secs(10), || {
        Ok(tcpdump.output().contains("listening on").then_some(()))
    })
    .unwrap();
    traffic(bench);
    std::thread::sleep(Duration::from_millis(500));
    tcpdump.signal(2);
    tcpdump.wait(Duration::from_secs(10)).unwrap();
    let bytes = std::fs::read(file)?;
    let mut frames = Vec::new();
    let mut rest = &bytes[24..];
    while rest.len() >= 16 {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        frames.push(rest[16..16 + length].to_vec());
        rest = &rest[16 + length..];
    }
    Ok(frames)
}

#[test]
fn every_frame_to_the_port_is_copied_once_and_byte_for_byte() {
    if lab::skip::no_lab("every_frame_to_the_port_is_copied_once_and_byte_for_byte") {
        return;
    }
    let mut bench = Bench::new();
    let changes = bench.converge(&[http_session("tms-1", ENI, 1, &[80])]);
    assert_eq!(
        changes,
        Changes {
            begun: vec!["tms-1".to_owned()],
            ended: vec![]
        }
    );
    assert_eq!(
        bench.converge(&[http_session("tms-1", ENI, 1, &[80])]),
        Changes::default(),
        "a second pass"
    );

    let mut frames = captured_at_the_instance(&bench, |bench| {
        for _ in 0..5 {
            bench.get("http://172.31.0.10/");
            bench.get("http://[2001:db8:31::a]/");
        }
        // Many segments: they must be mirrored as the wire carries them, not as the sender's kernel built them.
        let body = bench.vpc.directory().join("body");
        std::fs::write(&body, vec![b'x'; 200_000]).unwrap();
        let file = format!("@{}", body.display());
        let out = bench
            .client
            .namespace
            .command("curl")
            .args(["-s", "--data-binary", &file, "http://172.31.0.10/"])
            .output();
        assert!(out.unwrap().status.success());
        // Neither the other port nor the other interface has a session.
        bench.get("http://172.31.0.10:81/");
        bench.get("http://172.31.0.11/");
    })
    .unwrap();
    let copies = bench.copies();
    assert!(
        frames.len() > 150,
        "{} frames {:?}",
        frames.len(),
        frames.iter().map(Vec::len).collect::<Vec<_>>()
    );
    assert_eq!(
        bench.fabric.mirrored(&bench.vpc, "tms-1").unwrap(),
        frames.len() as u64
    );
    for copy in &copies {
        assert_eq!((copy.source_ip.as_str(), copy.vni), ("172.31.0.10", 4789));
        assert!(
            (65408..=65525).contains(&copy.source_port),
            "outer source port {}",
            copy.source_port
        );
        assert!(
            copy.frame.len() <= 1514,
            "a frame of {} bytes",
            copy.frame.len()
        );
    }
    let mut copied: Vec<Vec<u8>> = copies.into_iter().map(|copy| copy.frame).collect();
    copied.sort();
    frames.sort();
    assert!(
        copied == frames,
        "{} copies of {} frames, or others",
        copied.len(),
        frames.len()
    );
}

#[test]
fn when_the_session_is_deleted_the_copy_stops() {
    if lab::skip::no_lab("when_the_session_is_deleted_the_copy_stops") {
        return;
    }
    let mut bench = Bench::new();
    let (kept, deleted) = (
        http_session("tms-1", ENI, 1, &[80]),
        http_session("tms-2", OTHER, 1, &[80]),
    );
    bench.converge(&[kept.clone(), deleted]);
    bench.get("http://172.31.0.11/");
    assert!(!bench.copies().is_empty());

    let changes = bench.converge(std::slice::from_ref(&kept));
    assert_eq!(
        changes,
        Changes {
            begun: vec![],
            ended: vec!["tms-2".to_owned()]
        }
    );
    bench.get("http://172.31.0.11/");
    assert_eq!(bench.copies().len(), 0);
    bench.get("http://172.31.0.10/");
    assert!(!bench.copies().is_empty(), "the other session goes on");
    assert!(bench.fabric.mirrored(&bench.vpc, "tms-2").is_err());
}

#[test]
fn a_frame_longer_than_the_packet_length_loses_its_tail_and_nothing_else() {
    if lab::skip::no_lab("a_frame_longer_than_the_packet_length_loses_its_tail_and_nothing_else") {
        return;
    }
    let mut bench = Bench::new();
    let mut session = http_session("tms-1", ENI, 1, &[80]);
    session.packet_length = Some(100);
    bench.converge(&[session]);
    let mut expected = captured_at_the_instance(&bench, |bench| {
        bench.get(&format!("http://172.31.0.10/{}", "long".repeat(100)));
    })
    .unwrap();
    assert!(
        expected.iter().any(|frame| frame.len() > 400)
            && expected.iter().any(|frame| frame.len() < 100)
    );
    for frame in &mut expected {
        frame.truncate(100);
    }
    let mut copied: Vec<Vec<u8>> = bench.copies().into_iter().map(|copy| copy.frame).collect();
    copied.sort();
    expected.sort();
    assert_eq!(copied, expected);
}

#[test]
fn the_session_with_the_lowest_number_takes_the_packet() {
    if lab::skip::no_lab("the_session_with_the_lowest_number_takes_the_packet") {
        return;
    }
    let mut bench = Bench::new();
    let (mut first, mut second) = (
        http_session("tms-1", ENI, 5, &[80]),
        http_session("tms-2", ENI, 9, &[80, 81]),
    );
    (first.vni, second.vni) = (1, 2);
    bench.converge(&[second, first]);
    bench.get("http://172.31.0.10:80/");
    assert!(bench.copies().iter().all(|copy| copy.vni == 1));
    bench.get("http://172.31.0.10:81/");
    let copies = bench.copies();
    assert!(!copies.is_empty() && copies.iter().all(|copy| copy.vni == 2));
}

#[test]
fn a_lab_that_is_dropped_leaves_nothing() {
    if lab::skip::no_lab("a_lab_that_is_dropped_leaves_nothing") {
        return;
    }
    let vpc = Vpc::new(Options::default()).unwrap();
    let host = vpc
        .host("host", &[Interface::new("host", &["172.31.1.1"])])
        .unwrap();
    let sleeper = host.namespace.command("sleep").arg("1000").spawn().unwrap();
    let pid = sleeper.id();
    let (name, bridge) = (
        host.namespace.name().to_owned(),
        vpc.bridge().name().to_owned(),
    );
    let directory = vpc.directory().to_owned();
    wait_for("the process inside", Duration::from_secs(5), || {
        let pids = Command::new("ip").args(["netns", "pids", &name]).output()?;
        Ok(String::from_utf8_lossy(&pids.stdout)
            .split_whitespace()
            .any(|inside| inside == pid.to_string())
            .then_some(()))
    })
    .unwrap();
    drop(host);
    drop(vpc);
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        !listed.contains(&name) && !listed.contains(&bridge),
        "{listed}"
    );
    assert!(!directory.exists());
    let begun = Instant::now();
    let mut sleeper = sleeper;
    while sleeper.try_wait().unwrap().is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "process {pid} lives"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
