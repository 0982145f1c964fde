//! What AWS does between a mirror session and the copies: programs real kernel mirroring for exactly the interfaces
//! that have a session, with the session's VNI, filter rules and packet length.

mod program;
pub mod session;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::netns::Namespace;
use crate::network::{Port, Tunnel, Vpc};
use crate::sys;
use session::Session;

/// The mirroring that is programmed now.
#[derive(Debug, Default)]
pub struct Fabric {
    live: BTreeMap<String, Live>,
    /// What `tc` was told, by port.
    programs: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Live {
    session: Session,
    tunnel: Tunnel,
}

/// What a pass of [`Fabric::converge`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Sessions that mirror from now on.
    pub begun: Vec<String>,
    /// Sessions that no longer do.
    pub ended: Vec<String>,
}

impl Fabric {
    /// Makes the kernel mirror what `sessions` say, for the interfaces in `ports` (interface id to VPC side). Sessions
    /// of other interfaces, and those whose target is not the load balancer, are left out.
    ///
    /// # Errors
    /// What `ip`, `tc` or the kernel say. What was done until then stands; the next pass goes on from there.
    pub fn converge(
        &mut self,
        vpc: &Vpc,
        ports: &BTreeMap<String, Port>,
        sessions: &[Session],
    ) -> anyhow::Result<Changes> {
        let mut changes = Changes::default();
        let wanted: BTreeMap<&str, &Session> = sessions
            .iter()
            .filter(|session| session.target.nlb_arn.is_some() && ports.contains_key(&session.eni))
            .map(|session| (session.id.as_str(), session))
            .collect();

        for session in wanted.values() {
            match self.live.get_mut(&session.id) {
                Some(live) if same_tunnel(&live.session, session) => {
                    live.session = (*session).clone();
                }
                _ => {
                    let Some(port) = ports.get(&session.eni) else {
                        continue;
                    };
                    // The old tunnel goes first: the new one has its name.
                    self.end(vpc, &session.id)?;
                    let tunnel = vpc
                        .tunnel(&session.id, &port.primary, session.vni)
                        .with_context(|| format!("session {}", session.id))?;
                    if let Some(length) = session.packet_length {
                        limit_packet_length(vpc.bridge(), &tunnel.device, length).with_context(
                            || format!("session {}: packet length {length}", session.id),
                        )?;
                    }
                    self.live.insert(
                        session.id.clone(),
                        Live {
                            session: (*session).clone(),
                            tunnel,
                        },
                    );
                    changes.begun.push(session.id.clone());
                }
            }
        }
        let gone: Vec<String> = self
            .live
            .keys()
            .filter(|id| !wanted.contains_key(id.as_str()))
            .cloned()
            .collect();
        let keep = |id: &str| !gone.iter().any(|gone| gone == id);
        self.program(vpc, ports, keep)?;
        for id in gone {
            self.live.remove(&id);
            changes.ended.push(id);
        }
        Ok(changes)
    }

    /// Packets sent to the rebuilder for a session so far.
    ///
    /// # Errors
    /// Where the session is not mirrored.
    pub fn mirrored(&self, vpc: &Vpc, session: &str) -> anyhow::Result<u64> {
        let live = self
            .live
            .get(session)
            .with_context(|| format!("session {session} is not mirrored"))?;
        Ok(vpc.bridge().counters(&live.tunnel.device)?.sent)
    }

    fn end(&mut self, vpc: &Vpc, id: &str) -> anyhow::Result<()> {
        let Some(live) = self.live.remove(id) else {
            return Ok(());
        };
        // Its device's removal removes the filters that name it, so the port's program is written anew.
        let port = self.programs.keys().find(|port| {
            self.programs
                .get(*port)
                .is_some_and(|text| text.contains(&live.tunnel.device))
        });
        if let Some(port) = port.cloned() {
            self.programs.remove(&port);
            flush(vpc.bridge(), &port);
        }
        Ok(())
    }

    /// Brings every port's program up to date. Only a port whose program has changed is touched.
    fn program(
        &mut self,
        vpc: &Vpc,
        ports: &BTreeMap<String, Port>,
        keep: impl Fn(&str) -> bool,
    ) -> anyhow::Result<()> {
        let existing = |device: &String| ports.values().any(|port| port.device == *device);
        self.programs.retain(|device, _| existing(device));
        for (eni, port) in ports {
            let sessions: Vec<(&Session, &str)> = self
                .live
                .values()
                .filter(|live| live.session.eni == *eni && keep(&live.session.id))
                .map(|live| (&live.session, live.tunnel.device.as_str()))
                .collect();
            let text = program::batch(&port.device, &sessions)?;
            if self.programs.get(&port.device).map_or("", String::as_str) == text {
                continue;
            }
            self.programs.remove(&port.device);
            flush(vpc.bridge(), &port.device);
            if text.is_empty() {
                continue;
            }
            vpc.bridge()
                .tc(&format!("qdisc add dev {} clsact", port.device))?;
            tc_batch(vpc.bridge(), &text).with_context(|| format!("mirroring {eni}"))?;
            self.programs.insert(port.device.clone(), text);
        }
        Ok(())
    }
}

/// Whether the tunnel of one serves the other.
fn same_tunnel(a: &Session, b: &Session) -> bool {
    (&a.eni, a.vni, a.packet_length) == (&b.eni, b.vni, b.packet_length)
}

/// Removes every filter of a port. One that has none, or is gone, is as it should be.
fn flush(namespace: &Namespace, port: &str) {
    let _ = namespace.tc(&format!("qdisc del dev {port} clsact"));
}

fn tc_batch(namespace: &Namespace, text: &str) -> anyhow::Result<()> {
    let mut tc = Command::new("tc")
        .args(["-n", namespace.name(), "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = tc.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let out = tc.wait_with_output()?;
    if !out.status.success() {
        bail!(
            "tc: {}\n{text}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}

/// Has the kernel cut every frame sent to `device` to `length` bytes, before it is encapsulated: an eBPF classifier
/// on the device's own way out. `tc` has no action for this.
fn limit_packet_length(namespace: &Namespace, device: &str, length: u32) -> anyhow::Result<()> {
    // Nothing longer comes out of an interface, and then the lab does not depend on the kernel's eBPF.
    if u64::from(length) >= ETHERNET_HEADER + link_number(namespace, "vpc", "mtu")? {
        return Ok(());
    }
    let index = u32::try_from(link_number(namespace, device, "ifindex")?)?;
    namespace.tc(&format!("qdisc add dev {device} clsact"))?;
    let program = sys::load_classifier(&cut_to(length)).context("loading the eBPF program")?;
    namespace.run(|| sys::attach_classifier_to_egress(index, program.as_fd()))??;
    Ok(())
}

const ETHERNET_HEADER: u64 = 14;

fn link_number(namespace: &Namespace, device: &str, field: &str) -> anyhow::Result<u64> {
    let links: serde_json::Value =
        serde_json::from_str(&namespace.ip(&format!("-j link show dev {device}"))?)?;
    let number = links
        .pointer(&format!("/0/{field}"))
        .and_then(serde_json::Value::as_u64);
    number.with_context(|| format!("{device}: no {field}"))
}

/// `if (skb->len > length) bpf_skb_change_tail(skb, length, 0); return TC_ACT_UNSPEC;`, as `struct bpf_insn`
/// (linux/bpf.h: opcode, destination register, source register, offset, immediate).
fn cut_to(length: u32) -> [u64; 7] {
    const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
    const JUMP_IF_NOT_GREATER: u8 = 0xb5; // BPF_JMP | BPF_JLE | BPF_K
    const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const CHANGE_TAIL: u32 = 38;
    const TC_ACT_UNSPEC: u32 = u32::MAX;
    let instruction = |op: u8, destination: u8, source: u8, offset: u16, immediate: u32| {
        u64::from(op)
            | u64::from(destination) << 8
            | u64::from(source) << 12
            | u64::from(offset) << 16
            | u64::from(immediate) << 32
    };
    [
        instruction(LOAD_WORD, 2, 1, 0, 0), // r2 = skb->len, the first field of __sk_buff; r1 is the context
        instruction(JUMP_IF_NOT_GREATER, 2, 0, 3, length),
        instruction(MOVE, 2, 0, 0, length),
        instruction(MOVE, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, CHANGE_TAIL),
        instruction(MOVE, 0, 0, 0, TC_ACT_UNSPEC),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}
