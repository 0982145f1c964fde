//! Text to [`Selection`].

use super::pattern::needs_quotes;
use super::{Kind, Pattern, Selection, Term, selects};
use crate::id::{EniId, InstanceId};
use crate::interface::BalancerKind;
use std::iter::Peekable;
use std::str::Chars;

/// Longest expression in bytes. All environment variables of a function share 4 KB.
pub const MAX_BYTES: usize = 4096;
/// Most terms in an expression.
pub const MAX_TERMS: usize = 200;

const KINDS: &str = "tag:, vpc:, subnet:, eni:, instance:, asg:, eks:, ecs:, elb: or interface:";

/// Why an expression is refused. The message names the place and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {what}; {remedy}")]
pub struct ParseError {
    /// Where, in characters, from 1.
    pub column: usize,
    /// What stands there.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    /// Characters taken so far.
    taken: usize,
    terms: usize,
}

/// Parses a whole expression.
pub(super) fn parse(text: &str) -> Result<Selection, ParseError> {
    if text.len() > MAX_BYTES {
        let what = format!("the expression is {} bytes long", text.len());
        return Err(error(
            1,
            what,
            format!("at most {MAX_BYTES} are taken: use `*` to shorten it"),
        ));
    }
    let mut parser = Parser {
        rest: text.chars().peekable(),
        taken: 0,
        terms: 0,
    };
    let mut groups = Vec::new();
    loop {
        let group = parser.group()?;
        groups.push(group);
        match parser.next() {
            None => break,
            Some(',') => {}
            Some(c) => return Err(parser.unexpected(c)),
        }
    }
    if groups.iter().flatten().all(|t| t.negated) {
        let what = "there are only `!` terms, so nothing would be selected".to_owned();
        return Err(error(
            1,
            what,
            "add what to select before them, for example `vpc:vpc-…, !tag:env=dev`".to_owned(),
        ));
    }
    Ok(Selection { groups })
}

fn error(column: usize, what: String, remedy: String) -> ParseError {
    ParseError {
        column,
        what,
        remedy,
    }
}

impl Parser<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.next();
        self.taken += usize::from(c.is_some());
        c
    }

    fn skip_blanks(&mut self) {
        while self.rest.peek().is_some_and(|c| c.is_whitespace()) {
            self.next();
        }
    }

    /// The column of the next character.
    fn column(&self) -> usize {
        self.taken + 1
    }

    /// The error at a character that was just taken.
    fn unexpected(&self, c: char) -> ParseError {
        let remedy =
            "join terms with `&` (and) or `,` (or), and quote a value that holds such a character";
        error(
            self.taken,
            format!("unexpected `{}`", c.escape_debug()),
            remedy.to_owned(),
        )
    }

    fn group(&mut self) -> Result<Vec<Term>, ParseError> {
        self.skip_blanks();
        let start = self.column();
        let mut group = vec![self.term()?];
        loop {
            self.skip_blanks();
            if self.rest.peek() != Some(&'&') {
                break;
            }
            self.next();
            group.push(self.term()?);
        }
        // A group of `!` terms alone is fine beside others; one that would restrict nothing is a slip.
        if !selects(&group) && group.iter().any(|t| !t.negated) {
            let what = "`interface:` restricts what other terms select, and here it stands alone"
                .to_owned();
            let remedy =
                "join it with `&`, for example `tag:Mirror=true & interface:primary`".to_owned();
            return Err(error(start, what, remedy));
        }
        Ok(group)
    }

    fn term(&mut self) -> Result<Term, ParseError> {
        self.skip_blanks();
        let start = self.column();
        self.terms += 1;
        if self.terms > MAX_TERMS {
            let remedy = "use `*`, or a tag of its own for what is to be mirrored".to_owned();
            return Err(error(start, format!("more than {MAX_TERMS} terms"), remedy));
        }
        let negated = self.rest.next_if_eq(&'!').is_some();
        self.taken += usize::from(negated);
        if negated {
            self.skip_blanks();
        }
        let kind = self.kind(negated)?;
        Ok(Term { negated, kind })
    }

    fn kind(&mut self, negated: bool) -> Result<Kind, ParseError> {
        let start = self.column();
        let mut name = String::new();
        while let Some(c) = self
            .rest
            .next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        {
            self.taken += 1;
            name.push(c);
        }
        if self.rest.next_if_eq(&':').is_none() {
            let what = match (name.as_str(), self.rest.peek()) {
                ("", None) => "a term is missing".to_owned(),
                ("", Some(c)) => format!("unexpected `{}` where a term begins", c.escape_debug()),
                (name, _) => format!("`{name}` is not a term"),
            };
            return Err(error(start, what, format!("a term begins with {KINDS}")));
        }
        self.taken += 1;
        let value_at = self.column();
        match name.as_str() {
            "tag" => self.tag(),
            "vpc" => Ok(Kind::Vpc(self.id_pattern("vpc-")?)),
            "subnet" => Ok(Kind::Subnet(self.id_pattern("subnet-")?)),
            "eni" => Ok(Kind::Eni(self.id_pattern(EniId::PREFIX)?)),
            "instance" => Ok(Kind::Instance(self.id_pattern(InstanceId::PREFIX)?)),
            "asg" => Ok(Kind::Asg(
                self.pattern(|_| false, "the name of an Auto Scaling group")?,
            )),
            "eks" => self.eks(),
            "interface" => {
                let word = self.pattern(|_| false, "`primary` or `all`")?;
                match (word.as_literal(), negated) {
                    (Some("primary"), _) => Ok(Kind::Primary),
                    (Some("all"), false) => Ok(Kind::AnyInterface),
                    (Some("all"), true) => {
                        let what = "`!interface:all` would exclude everything".to_owned();
                        Err(error(start, what, "leave it out".to_owned()))
                    }
                    _ => {
                        let remedy = "write `interface:primary` or `interface:all`".to_owned();
                        Err(error(
                            value_at,
                            format!("no such interface: {word}"),
                            remedy,
                        ))
                    }
                }
            }
            "ecs" => Ok(Kind::Ecs(
                self.pattern(|c| c == '/', "the name of an ECS cluster")?,
            )),
            "elb" => self.elb(value_at),
            _ => Err(error(
                start,
                format!("`{name}:` is not a term"),
                format!("a term begins with {KINDS}"),
            )),
        }
    }

    fn tag(&mut self) -> Result<Kind, ParseError> {
        let at = self.column();
        let key = self.pattern(|c| c == '=', "the key of a tag")?;
        let Some(key) = key.as_literal().map(str::to_owned) else {
            let what = "the key of a tag cannot hold `*`".to_owned();
            return Err(error(
                at,
                what,
                "write the whole key, or `\\*` in quotes for a star itself".to_owned(),
            ));
        };
        if key.is_empty() {
            let remedy = "write `tag:KEY=VALUE`".to_owned();
            return Err(error(at, "the key of the tag is empty".to_owned(), remedy));
        }
        if self.rest.next_if_eq(&'=').is_none() {
            return Ok(Kind::Tag(key, None));
        }
        self.taken += 1;
        let value = self.pattern(
            |_| false,
            "the value of a tag (an empty one is written \"\")",
        )?;
        Ok(Kind::Tag(key, Some(value)))
    }

    fn eks(&mut self) -> Result<Kind, ParseError> {
        let cluster = self.pattern(|c| c == '/', "the name of an EKS cluster")?;
        if self.rest.next_if_eq(&'/').is_none() {
            return Ok(Kind::Eks(cluster, None));
        }
        self.taken += 1;
        let group = self.pattern(|_| false, "the name of a node group")?;
        Ok(Kind::Eks(cluster, Some(group)))
    }

    /// `NAME`, `app/NAME` or `classic/NAME`. No load balancer has a slash in its name.
    fn elb(&mut self, at: usize) -> Result<Kind, ParseError> {
        let wanted = "the name of a load balancer";
        let first = self.pattern(|c| c == '/', wanted)?;
        if self.rest.next_if_eq(&'/').is_none() {
            return Ok(Kind::BehindClassic(first));
        }
        self.taken += 1;
        let kind = match first.as_literal() {
            Some("app") => BalancerKind::Application,
            Some("classic") => BalancerKind::Classic,
            _ => {
                let what = format!("{first} is no kind of load balancer that can be mirrored");
                let remedy = "write `elb:app/NAME` or `elb:classic/NAME` for the load balancer's own interfaces, \
                              `elb:NAME` for the instances behind a Classic Load Balancer";
                return Err(error(at, what, remedy.to_owned()));
            }
        };
        Ok(Kind::Balancer(kind, self.pattern(|c| c == '/', wanted)?))
    }

    /// A pattern for an id: without a star, one that lacks the prefix can never match and is refused.
    fn id_pattern(&mut self, prefix: &str) -> Result<Pattern, ParseError> {
        let at = self.column();
        let pattern = self.pattern(|_| false, &format!("an id that begins with `{prefix}`"))?;
        match pattern.as_literal() {
            Some(text) if !text.starts_with(prefix) => {
                let remedy =
                    format!("write the id, which begins with `{prefix}`; names are not looked up");
                Err(error(at, format!("{pattern} is not such an id"), remedy))
            }
            _ => Ok(pattern),
        }
    }

    fn pattern(
        &mut self,
        ends: impl Fn(char) -> bool,
        wanted: &str,
    ) -> Result<Pattern, ParseError> {
        if self.rest.peek() == Some(&'"') {
            return self.quoted();
        }
        let at = self.column();
        let mut pieces = vec![String::new()];
        let mut any = false;
        while let Some(c) = self.rest.next_if(|&c| !needs_quotes(c) && !ends(c)) {
            self.taken += 1;
            any = true;
            match (c, pieces.last_mut()) {
                ('*', _) => pieces.push(String::new()),
                (c, Some(piece)) => piece.push(c),
                (_, None) => {}
            }
        }
        if any {
            Ok(Pattern::from_pieces(pieces))
        } else {
            Err(error(
                at,
                "a value is missing".to_owned(),
                format!("write {wanted}"),
            ))
        }
    }

    fn quoted(&mut self) -> Result<Pattern, ParseError> {
        let at = self.column();
        self.next();
        let mut pieces = vec![String::new()];
        loop {
            let c = match self.next() {
                Some('"') => return Ok(Pattern::from_pieces(pieces)),
                Some('*') => {
                    pieces.push(String::new());
                    continue;
                }
                Some('\\') => match self.next() {
                    Some(c @ ('"' | '\\' | '*')) => Some(c),
                    Some(c) => {
                        let what = format!("`\\{}` means nothing", c.escape_debug());
                        return Err(error(
                            self.taken - 1,
                            what,
                            "write \\\\ for a backslash".to_owned(),
                        ));
                    }
                    None => None,
                },
                other => other,
            };
            match (c, pieces.last_mut()) {
                (Some(c), Some(piece)) => piece.push(c),
                _ => {
                    return Err(error(
                        at,
                        "the quote that begins here is never closed".to_owned(),
                        "add a `\"`".to_owned(),
                    ));
                }
            }
        }
    }
}
