//! The WAF: nginx with `ModSecurity` and the OWASP core rule set, all from Debian's packages. It only detects, as a WAF
//! behind a mirror does: every request that nginx accepts is inspected, logged and passed on to an upstream.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::network::Host;
use crate::nginx::{Configuration, Entry, Nginx, lines_of};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_http_modsecurity_module.so";
const RULES: &str = "/usr/share/modsecurity-crs/rules";
const RULES_SETUP: &str = "/etc/modsecurity/crs/crs-setup.conf";

/// The core rule set's verdict: the anomaly score of a request is above the threshold.
const INBOUND_ANOMALY_SCORE_EXCEEDED: &str = "949110";

/// What it does without inspecting, so that the scores are those of the core rule set alone: read bodies, whole, with
/// the parser that the content type asks for (as in the `modsecurity.conf-recommended` of the library).
const ENGINE: &str = r#"
SecRuleEngine DetectionOnly
SecRequestBodyAccess On
SecRequestBodyLimit 16777216
SecRequestBodyNoFilesLimit 16777216
SecRequestBodyLimitAction ProcessPartial
SecResponseBodyAccess Off
SecRule REQUEST_HEADERS:Content-Type "(?:application(?:/soap\+|/)|text/)xml" "id:200000,phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=XML"
SecRule REQUEST_HEADERS:Content-Type "application/json" "id:200001,phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=JSON"
SecAuditEngine On
SecAuditLogRelevantStatus ".*"
SecAuditLogParts ABHZ
SecAuditLogType Serial
SecAuditLogFormat JSON
"#;

/// The running analyser.
#[derive(Debug)]
pub struct Analyser {
    nginx: Nginx,
    audit_log: PathBuf,
}

/// One request in `ModSecurity`'s audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The request's method.
    pub method: String,
    /// Its target as `ModSecurity` saw it.
    pub target: String,
    /// Value of the first `X-Real-IP`: the client as the rebuilder says.
    pub client: Option<String>,
    /// Status of the answer.
    pub status: u16,
    /// Numbers of the rules that matched, in order, each once.
    pub rules: Vec<String>,
}

impl Inspected {
    /// Whether the core rule set holds the request for an attack.
    #[must_use]
    pub fn is_flagged(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| rule == INBOUND_ANOMALY_SCORE_EXCEEDED)
    }
}

impl Analyser {
    /// Starts it on port 80 of `host`. What it accepts it answers by the beginning of the target: `/302/`, `/404/` and
    /// `/503/` with that status, all else with 200; the header `X-Echo` holds the target.
    ///
    /// # Errors
    /// Where a package is missing or nginx does not start.
    pub fn start(host: &Host, directory: &Path) -> anyhow::Result<Self> {
        let home = directory.join("analyser");
        fs::create_dir_all(&home)?;
        let audit_log = home.join("audit.log");
        // This version of the library knows no IncludeOptional and no wildcard.
        let mut rules: Vec<PathBuf> = fs::read_dir(RULES)
            .with_context(|| format!("{RULES}: install the package modsecurity-crs"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "conf")
            })
            .collect();
        if rules.is_empty() {
            bail!("{RULES} holds no rules: install the package modsecurity-crs");
        }
        rules.sort();
        let mut text = format!(
            "{ENGINE}SecAuditLog {}\nInclude {RULES_SETUP}\n",
            audit_log.display()
        );
        for rule in rules {
            writeln!(text, "Include {}", rule.display())?;
        }
        let engine = home.join("modsecurity.conf");
        fs::write(&engine, text)?;
        // `return` would answer before the module has seen the body, a file would refuse POST: so there is an upstream.
        let http = format!(
            "client_max_body_size 2m; keepalive_requests 100000; keepalive_timeout 600s;\n\
             server {{ listen 80; modsecurity on; modsecurity_rules_file {engine};\n\
             location / {{ proxy_pass http://unix:{home}/upstream; proxy_set_header Host $http_host; }} }}\n\
             server {{ listen unix:{home}/upstream; access_log off; client_max_body_size 16m;\n\
             add_header X-Echo $request_uri always; location / {{ return 200 \"ok\\n\"; }}\n\
             location /302/ {{ return 302 /; }} location /404/ {{ return 404; }} location /503/ {{ return 503; }} }}",
            engine = engine.display(),
            home = home.display(),
        );
        // A socket file of an nginx that was stopped before would be in the way.
        let _ = fs::remove_file(home.join("upstream"));
        let main = format!("load_module {MODULE};");
        let configuration = Configuration {
            main: &main,
            http: &http,
        };
        let listens = SocketAddr::from(([127, 0, 0, 1], 80));
        let nginx = Nginx::start(host, "analyser", directory, &configuration, listens)?;
        Ok(Self { nginx, audit_log })
    }

    /// What nginx itself logged: every request, those that it refused before any module looked (400, 413, 501) too.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub fn access_log(&self) -> anyhow::Result<Vec<Entry>> {
        self.nginx.access_log()
    }

    /// What `ModSecurity` inspected.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub fn audit_log(&self) -> anyhow::Result<Vec<Inspected>> {
        lines_of(&self.audit_log)?
            .iter()
            .map(|line| parse(line))
            .collect()
    }
}

#[derive(Deserialize)]
struct Line {
    transaction: Transaction,
}

#[derive(Deserialize)]
struct Transaction {
    request: Request,
    #[serde(default)]
    response: Response,
    #[serde(default)]
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Request {
    method: String,
    uri: String,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, serde_json::Value>,
}

#[derive(Default, Deserialize)]
struct Response {
    #[serde(default)]
    http_code: u16,
}

#[derive(Deserialize)]
struct Message {
    details: Details,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    rule_id: String,
}

fn parse(line: &str) -> anyhow::Result<Inspected> {
    let Line { transaction } =
        serde_json::from_str(line).with_context(|| format!("audit log: {line}"))?;
    let mut rules: Vec<String> = Vec::new();
    for message in transaction.messages {
        if !rules.contains(&message.details.rule_id) {
            rules.push(message.details.rule_id);
        }
    }
    let client = transaction
        .request
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("x-real-ip"))
        .and_then(|(_, value)| value.as_str())
        .map(ToOwned::to_owned);
    Ok(Inspected {
        method: transaction.request.method,
        target: transaction.request.uri,
        client,
        status: transaction.response.http_code,
        rules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_line_gives_the_rules_that_matched() {
        // Shortened from what the library (3.0.9) writes.
        let line = r#"{"transaction":{"client_ip":"127.0.0.1","request":{"method":"GET","http_version":1.1,"uri":"/?f=../etc/passwd","headers":{"Host":"a","X-Real-IP":"10.0.0.1"}},"response":{"http_code":200},"messages":[{"message":"m","details":{"ruleId":"930100"}},{"message":"m","details":{"ruleId":"930100"}},{"message":"m","details":{"ruleId":"949110"}}]}}"#;
        let inspected = parse(line).unwrap();
        assert_eq!(inspected.rules, ["930100", "949110"]);
        assert!(inspected.is_flagged());
        assert_eq!(inspected.client.as_deref(), Some("10.0.0.1"));
        assert_eq!(
            (inspected.status, inspected.target.as_str()),
            (200, "/?f=../etc/passwd")
        );
    }
}
